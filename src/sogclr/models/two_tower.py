"""Two towers, an encoder for each column of pairs, with one space: while they train, and afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.pair_columns import IMAGE_TEXT, Kind
from ..errors import BadInput
from ..run_folder import RunFolder
from .backbone import create_backbone, feature_width
from .clip import TWO_TOWER_FORMAT, ClipSetup
from .clip_parts import Head
from .encoder import Encoder, EncoderInfo, load_encoder, read_info_of, save_weights, weights_fingerprint
from .mix import mixed_weights
from .text import TextSetup
from .weight_files import width_of

TEXTS_AT_ONCE = 256  # batch of a text tower in use


class TwoTowerModel(nn.Module):
    """Two backbones, each with a linear projection into the common space; not normalised: the loss does that.

    A frozen backbone stays in evaluation mode and gets no gradient; `forward` takes its precomputed features. The names
    of the parts are those of images with texts, whatever the columns hold: `backbone` and `head` are the first tower's,
    `text_backbone` and `text_head` the second's.

    Args:
        backbone: inputs of the first column -> (N, F): normalised images (N, 3, S, S), or tokens (N, L).
        text_backbone: inputs of the second column -> (N, T); None: one tower serves both.
        dim: width of the common space.
        frozen: whether the first backbone, and the second, are frozen.
        heads: the projections of two towers, where there are any already.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module | None,
        dim: int,
        *,
        frozen: tuple[bool, bool] = (False, False),
        heads: tuple[Head, Head] | None = None,
    ) -> None:
        super().__init__()
        self.frozen, self.shared = frozen, text_backbone is None
        self.backbone = backbone  # in the order that an optimizer's state has them
        if text_backbone is not None:
            self.text_backbone = text_backbone
        self.head = nn.Linear(feature_width(backbone), dim, bias=False) if heads is None else heads[0]
        if text_backbone is not None:
            self.text_head = nn.Linear(feature_width(text_backbone), dim, bias=False) if heads is None else heads[1]
        for column in (0, 1):
            if frozen[column]:
                self.parts(column)[0].requires_grad_(False)

    def parts(self, column: int) -> tuple[nn.Module, Head]:
        """Return the backbone and the projection of a column, 0 or 1."""
        return (self.text_backbone, self.text_head) if column and not self.shared else (self.backbone, self.head)

    def project(self, inputs: Tensor, column: int) -> Tensor:
        """Return the projections (N, dim) of a column's inputs, or of its features (N, F) where the backbone is frozen."""
        backbone, head = self.parts(column)
        rows: Tensor = head(inputs if self.frozen[column] else backbone(inputs))
        return rows

    def forward(self, first: Tensor, second: Tensor, negatives: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the projections (N, dim), (N, dim) of pairs, and those of hard negatives where there are any.

        Args:
            first: inputs of the first column, N of them; or features (N, F) where its backbone is frozen.
            second: the same of the second column.
            negatives: inputs of the second column.
        """
        pair = self.project(first, 0), self.project(second, 1)
        return pair if negatives is None else (*pair, self.project(negatives, 1))

    def train(self, mode: bool = True) -> TwoTowerModel:
        """Set training mode, except for frozen backbones."""
        super().train(mode)
        for column in (0, 1):
            if self.frozen[column]:
                self.parts(column)[0].eval()
        return self


class ImageTower(nn.Module):
    """One column's half of a model: normalised images (N, 3, S, S) -> (N, dim) unit rows.

    Args:
        model: shares its backbone and projection.
        column: 0 or 1.
    """

    def __init__(self, model: TwoTowerModel, column: int = 0) -> None:
        super().__init__()
        self.backbone, self.head = model.parts(column)
        self.num_features = self.head.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Return the unit rows (N, dim) of normalised images (N, 3, S, S)."""
        return functional.normalize(self.head(self.backbone(images)).float(), dim=1)


class TextTower(nn.Module):
    """One column's half of a model: tokens (N, L) -> (N, dim) unit rows; `encode` takes texts.

    Args:
        model: shares its backbone and projection.
        text: description and tokenizer.
        column: 0 or 1.
        device: where the model is.
    """

    def __init__(self, model: TwoTowerModel, text: TextSetup, column: int, device: torch.device | str) -> None:
        super().__init__()
        self.backbone, self.head = model.parts(column)
        self.text, self.column, self.device = text, column, torch.device(device)
        self.num_features = self.head.out_features

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the unit rows (N, dim) of tokens (N, L)."""
        return functional.normalize(self.head(self.backbone(tokens)).float(), dim=1)

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> Tensor:
        """Return (N, dim) unit rows of N texts, float32, on the device."""
        chunks = [texts[k : k + TEXTS_AT_ONCE] for k in range(0, len(texts), TEXTS_AT_ONCE)]
        rows = [self(self.text.tokens(chunk, self.column).to(self.device)) for chunk in chunks]
        return torch.cat(rows) if rows else torch.empty(0, self.num_features, device=self.device)

    @torch.inference_mode()
    def features(self, texts: list[str]) -> Tensor:
        """Return the backbone's features (N, T), before the projection."""
        found: Tensor = self.backbone(self.text.tokens(texts, self.column).to(self.device))
        return found

    def fingerprint(self) -> str:
        """Return the SHA-256 of the description and the names and bytes of the weights."""
        about = {**self.text.info.to_table(), "column": self.column}
        return weights_fingerprint(json.dumps(about, sort_keys=True, default=str), self)


class TwoTower:
    """A model in use: a tower for each column of pairs, `towers[0]` and `towers[1]`.

    An image tower is an `Encoder`, which gives unit rows of the common space; a text tower is a `TextTower`.

    Example:
        >>> towers = load_two_tower("runs/birds")                                # doctest: +SKIP
        >>> similarity = towers.encode(crops) @ towers.encode_texts(["a red bird"]).T   # doctest: +SKIP

    Args:
        model: on `device`, in evaluation mode.
        kinds: what the two columns hold.
        info: name and preprocessing of the image towers.
        text: the text towers' description and tokenizer; None where there are none.
        device: where the model is.
        clip: what the towers are, where they are those of a CLIP model.
    """

    def __init__(
        self,
        model: TwoTowerModel,
        kinds: tuple[Kind, Kind],
        info: EncoderInfo,
        text: TextSetup | None,
        device: torch.device | str,
        clip: ClipSetup | None = None,
    ) -> None:
        self.model, self.kinds, self.info, self.text, self.clip = model, kinds, info, text, clip
        self.device, self.num_features = torch.device(device), model.head.out_features
        self.towers = [self._tower(column) for column in (0, 1)]

    def _tower(self, column: int) -> Encoder | TextTower:
        if self.kinds[column] == "images":
            return Encoder(ImageTower(self.model, column), self.info).eval()
        assert self.text is not None, "a column of texts has a tokenizer"
        return TextTower(self.model, self.text, column, self.device).eval()

    @property
    def images(self) -> Encoder:
        """Return the tower of images, the first if both are.

        Raises:
            BadInput: there is none.
        """
        found = next((tower for tower in self.towers if isinstance(tower, Encoder)), None)
        if found is None:
            raise BadInput("this run was trained on texts and knows no images; give texts")
        return found

    def texts(self, column: int | None = None) -> TextTower:
        """Return the tower of texts, that of a column (0 or 1) or else the last.

        Raises:
            BadInput: there is none.
        """
        towers = self.towers[::-1] if column is None else [self.towers[column]]
        found = next((tower for tower in towers if isinstance(tower, TextTower)), None)
        if found is None:
            raise BadInput("this run knows no texts; give images")
        return found

    def encode(self, crops: Tensor) -> Tensor:
        """Return (N, D) unit rows of uint8 crops (N, S, S, 3)."""
        return self.images.encode(crops)

    def encode_texts(self, texts: list[str], column: int | None = None) -> Tensor:
        """Return (N, D) unit rows, float32, on the device.

        Args:
            texts: N of them.
            column: 0 or 1, as whose texts they are encoded where both columns hold texts; the second when left out.
        """
        return self.texts(column).encode(texts)


def save_two_tower(path: Path, model: TwoTowerModel, kinds: tuple[Kind, Kind], info: EncoderInfo) -> None:
    """Write the weights of both towers; the text towers' description and tokenizer are in the run's `text/`."""
    about = {"dim": str(model.head.out_features), "kinds": ",".join(kinds), "shared": str(int(model.shared))}
    save_weights(path, model, TWO_TOWER_FORMAT, info, **about)


def load_two_tower(run: str | os.PathLike[str], device: str | torch.device = "cpu", *, mix: float = 1.0) -> TwoTower:
    """Load the two towers of a finished run on pairs, in evaluation mode.

    Args:
        run: the folder of the run.
        device: where the towers will be.
        mix: of a run that began from weights: from 0, those weights, to 1, what it trained; between them a mix.

    Raises:
        BadInput: no such run, it is not on pairs or not finished, or there is nothing to mix.
    """
    folder = RunFolder.open(run)
    path = folder.two_tower_file
    if not folder.holds_pairs():
        raise BadInput(f"{run} was trained on images alone and knows no texts; train on pairs for that")
    if not path.is_file():
        raise BadInput(f"{run} is not finished ({path.name} is missing); resume it first: sogclr resume {run}")
    info, metadata = read_info_of(path, TWO_TOWER_FORMAT, "restore it from a copy")
    first, _, second = metadata.get("kinds", ",".join(IMAGE_TEXT)).partition(",")
    kinds: tuple[Kind, Kind] = _kind(first), _kind(second)
    text = TextSetup.load(folder.text_folder) if "texts" in kinds else None
    clip = clip_of_run(folder)
    dim, shared = width_of(path, metadata), metadata.get("shared") == "1"
    model = build_towers(kinds, info, text, dim, shared=shared, clip=clip)
    try:
        model.load_state_dict(mixed_weights(folder, path, mix))
    except RuntimeError:
        raise BadInput(f"{path} does not hold the towers that it describes; restore it from a copy") from None
    return TwoTower(model.to(device).eval().requires_grad_(False), kinds, info, text, device, clip)


def clip_of_run(run: str | os.PathLike[str]) -> ClipSetup | None:
    """Return what the towers of a run are, where they are those of a CLIP model."""
    return ClipSetup.find(RunFolder(run).clip_folder)


def load_run_encoder(run: str | os.PathLike[str], device: str | torch.device = "cpu", *, mix: float = 1.0) -> Encoder:
    """Load the encoder of images of a finished run or an exported file, without any projection; as `load_encoder`."""
    folder = RunFolder(run)
    if not folder.clip_folder.is_dir():
        return load_encoder(run, device, mix=mix)
    towers = load_two_tower(folder, device, mix=mix)
    return Encoder(towers.model.backbone, towers.info).eval()


def create_run_backbone(run: str | os.PathLike[str] | None, info: EncoderInfo) -> nn.Module:
    """Build the encoder of images of a run or an exported file, if it is of one, with random weights."""
    clip = None if run is None else clip_of_run(run)
    return clip.build().backbone if clip is not None else create_backbone(info.name, info.image_size)


def _kind(word: str) -> Kind:
    return "images" if word == "images" else "texts"


def build_towers(
    kinds: tuple[Kind, Kind],
    info: EncoderInfo,
    text: TextSetup | None,
    dim: int,
    *,
    shared: bool = False,
    pretrained: str | os.PathLike[str] | None = None,
    frozen: tuple[bool, bool] = (False, False),
    clip: ClipSetup | None = None,
) -> TwoTowerModel:
    """Build both towers, with weights drawn from torch's generator or given.

    Args:
        kinds: what the two columns hold.
        info: of the image towers: timm name and size.
        text: of the text towers.
        dim: width of the common space.
        shared: whether one tower serves both columns, which are of one kind.
        pretrained: weights of the image towers.
        frozen: whether the first backbone, and the second, are frozen.
        clip: what both towers are, in the place of all but `frozen`.
    """
    if clip is not None:
        parts = clip.build()
        return TwoTowerModel(
            parts.backbone, parts.text_backbone, dim, frozen=frozen, heads=(parts.head, parts.text_head)
        )

    def backbone(kind: Kind) -> nn.Module:
        if kind == "images":
            return create_backbone(info.name, info.image_size, pretrained)
        assert text is not None, "a column of texts has a tokenizer"
        return text.build()

    first = backbone(kinds[0])
    return TwoTowerModel(first, None if shared else backbone(kinds[1]), dim, frozen=frozen)
