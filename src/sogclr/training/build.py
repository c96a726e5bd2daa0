"""From a configuration to the parts of a trainer: model, loss, optimizers, schedule, task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from .. import distributed
from ..config.schema import TrainConfig
from ..data.decoded import require_decoded
from ..data.labels import Labels, read_labels
from ..data.manifest import Manifest
from ..data.pair_columns import Kind
from ..data.pairs import Pairs
from ..data.recipe import Recipe, recipe_from_table
from ..data.source import Source
from ..errors import BadInput
from ..losses import MoCoLoss
from ..losses.contrastive import ContrastiveLoss
from ..models.backbone import batchnorms, create_backbone, feature_width, freeze
from ..models.encoder import EncoderInfo
from ..models.pretrained import weights_file
from ..models.text import TextSetup
from ..models.two_tower import TwoTowerModel, build_towers
from ..models.two_view import ContrastiveModel, ProjectionHead
from ..progress import Progress
from ..run_folder import RunFolder
from .build_loss import build_loss, build_loss_optimizers
from .image_task import ImageTask, MoCoTask
from .optim import build_optimizer, warmup_cosine
from .own.data import ManifestImages
from .own.parts import OwnLoss, OwnParts, probe_width
from .own.views import OwnViews
from .pair_task import PairTask
from .parts import OnMetrics, Parts
from .reading import Reading
from .resolve import count_steps_per_epoch, tower_rates
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
) -> Parts:
    """Build all that a trainer trains, with weights drawn from the seed; nothing is written.

    Args:
        config: resolved: every choice is made.
        source: what to train on.
        run: where the run goes.
        progress: for messages.
        own: parts of the user's own.
        on_metrics: called with each row of the metrics.

    Raises:
        BadInput: options that cannot be met: no such weights, labels or decoded images, frozen towers without weights.
    """
    own, options, optim = own or OwnParts(), config.run, config.optim
    if not (config.data.image_size and options.max_steps):
        raise ValueError("choices are open in this configuration; resolve makes them")
    device = distributed.local_device(torch.device(options.device))
    steps_per_epoch = count_steps_per_epoch(config, source)

    # model, loss, and what is special about DATA or a method
    pairs = source if isinstance(source, Pairs) else None
    config = _without_weights(config, run)
    task = _image_task(config, source, device, own) if pairs is None else _pair_task(config, pairs, run, device)
    model, loss = task.model, task.loss_fn
    assert isinstance(loss, ContrastiveLoss | OwnLoss)

    # optimizers and schedule
    lr, warmup = float(optim.lr or 0.0), round((optim.warmup_epochs or 0) * steps_per_epoch)
    schedule = warmup_cosine(options.max_steps, warmup)
    scales = None if pairs is None else _lr_scales(config, pairs.kinds)
    return Parts(
        run=run,
        source=source,
        task=task,
        model=model,
        loss=loss,
        optimizer=build_optimizer(model, optim, scales),
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
        clip_grad=optim.clip_grad,
        total_steps=options.max_steps,
        steps_per_epoch=steps_per_epoch,
        log_every=options.log_every or 1,
        eval_every=(options.eval_every or 1) * steps_per_epoch,
        diagnose_every=options.diagnose_every and options.diagnose_every * steps_per_epoch,
        save_every=options.save_every or 1,
        keep=options.keep,
        max_bad=config.data.max_bad,
        learned_temperature=config.loss.temperature_mode != "constant",
    )


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
    return Reading(
        recipe=recipe_from_table(Recipe(), config.augment),
        image_size=data.image_size or 0,
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        workers=data.workers or 0,
        background=data.background,
        decoded=require_decoded(source.images, data.background, data.cache) if cached else None,
    )


def _to_device(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Move a model in place, with its filters in the layout of the run."""
    model.to(device)
    if config.run.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------------------------------- images
def _image_task(config: TrainConfig, source: Source, device: torch.device, own: OwnParts) -> ImageTask:
    """Return the task of images: views, model and loss, each ours or the user's own."""
    reading, info = _reading(config, source), EncoderInfo.of_run(config)
    labels = read_labels(source, config.data.labels) if isinstance(source, Manifest) else None
    views = build_views(source, labels, info, reading, own)
    shape = views.view_shape() if isinstance(views, OwnViews) else (3, reading.image_size, reading.image_size)
    if own.model is None and shape[0] != 3:
        raise BadInput(
            f"{info.name} takes images of 3 channels and the views have {shape[0]}; give a model of your own"
        )
    model = build_image_model(config, own, shape)
    _to_device(model, config, device)
    loss = own_loss(own.loss, source) if own.loss is not None else build_loss(config, source)
    image_task = (source, views, model, loss.to(device), info, device)
    if not isinstance(loss, MoCoLoss):
        return ImageTask(*image_task)
    return MoCoTask(
        *image_task,
        momentum=config.loss.key_momentum,
        rising=config.loss.key_schedule == "cosine",
        total=config.run.max_steps or 1,
        symmetric=config.loss.symmetric,
    )


def build_views(source: Source, labels: Labels | None, info: EncoderInfo, reading: Reading, own: OwnParts) -> Views:
    """Return what makes two views of an image: our readers and augmentation, or the user's own parts."""
    if own.dataset is not None:
        return OwnViews(source, own.dataset, own.transform, None, info, reading)
    assert isinstance(source, Manifest)
    if own.transform is not None:
        images = ManifestImages(source, reading.background)
        return OwnViews(source, images, own.transform, labels, info, reading)
    return ImageViews(source, labels, info, reading)


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
def _pair_task(config: TrainConfig, pairs: Pairs, run: RunFolder, device: torch.device) -> PairTask:
    """Return the task of pairs."""
    if not run.config_file.is_file():  # a run that has begun has its weights
        _check_frozen(config, pairs.kinds)
    reading = _reading(config, pairs)
    text = _text_setup(config, pairs, run) if "texts" in pairs.kinds else None
    model = build_pair_model(config, pairs.kinds, text)
    _to_device(model, config, device)
    loss = build_loss(config, pairs).to(device)
    return PairTask(pairs, text, model, loss, EncoderInfo.of_run(config), reading, run.features_folder, device)


def _lr_scales(config: TrainConfig, kinds: tuple[Kind, Kind]) -> dict[str, float]:
    """Return the share of the learning rate of each tower, by the beginning of its parameters' names."""
    return dict(zip(("backbone.", "text_backbone."), tower_rates(config.pairs, kinds), strict=True))


def _check_frozen(config: TrainConfig, kinds: tuple[Kind, Kind]) -> None:
    model, options = config.model, config.pairs
    if "images" in kinds and options.image_rate == 0 and model.pretrained is None and model.init_from is None:
        raise BadInput("--image-rate 0 freezes an encoder that knows nothing; give its weights with --pretrained FILE")
    if "texts" in kinds and options.text_rate == 0 and options.text_model is None and model.init_from is None:
        raise BadInput("--text-rate 0 freezes a text tower that knows nothing; give one with --text-model PATH")


def _text_setup(config: TrainConfig, pairs: Pairs, run: RunFolder) -> TextSetup:
    """Return the text towers' description and tokenizer: the run's own if it has begun, that of `--init-from`, or a new one."""
    options = config.pairs
    prompts = (options.query_prompt, options.document_prompt)
    if run.config_file.is_file():
        return TextSetup.load(run.text_folder)
    if config.model.init_from is not None:
        other = RunFolder.open(config.model.init_from)
        if not other.text_folder.is_dir():
            raise BadInput(f"{other.path} was trained on images alone; give its encoder with --pretrained instead")
        return TextSetup.load(other.text_folder)
    if options.text_model is not None:
        return TextSetup.from_pretrained(options.text_model, options.text_length, options.pooling, prompts)
    columns = [pairs.ids(k)[pairs.usable] for k in (0, 1) if pairs.kinds[k] == "texts"]
    used = np.unique(np.concatenate([*columns, pairs.negatives[1]]))
    texts = (text for k in range(0, len(used), 4096) for text in pairs.texts_of(used[k : k + 4096]))
    return TextSetup.from_captions(
        texts, options.vocab_size, options.text_width, options.text_layers, options.text_length, prompts
    )


def build_pair_model(config: TrainConfig, kinds: tuple[Kind, Kind], text: TextSetup | None) -> TwoTowerModel:
    """Return both towers, with weights drawn from the seed or given."""
    torch.manual_seed(config.run.seed)
    options, rates = config.model, tower_rates(config.pairs, kinds)
    return build_towers(
        kinds,
        EncoderInfo.of_run(config),
        text,
        options.head_dim,
        shared=config.pairs.shared_tower,
        pretrained=options.pretrained,
        frozen=(rates[0] == 0, rates[1] == 0),
    )
