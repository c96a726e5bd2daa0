"""From a configuration to the parts of a trainer: model, loss, optimizers, schedule, task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from .. import distributed
from ..config.schema import TrainConfig
from ..data.decoded import require_decoded
from ..data.labels import Labels, read_labels
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..data.source import Source
from ..errors import BadInput
from ..evaluation.warm_start import keeps_normalizers
from ..losses import MoCoLoss
from ..losses.contrastive import ContrastiveLoss
from ..models.backbone import batchnorms, create_backbone, feature_width, freeze
from ..models.encoder import EncoderInfo
from ..models.pretrained import weights_file
from ..models.two_view import ContrastiveModel, ProjectionHead
from ..progress import Progress
from ..run_folder import RunFolder
from .build_loss import build_loss, build_loss_optimizers
from .build_pairs import build_pair_model
from .image_task import ImageTask, MoCoTask
from .neighbours import build_neighbours
from .online_eval import Scored, all_of
from .optim import build_optimizer, warmup_cosine
from .own.data import ManifestImages
from .own.parts import OwnLoss, OwnParts, probe_width
from .own.views import OwnViews
from .pair_task import PairTask
from .parts import OnMetrics, Parts
from .reading import Reading, view_groups
from .resolve import check_resolved, count_steps_per_epoch, tower_rates
from .skip import use_fused
from .views import ImageViews, Views

OWN_LOSS_LR = 1e-3  # of Adam, for parameters of a loss of a user's own


def build(
    config: TrainConfig,
    source: Source,
    run: RunFolder,
    progress: Progress,
    own: OwnParts | None = None,
    on_metrics: Sequence[OnMetrics] = (),
    validation: Source | None = None,
) -> Parts:
    """Build all that a trainer trains, with weights drawn from the seed; nothing is written.

    Args:
        config: resolved: every choice is made.
        source: what to train on.
        run: where the run goes.
        progress: for messages.
        own: parts of the user's own.
        on_metrics: called with each row of the metrics.
        validation: what the online evaluation is on, of the source's kind; None for a sample of it.

    Raises:
        BadInput: choices are open, or options cannot be met: no such weights, labels or decoded images, frozen towers without weights.
    """
    own, options, optim = own or OwnParts(), config.run, config.optim
    check_resolved(config)
    assert options.max_steps is not None  # which was checked
    device = distributed.local_device(torch.device(options.device))
    steps_per_epoch = count_steps_per_epoch(config, source)

    # model, loss, and what is special about DATA or a method
    task = _task(_without_weights(config, run), source, run, device, own, validation)
    model, loss = task.model, task.loss_fn
    assert isinstance(loss, ContrastiveLoss | OwnLoss)

    lr, warmup = float(optim.lr or 0.0), round((optim.warmup_epochs or 0) * steps_per_epoch)
    schedule = warmup_cosine(options.max_steps, warmup, optim.still_steps or 0)
    return Parts(
        run=run,
        source=source,
        task=task,
        model=model,
        loss=loss,
        optimizer=build_optimizer(model, optim, _lr_scales(config, source)),
        loss_optimizers=_loss_optimizers(loss, config),
        learning_rate=lambda step: lr * schedule(step),
        peak_learning_rate=lr,
        progress=progress,
        on_metrics=on_metrics,
        device=device,
        precision=options.precision,
        seed=options.seed,
        threads=options.threads or 1,
        compile=options.compile,
        shard_state=options.shard_state,
        batch_size=options.batch_size,
        accumulate=optim.accumulate,
        micro_batch=optim.micro_batch,
        gradient_scale=optim.gradient_scale or 1.0,
        clip_grad=optim.clip_grad,
        total_steps=options.max_steps,
        steps_per_epoch=steps_per_epoch,
        log_every=options.log_every or 1,
        eval_every=(options.eval_every or 1) * steps_per_epoch,
        diagnose_every=options.diagnose_every and options.diagnose_every * steps_per_epoch,
        save_every=options.save_every or 1,
        keep=options.keep,
        exact_start=optim.warm_start == "exact" and keeps_normalizers(loss),
        max_bad=config.data.max_bad,
        learned_temperature=config.loss.temperature_mode != "constant",
    )


def _task(
    config: TrainConfig,
    source: Source,
    run: RunFolder,
    device: torch.device,
    own: OwnParts,
    validation: Source | None,
) -> ImageTask | PairTask:
    """Return what is special about DATA or a method."""
    if isinstance(source, Pairs):
        return _pair_task(config, source, run, device, validation)
    return _image_task(config, source, device, own, validation)


def _without_weights(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """Return the configuration without the first weights where a checkpoint has what became of them, else with their file."""
    weights = config.model.pretrained
    if weights is None:
        return config
    begun = run.config_file.is_file() and run.latest_checkpoint() is not None
    return replace(config, model=replace(config.model, pretrained=None if begun else str(weights_file(weights))))


def _reading(config: TrainConfig, source: Source) -> Reading:
    """Return how samples are read: from decoded images where the configuration asks for them, else from files."""
    data, cached = config.data, config.data.cache != "none"
    full, *small = view_groups(config)
    return Reading(
        recipe=full.recipe,
        image_size=full.size,
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        workers=data.workers or 0,
        background=data.background,
        decoded=require_decoded(source.images, data.background, data.cache) if cached else None,
        views=full.views,
        small=tuple(small),
        neighbours=build_neighbours(config, source),
    )


def _to_device(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Move a model in place, with its filters in the layout of the run."""
    model.to(device)
    if config.run.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------------------------------- images
def _image_task(
    config: TrainConfig, source: Source, device: torch.device, own: OwnParts, validation: Source | None
) -> ImageTask:
    """Return the task of images: views, model and loss, each ours or the user's own."""
    reading, info = _reading(config, source), EncoderInfo.of_run(config)
    labels = read_labels(source, config.data.labels) if isinstance(source, Manifest) else None
    held_out = None if validation is None else all_of(validation.images, config.data.labels)
    views = build_views(source, labels, info, reading, own, held_out)
    shape = views.view_shape() if isinstance(views, OwnViews) else (3, reading.image_size, reading.image_size)
    if own.model is None and shape[0] != 3:
        raise BadInput(
            f"{info.name} takes images of 3 channels and the views have {shape[0]}; give a model of your own"
        )
    model = build_image_model(config, own, shape)
    for group in reading.small:
        probe_width(model.backbone, (shape[0], group.size, group.size))
    _to_device(model, config, device)
    loss = own_loss(own.loss, source) if own.loss is not None else build_loss(config, source)
    image_task = (source, views, model, loss.to(device), info, device)
    if isinstance(loss, MoCoLoss):
        task: ImageTask = MoCoTask(
            *image_task,
            momentum=config.loss.key_momentum,
            rising=config.loss.key_schedule == "cosine",
            total=config.run.max_steps or 1,
            symmetric=config.loss.symmetric,
        )
    else:
        task = ImageTask(*image_task)
    task.neighbours = reading.neighbours
    return task


def build_views(
    source: Source,
    labels: Labels | None,
    info: EncoderInfo,
    reading: Reading,
    own: OwnParts,
    held_out: Scored | None = None,
) -> Views:
    """Return what makes two views of an image: our readers and augmentation, or the user's own parts."""
    if own.dataset is not None:
        return OwnViews(source, own.dataset, own.transform, None, info, reading)
    assert isinstance(source, Manifest)
    if own.transform is not None:
        images = ManifestImages(source, reading.background)
        return OwnViews(source, images, own.transform, labels, info, reading)
    return ImageViews(source, labels, info, reading, held_out)


def build_image_model(config: TrainConfig, own: OwnParts, shape: tuple[int, ...]) -> ContrastiveModel:
    """Return backbone and head, with weights drawn from the seed, from `--pretrained`, or as the user's own model has them.

    Args:
        config: resolved.
        own: with a model, or none.
        shape: (C, H, W) of an image.
    """
    options = config.model
    torch.manual_seed(config.run.seed)
    if own.model is None:
        backbone = create_backbone(str(options.model), config.data.image_size or 0, options.pretrained)
        width = feature_width(backbone)
    else:
        backbone, width = own.model, probe_width(own.model, shape)
        backbone.num_features = width  # type: ignore[assignment]  # what an encoder says of itself
        if not own.head:
            return ContrastiveModel(backbone, nn.Identity())
    head = ProjectionHead(width, options.head_hidden or width, options.head_dim, options.head_layers)
    held = options.freeze or options.train_last is not None
    frozen = freeze(backbone, options.train_last or 0) if held else []
    frozen += batchnorms(backbone) if options.batchnorm == "frozen" else []
    return ContrastiveModel(backbone, head, frozen)


def own_loss(loss: nn.Module, source: Source) -> ContrastiveLoss | OwnLoss:
    """Return a loss that was given instead of a method, ready for a training step: one of ours as it is, another wrapped.

    Raises:
        BadInput: it was built for another number of samples, or another is to train on several processes.
    """
    count = getattr(loss, "num_samples", None)
    if isinstance(count, int) and count != len(source):
        raise BadInput(
            f"the loss was built for {count:,} samples and DATA holds {len(source):,}; build it with num_samples={len(source)}"
        )
    if isinstance(loss, ContrastiveLoss):
        return loss
    if distributed.world_size() > 1:
        raise BadInput(
            f"{type(loss).__name__} sees the samples of one process only; train with a loss of your own on one process"
        )
    return OwnLoss(loss)


def _loss_optimizers(loss: ContrastiveLoss | OwnLoss, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return what trains the parameters of a loss, ours or the user's own; empty where there are none."""
    if isinstance(loss, ContrastiveLoss):
        return build_loss_optimizers(loss, config)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    return [torch.optim.Adam(parameters, OWN_LOSS_LR, fused=use_fused(parameters))] if parameters else []


# ----------------------------------------------------------------------------------------------------------------- pairs
def _pair_task(
    config: TrainConfig, pairs: Pairs, run: RunFolder, device: torch.device, validation: Source | None
) -> PairTask:
    """Return the task of pairs."""
    reading = _reading(config, pairs)
    model, text, clip = build_pair_model(config, pairs, run)
    _to_device(model, config, device)
    loss = build_loss(config, pairs).to(device)
    assert validation is None or isinstance(validation, Pairs)
    info = EncoderInfo.of_run(config)
    return PairTask(pairs, text, model, loss, info, reading, run.features_folder, device, clip, validation)


def _lr_scales(config: TrainConfig, source: Source) -> dict[str, float] | None:
    """Return the share of the learning rate of each tower, by the beginning of its parameters' names; of pairs alone."""
    if not isinstance(source, Pairs):
        return None
    return dict(zip(("backbone.", "text_backbone."), tower_rates(config.pairs, source.kinds), strict=True))
