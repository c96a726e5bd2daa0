"""The configuration of a run: one tree of small frozen dataclasses. No torch here: `sogclr --help` must not wait for it.

A field's annotation holds the limits of its values, the text below it says what it does; `title`
heads a section's options in the help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, Suppress, arg

from ..data.multi_crop import crops_refusal, full_side
from ..data.remote import is_url
from ..errors import BadInput
from .objective import LossConfig, OptimConfig
from .ranges import Check, Range, check_fields

Precision = Literal["auto", "fp32", "bf16", "fp16"]
RecipeName = Literal["auto", "simclr", "small", "character", "caption"]
BatchNorm = Literal["auto", "train", "frozen"]
Pooling = Literal["mean", "cls"]
Batches = Literal["random", "neighbours"]
Logger = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]

BASIC_OPTIONS: tuple[str, ...] = (
    "data",
    "out",
    "model",
    "pretrained",
    "clip",
    "method",
    "temperature",
    "gamma",
    "epochs",
    "batch_size",
    "image_size",
    "lr",
    "optimizer",
    "labels",
    "device",
    "workers",
    "seed",
)
"""What a first run may need; the other options are for those who know what they want."""


def _cache_refusal(value: str) -> str | None:
    if value in ("auto", "none", "full") or (value.isdecimal() and int(value) > 0):
        return None
    return f"must be auto, none, full or the side of `sogclr cache --side`, and was {value}"


def _out_refusal(value: str) -> str | None:
    if not value:
        return "must be a folder and was empty"
    return f"must be a folder on this disk and was {value}" if is_url(value) else None


def _width_refusal(value: int) -> str | None:
    if value >= 32 and value % max(1, value // 64) == 0:
        return None
    return f"must be a multiple of 64, or from 32 to 127, and was {value}"


@dataclass(frozen=True)
class DataConfig:
    """What to train on, and where the run goes."""

    title: ClassVar[str] = "data"

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """Images: a folder (its train/ part, if it has one), a .txt list, tar shards, or Parquet with images inside. Pairs of images and captions, of texts, or of images: CSV, TSV, JSONL, Parquet; or tar shards. Each may be a URL: s3://, gs://, hf://, ..."""
    out: Annotated[str, Check(_out_refusal)]
    """The run's folder, on this disk; it must not hold another run."""
    validation: str | None = None
    """Held-out data of the same kind: the scores during training, and so the best checkpoint, are of it; of a sample of DATA when left out."""
    labels: str = "auto"
    """Used for evaluation only: auto, folder, none, or a CSV file of path,label."""
    image_size: Annotated[int | None, Range(8)] = None
    """Side of the views, pixels. Chosen from the images (32, 64, 96 or 224) when left out."""
    views: Annotated[int, Range(2, note="a positive is another view of the same image")] = 2
    """Views of each image in a batch, all anchors and negatives alike: so many rows for each image of --batch-size."""
    crops: Annotated[str | None, Check(crops_refusal)] = None
    """Multi-crop, instead of --views and --image-size: views of several sides, as 2x224,4x96, the largest first. Views of one side when left out."""
    recipe: RecipeName = "auto"
    """Augmentation: auto is simclr, below 96 pixels small, and for pairs caption. Single values: the [augment] table of a configuration file."""
    background: str = "white"
    """What transparent pixels are laid on: a colour name or #rrggbb."""
    max_bad: Annotated[float, Range(0, 1, below=True, note="it is a share of the images")] = 0.01
    """The largest share of unreadable images; above it the run stops."""
    workers: Annotated[int | None, Range(0)] = None
    """Processes that read images (0: none). Chosen from the cores when left out."""
    cache: Annotated[str, Check(_cache_refusal)] = "auto"
    """Decoded images that `sogclr cache` made: auto reads them where there are some; none; or full, or the side, to require them."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.crops is not None and self.views != 2:
            raise BadInput(
                f"--crops {self.crops} says how many views there are, as --views {self.views} does; keep one"
            )
        side = full_side(self.crops)
        if side and self.image_size not in (None, side):
            raise BadInput(
                f"--crops {self.crops} has full-size views of {side} pixels and --image-size is {self.image_size}; "
                "leave --image-size out"
            )


@dataclass(frozen=True)
class ModelConfig:
    """What is trained."""

    title: ClassVar[str] = "model"

    model: str | None = None
    """Any timm name, or resnet18_small, resnet18_stride2, resnet50_small, resnet10_mini. That of the weights, or chosen by the image size, when left out."""
    pretrained: str | None = None
    """Weights to start from: a local file for the same timm model, or timm's name of them, as resnet50.a1_in1k, which may be downloaded."""
    clip: str | None = None
    """A CLIP or SigLIP model to start from, with both its towers: a folder or name of Hugging Face, ARCHITECTURE:WEIGHTS of open_clip, or a run on images and texts. A name may be downloaded."""
    init_from: str | None = None
    """A run to start from: its weights, and its normalizers for the images that both runs have."""
    freeze: bool = False
    """Train the projection head alone; the encoder stays as --pretrained or --init-from gave it."""
    train_last: Annotated[int | None, Range(1)] = None
    """Train only so many of the encoder's last stages or blocks, and the head. All when left out."""
    batchnorm: BatchNorm = "auto"
    """Whose statistics BatchNorm in the encoder uses: of each batch (train), or those of the first weights (frozen). auto is frozen with --pretrained, else train."""
    head_layers: Annotated[int, Range(2, 3)] = 2
    """Layers of the projection head."""
    head_hidden: Annotated[int | None, Range(1)] = None
    """Hidden width of the projection head; the encoder's width when left out."""
    head_dim: Annotated[int, Range(2)] = 128
    """Width of the embeddings that the loss compares."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.pretrained is not None and self.init_from is not None:
            raise BadInput("--pretrained and --init-from both give the first weights; keep one of them")


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and what is written down."""

    title: ClassVar[str] = "run"

    epochs: Annotated[int, Range(1)] = 100
    """Passes over the data."""
    max_steps: Annotated[int | None, Range(1)] = None
    """Stop after this many steps, if that is sooner than --epochs."""
    batch_size: Annotated[int, Range(2, note="contrastive learning needs other images as negatives")] = 256
    """Images (or pairs) in a batch, of all processes together."""
    batches: Batches = "random"
    """What is in a batch together: random samples; or neighbours, from the second epoch on: groups of samples whose embeddings are near, so that hard negatives meet."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Of the weights, the order of the data and the augmentation: the same seed is the same run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware has it (a GPU, or a CPU with bf16 instructions), otherwise fp32."""
    channels_last: bool = True
    """Lay images out with their channels last in memory, which convolutions are faster with."""
    compile: bool = False
    """torch.compile the model."""
    threads: Annotated[int | None, Range(1)] = None
    """Torch threads of the training process. Chosen from the cores when left out."""
    log_every: Annotated[int | None, Range(1)] = None
    """Steps between two lines of metrics.jsonl; about ten an epoch when left out."""
    eval_every: Annotated[int | None, Range(1)] = None
    """Epochs between two online evaluations; a tenth of the run when left out."""
    diagnose_every: Annotated[int | None, Range(1)] = None
    """Epochs between two diagnoses: bias and variance of the gradient and the normalizer's error, on a fixed part of the images. Never when left out."""
    save_every: Annotated[int | None, Range(1)] = None
    """Steps between two checkpoints; an epoch, but from 200 to 1000 steps, when left out."""
    keep: Annotated[int, Range(1)] = 2
    """How many of the last checkpoints are kept, beside the best."""
    shard_state: bool = False
    """On several processes, divide the normalizers among them by id: for hundreds of millions of samples."""
    logger: Logger = "none"
    """Where the metrics go beside metrics.jsonl: TensorBoard or an experiment tracker, which is installed on its own."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shard_state and self.diagnose_every:
            raise BadInput(
                "--diagnose-every needs all normalizers on the main process and --shard-state divides them; leave one out"
            )


@dataclass(frozen=True)
class PairsConfig:
    """For pairs: the columns, and the text towers."""

    title: ClassVar[str] = "pair"

    columns: str | None = None
    """Two columns of a table, each of images or of texts, as query,document; a third holds hard negatives of the first. Found when left out: an image and a caption by their names, or the only two."""
    image_column: str | None = None
    """Column of the images' paths; found by its name when left out."""
    caption_column: str | None = None
    """Column of the captions; found by its name when left out."""
    shared_tower: bool = False
    """One tower for both columns, which hold things of one kind."""
    share_negatives: bool = False
    """Hard negatives count for every pair of the batch, and not for their own alone."""
    known_pairs: bool = True
    """What matches by another pair of DATA is no negative, even if that pair is not in the batch."""
    text_model: str | None = None
    """A Hugging Face text encoder: a local folder, an installed package, or a name on the hub. A small transformer of our own when left out."""
    pooling: Pooling | None = None
    """How its tokens become one vector; what the encoder's folder says, else mean, when left out."""
    query_prompt: str = ""
    """Put before each text of the first column."""
    document_prompt: str = ""
    """Put before each text of the second column."""
    text_width: Annotated[int, Check(_width_refusal)] = 256
    """Width of that transformer."""
    text_layers: Annotated[int, Range(0)] = 4
    """Its layers; 0 is a bag of tokens, which is quick."""
    text_length: Annotated[int, Range(4)] = 64
    """Most tokens of a text; the rest is cut off."""
    vocab_size: Annotated[int, Range(300)] = 8192
    """Most tokens of the tokenizer that is trained on the texts."""
    image_rate: Annotated[float, Range(0, 100, note="it is a share of --lr")] = 1.0
    """Share of the learning rate that the image encoder gets; 0 freezes it, and its features are computed once."""
    text_rate: Annotated[float, Range(0, 100, note="it is a share of --lr")] = 1.0
    """The same for the text encoder."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. `None` means 'chosen when the run starts'; the saved copy has no `None` of that kind."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    augment: Annotated[dict[str, Any], Suppress] = field(default_factory=dict)
    """Fields of `Recipe` that differ from the one named by data.recipe; all of them in the saved copy."""
    inputs: Annotated[dict[str, Any], Suppress] = field(default_factory=dict)
    """Fields of `Inputs` that differ from those of the first weights; all of them in the saved copy."""

    @property
    def begins_trained(self) -> bool:
        """Return whether the first weights know something, so that the run has a start to be compared with."""
        return any((self.model.pretrained, self.model.init_from, self.model.clip, self.pairs.text_model))
