"""An encoder on images and files, as evaluation reads them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sogclr.data.inputs import Inputs
from sogclr.data.manifest import Manifest
from sogclr.errors import BadInput
from sogclr.models.backbone import create_backbone
from sogclr.models.encoder import Encoder, EncoderInfo
from sogclr.models.features import compute_features


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    info = EncoderInfo(
        "resnet10_mini", 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), crop_fraction=0.9, interpolation="bicubic"
    )
    return Encoder(create_backbone("resnet10_mini", 16), info).eval().requires_grad_(False)


@pytest.fixture
def photos(tmp_path):
    """A folder of files of several kinds: one large enough to be decoded smaller, one turned, one transparent."""
    draw, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()

    def image(height, width, channels=3):
        coarse = draw.integers(0, 256, (height // 10, width // 10, channels), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    image(333, 451).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image(70, 130).save(folder / "b.jpg", exif=exif)
    image(40, 30, 4).save(folder / "c.png")
    image(20, 20).convert("P").save(folder / "d.gif")
    return folder


def test_files_are_encoded_as_evaluation_reads_them(encoder, photos):
    manifest = Manifest.scan(photos)
    wanted, ids, bad = compute_features(encoder, manifest, np.arange(len(manifest)))
    paths = [manifest.path(int(i)) for i in ids]
    assert (len(paths), bad) == (4, [])
    torch.testing.assert_close(encoder.encode_files(paths, batch_size=3), torch.from_numpy(wanted))
    images = torch.stack([encoder.transform(path) for path in paths])
    assert (images.dtype, images.shape) == (torch.float32, (4, 3, 16, 16))
    torch.testing.assert_close(encoder(images), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    assert encoder.encode_files([]).shape == (0, encoder.num_features)


def test_an_open_image_is_transformed_as_its_file(encoder, photos):
    for name in ("b.jpg", "c.png", "d.gif"):  # small: not decoded smaller
        with Image.open(photos / name) as image:
            difference = (encoder.transform(image) - encoder.transform(photos / name)).abs().mean()
        assert difference < 0.05, name


def test_a_broken_file_is_one_sentence_with_its_name(encoder, photos):
    (photos / "e.jpg").write_bytes((photos / "a.jpg").read_bytes()[:400])
    for path, reason in ((photos / "e.jpg", "is truncated"), (photos / "no.jpg", "no longer exists")):
        with pytest.raises(BadInput, match=rf"{path.name} {reason}.*; leave it out or restore it"):
            encoder.encode_files([photos / "a.jpg", path])
    with pytest.raises(BadInput, match="takes a list of paths"):
        encoder.encode_files(str(photos / "a.jpg"))


@pytest.mark.parametrize(
    ("crops", "found"),
    [
        (torch.zeros(2, 16, 16, 3), r"torch.float32 \(2, 16, 16, 3\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"torch.uint8 \(2, 3, 16, 16\)"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), r"torch.uint8 \(16, 16, 3\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), "a ndarray"),
    ],
)
def test_what_encode_cannot_take_is_said(encoder, crops, found):
    with pytest.raises(BadInput, match=rf"takes a uint8 tensor \(N, 16, 16, 3\) of RGB crops and was given {found}"):
        encoder.encode(crops)


def test_squash_takes_the_whole_image(encoder, photos):
    info = replace(encoder.info, crop_fraction=1.0, squash=True)
    squashed = Encoder(encoder.backbone, info)
    manifest = Manifest.scan(photos)
    wanted, ids, _ = compute_features(squashed, manifest, np.arange(len(manifest)))
    paths = [manifest.path(int(i)) for i in ids]
    torch.testing.assert_close(squashed.encode_files(paths), torch.from_numpy(wanted))
    with Image.open(photos / "c.png") as image:
        upright = image.convert("RGBA")
        canvas = Image.new("RGB", upright.size, "white")
        canvas.paste(upright, mask=upright.getchannel("A"))
    whole = np.asarray(canvas.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.abs(squashed.crop(photos / "c.png").numpy().astype(int) - whole).max() <= 2  # resized in steps
    assert EncoderInfo.from_json(info.to_json()) == info
    assert "squash" not in encoder.info.to_json()
    with pytest.raises(BadInput, match="a part of it; keep one"):
        Inputs(crop_fraction=0.9, squash=True)
