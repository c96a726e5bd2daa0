import os
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import PIL
import pytest
from image_files import BAD, GOOD, HEIGHT, WIDTH, colours, jpeg, png, png_gray_16_key, png_rgba
from PIL import Image

from sogclr.data import boxes, images
from sogclr.errors import BadImage, BadInput


@pytest.mark.parametrize(("maker", "suffix", "tolerance"), GOOD, ids=[m.__name__ for m, _, _ in GOOD])
def test_every_kind_gives_its_known_pixels(maker, suffix, tolerance, tmp_path):
    path = tmp_path / f"image{suffix}"
    expected = maker(path)
    image = images.decode(path)
    assert image.mode == "RGB"
    difference = np.abs(np.asarray(image).astype(int) - expected.astype(int))
    assert difference.max() <= tolerance
    header = images.read_header(path)
    assert (header.width, header.height) == (WIDTH, HEIGHT) == image.size
    assert images.name_mismatch(header.format, str(path)) is None


@pytest.mark.parametrize(("name", "write", "reason", "found_by"), BAD, ids=[name for name, *_ in BAD])
def test_every_bad_kind_is_named_and_never_a_picture(name, write, reason, found_by, tmp_path):
    path = tmp_path / name
    write(path)
    if name.endswith(".tif") and int(PIL.__version__.split(".")[0]) < 13:
        reason = ""  # older Pillows say it of a cut TIFF in other words
    with pytest.raises(BadImage, match=re.escape(reason) or None) as caught:
        images.decode(path)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)
    if found_by == "header":
        with pytest.raises(BadImage):
            images.read_header(path)
    else:
        images.read_header(path)


def test_a_missing_file_and_a_folder_are_bad_images(tmp_path):
    with pytest.raises(BadImage, match="no longer exists"):
        images.decode(tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match="is a folder"):
        images.decode(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_puts_the_picture_upright(orientation, kind, tmp_path):
    """The eight stored forms of one picture, made by plain array turns, decode to that picture."""
    upright = colours()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{kind.lower()}"
    options = {"JPEG": {"quality": 97, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(path, kind, exif=exif, **options)
    header, image = images.read_header(path), images.decode(path)
    assert image.size == (header.width, header.height) == (WIDTH, HEIGHT)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= (6 if kind == "JPEG" else 0)


def test_damaged_metadata_does_not_make_the_pixels_unusable(tmp_path):
    path = tmp_path / "odd.jpg"
    Image.fromarray(colours()).save(path, quality=97, subsampling=0, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert np.abs(np.asarray(images.decode(path)).astype(int) - colours()).max() <= 6


@pytest.mark.parametrize(("background", "value"), [("black", (0, 0, 0)), ("#102030", (16, 32, 48))])
@pytest.mark.parametrize(("maker", "clear"), [(png_rgba, slice(WIDTH // 2, None)), (png_gray_16_key, slice(0, 5))])
def test_transparency_is_laid_on_the_background(background, value, maker, clear, tmp_path):
    expected = maker(tmp_path / "clear.png")
    expected[:, clear] = value
    np.testing.assert_array_equal(np.asarray(images.decode(tmp_path / "clear.png", background=background)), expected)


def test_a_background_that_is_no_colour_is_bad_input(tmp_path):
    png(tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"'whit' is no colour; give a name like white or black, or #rrggbb"):
        images.decode(tmp_path / "a.png", background="whit")


@pytest.mark.parametrize(("low", "high"), [(-500, 70_000), (0, 1_000_000)])
def test_integers_without_a_standard_range_are_stretched(low, high, tmp_path):
    values = np.linspace(low, high, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    got = np.asarray(images.decode(tmp_path / "deep.tiff"))[:, :, 0]
    np.testing.assert_array_equal(got, np.rint((values - low) / (high - low) * 255).astype(np.uint8))


def test_floats_that_are_not_finite_are_bad(tmp_path):
    values = np.full((HEIGHT, WIDTH), np.nan, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "nan.tiff")
    with pytest.raises(BadImage, match="not finite"):
        images.decode(tmp_path / "nan.tiff")


@pytest.mark.parametrize("at_least", [1, 33, 64, 100, 128, 257, 400])
def test_a_jpeg_is_decoded_smaller_but_never_too_small(at_least, tmp_path):
    Image.fromarray(np.zeros((257, 515, 3), np.uint8)).save(tmp_path / "big.jpg")
    image = images.decode(tmp_path / "big.jpg", at_least=at_least)
    assert min(image.size) >= min(at_least, 257)
    assert min(image.size) < 2 * max(at_least, 33) or image.size == (515, 257)
    if at_least == 400:
        assert image.size == (515, 257)
    if at_least == 64:
        assert image.size == (129, 65)


def test_every_shrink_stays_within_what_is_allowed(tmp_path):
    for width, height in ((9, 9), (17, 300), (64, 65)):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "a.jpg")
        for largest in range(1, 20):
            with images.opened(tmp_path / "a.jpg") as file:
                pixels = file.pixels(largest_shrink=largest)
            assert width / pixels.width <= largest
            assert height / pixels.height <= largest


def test_only_jpeg_is_decoded_smaller(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    assert images.decode(tmp_path / "a.png", at_least=8).size == (64, 64)


def test_central_crop_takes_the_middle_square():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200
    got = boxes.central_crop(Image.fromarray(pixels), 20, 1.0)
    np.testing.assert_array_equal(got, np.full((20, 20, 3), 200))
    half = boxes.central_crop(Image.fromarray(pixels), 20, 0.5)
    assert half.shape == (20, 20, 3)
    assert half.dtype == np.uint8
    assert (half == 200).all()


def test_reducing_keeps_the_mean():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    small = boxes.central_crop(Image.fromarray(pixels), 16)
    assert np.abs(small.astype(float).mean((0, 1)) - pixels.mean((0, 1))).max() < 1.0
    assert small.std() < 12  # antialiased: picking single pixels of noise would leave 74


def test_no_warning_leaks_and_the_filters_survive_threads(tmp_path):
    """Pillow warns of both of these files; here warnings are errors, in eight threads at once."""
    from image_files import bomb

    bomb(10_000, 10_000)(tmp_path / "bomb.png")
    jpeg(tmp_path / "a.jpg")
    before = list(warnings.filters)
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                images.decode(tmp_path / "a.jpg")
                with pytest.raises(BadImage, match="too large"):
                    images.read_header(tmp_path / "bomb.png")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("format", "name", "noted"),
    [
        ("PNG", "a.jpg", True),
        ("PNG", "a.PNG", False),
        ("JPEG", "a.jpeg", False),
        ("GIF", "a.png", True),
        ("JPEG", "a", False),
    ],
)
def test_a_name_that_promises_another_format_is_noted(format, name, noted):
    assert (images.name_mismatch(format, name) is not None) is noted


def test_wrongly_named_files_are_read_by_content(tmp_path):
    expected = png(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "a.jpg")
    np.testing.assert_array_equal(np.asarray(images.decode(Path(tmp_path / "a.jpg"))), expected)
