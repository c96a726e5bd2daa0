"""Small image files of every kind, good and bad, written to disk as users have them, with the pixels they must give."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Maker = Callable[[Path], np.ndarray]
WIDTH, HEIGHT = 24, 16


def colours() -> np.ndarray:
    """A smooth picture with four distinct corners: uint8 (16, 24, 3)."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 10, y * 15, 255 - x * 5 - y * 8], axis=2).astype(np.uint8)


def gray() -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (x * 8 + y * 4).astype(np.uint8)


def as_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG put together by hand: Pillow cannot write 16-bit colour, nor headers of files that do not fit memory."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = _png_chunk(b"IHDR", head) + extra + _png_chunk(b"IDAT", zlib.compress(rows)) + _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


# -------------------------------------------------------------------------------------------------------- good files
def png(path: Path) -> np.ndarray:
    Image.fromarray(colours()).save(path, "PNG")
    return colours()


def jpeg(path: Path) -> np.ndarray:
    Image.fromarray(colours()).save(path, "JPEG", quality=97, subsampling=0)
    return colours()


def jpeg_gray(path: Path) -> np.ndarray:
    Image.fromarray(gray()).save(path, "JPEG", quality=97)
    return as_rgb(gray())


def jpeg_cmyk(path: Path) -> np.ndarray:
    Image.fromarray(colours()).convert("CMYK").save(path, "JPEG", quality=97, subsampling=0)
    return colours()


def jpeg_progressive(path: Path) -> np.ndarray:
    Image.fromarray(colours()).save(path, "JPEG", quality=97, subsampling=0, progressive=True)
    return colours()


def jpeg_two_pictures(path: Path) -> np.ndarray:
    """An MPO, as stereo cameras and phones write under the name .jpg."""
    first, second = Image.fromarray(colours()), Image.fromarray(255 - colours())
    first.save(path, "MPO", save_all=True, append_images=[second], quality=97, subsampling=0)
    return colours()


def webp(path: Path) -> np.ndarray:
    Image.fromarray(colours()).save(path, "WEBP", lossless=True)
    return colours()


def bmp(path: Path) -> np.ndarray:
    Image.fromarray(colours()).save(path, "BMP")
    return colours()


def tiff(path: Path) -> np.ndarray:
    Image.fromarray(colours()).save(path, "TIFF", compression="tiff_lzw")
    return colours()


def png_gray(path: Path) -> np.ndarray:
    Image.fromarray(gray()).save(path, "PNG")
    return as_rgb(gray())


def png_one_bit(path: Path) -> np.ndarray:
    bits = gray() > 90
    Image.fromarray(bits).save(path, "PNG")
    return as_rgb(bits.astype(np.uint8) * 255)


def png_palette(path: Path) -> np.ndarray:
    image = Image.fromarray(colours()).quantize(32)
    image.save(path, "PNG")
    return np.asarray(image.convert("RGB"))


def png_palette_transparent(path: Path) -> np.ndarray:
    """Palette entry 0 is fully, entry 1 half transparent: over white."""
    index = np.tile(np.arange(WIDTH) % 3, (HEIGHT, 1)).astype(np.uint8)
    palette = Image.new("P", (WIDTH, HEIGHT))
    palette.putdata(index.ravel().tolist())
    palette.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    palette.save(path, "PNG", transparency=bytes([0, 128, 255]))
    table = np.array([[255, 255, 255], [127, 177, 127], [0, 0, 50]], dtype=np.uint8)
    return table[index]


def png_rgba(path: Path) -> np.ndarray:
    """Opaque on the left, clear on the right: over white."""
    alpha = np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0).astype(np.uint8)
    pixels = np.dstack([colours(), np.tile(alpha, (HEIGHT, 1))])
    Image.fromarray(pixels).save(path, "PNG")
    return np.where(alpha[None, :, None] > 0, colours(), 255).astype(np.uint8)


def png_gray_alpha(path: Path) -> np.ndarray:
    alpha = np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([gray(), np.tile(alpha, (HEIGHT, 1))])).save(path, "PNG")
    return np.where(alpha[None, :, None] > 0, as_rgb(gray()), 255).astype(np.uint8)


def png_rgb_key(path: Path) -> np.ndarray:
    """RGB without alpha, where one colour stands for transparent."""
    pixels = colours()
    pixels[:, :5] = (1, 2, 3)
    Image.fromarray(pixels).save(path, "PNG", transparency=(1, 2, 3))
    pixels[:, :5] = 255
    return pixels


def png_gray_16(path: Path) -> np.ndarray:
    deep = gray().astype(np.uint16) * 257
    path.write_bytes(png_bytes(WIDTH, HEIGHT, 16, 0, _rows(deep.astype(">u2"))))
    return as_rgb(gray())


def png_gray_16_key(path: Path) -> np.ndarray:
    deep = gray().astype(np.uint16) * 257
    deep[:, :5] = 4242
    key = _png_chunk(b"tRNS", struct.pack(">H", 4242))
    path.write_bytes(png_bytes(WIDTH, HEIGHT, 16, 0, _rows(deep.astype(">u2")), key))
    expected = as_rgb(gray())
    expected[:, :5] = 255
    return expected


def png_rgb_16(path: Path) -> np.ndarray:
    path.write_bytes(png_bytes(WIDTH, HEIGHT, 16, 2, _rows((colours().astype(np.uint16) * 257).astype(">u2"))))
    return colours()


def tiff_gray_16(path: Path) -> np.ndarray:
    Image.fromarray(gray().astype(np.uint16) * 257).save(path, "TIFF")
    return as_rgb(gray())


def tiff_integer_32(path: Path) -> np.ndarray:
    Image.fromarray(gray().astype(np.int32) * 257).save(path, "TIFF")
    return as_rgb(gray())


def tiff_float(path: Path) -> np.ndarray:
    Image.fromarray(gray().astype(np.float32) / 255).save(path, "TIFF")
    return as_rgb(gray())


def tiff_cmyk(path: Path) -> np.ndarray:
    Image.fromarray(colours()).convert("CMYK").save(path, "TIFF")
    return colours()


def gif(path: Path) -> np.ndarray:
    """Animated; the first frame counts."""
    first = Image.fromarray(colours()).quantize(64)
    second = Image.fromarray(255 - colours()).quantize(64)
    first.save(path, "GIF", save_all=True, append_images=[second], duration=50)
    return np.asarray(first.convert("RGB"))


def webp_alpha(path: Path) -> np.ndarray:
    alpha = np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0).astype(np.uint8)
    pixels = np.dstack([colours(), np.tile(alpha, (HEIGHT, 1))])
    Image.fromarray(pixels).save(path, "WEBP", lossless=True, exact=True)
    return np.where(alpha[None, :, None] > 0, colours(), 255).astype(np.uint8)


GOOD: list[tuple[Maker, str, int]] = [
    (png, ".png", 0),
    (jpeg, ".jpg", 6),
    (jpeg_gray, ".jpeg", 3),
    (jpeg_cmyk, ".jpg", 6),
    (jpeg_progressive, ".JPG", 6),
    (jpeg_two_pictures, ".jpg", 6),
    (webp, ".webp", 0),
    (webp_alpha, ".webp", 0),
    (bmp, ".bmp", 0),
    (tiff, ".tif", 0),
    (tiff_gray_16, ".tiff", 0),
    (tiff_integer_32, ".tiff", 0),
    (tiff_float, ".tiff", 0),
    (tiff_cmyk, ".tif", 1),
    (gif, ".gif", 0),
    (png_gray, ".png", 0),
    (png_one_bit, ".png", 0),
    (png_palette, ".png", 0),
    (png_palette_transparent, ".png", 1),
    (png_rgba, ".png", 0),
    (png_gray_alpha, ".png", 0),
    (png_rgb_key, ".png", 0),
    (png_gray_16, ".png", 0),
    (png_gray_16_key, ".png", 0),
    (png_rgb_16, ".png", 0),
]
"""(maker, suffix, largest allowed difference of a pixel)."""


# --------------------------------------------------------------------------------------------------------- bad files
def truncated(maker: Maker, keep: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        maker(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep)])

    return write


def large_jpeg(path: Path) -> np.ndarray:
    """Big enough that half of it holds whole rows of pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG", quality=90)
    return noise


def bomb(width: int, height: int) -> Callable[[Path], None]:
    """A few hundred bytes that promise width x height pixels."""
    return lambda path: path.write_bytes(png_bytes(width, height, 8, 2, b"\0" * 1000)) and None


def broken_checksum(path: Path) -> None:
    png(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(bytes(data))


BAD: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("empty.jpg", lambda p: p.write_bytes(b""), "is empty (0 bytes)", "header"),
    ("text.png", lambda p: p.write_text("<html>404</html>"), "is no JPEG, PNG", "header"),
    (
        "program.jpg",
        lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "is no JPEG",
        "header",
    ),
    ("bomb.png", bomb(60_000, 60_000), "(more than the 89,478,485 pixels", "header"),
    ("small_bomb.png", bomb(10_000, 10_000), "10000 x 10000", "header"),
    ("head_only.jpg", truncated(jpeg, 0.03), "is truncated", "header"),
    ("half.jpg", truncated(large_jpeg, 0.5), "is truncated", "pixels"),
    ("half.png", truncated(png, 0.5), "is truncated", "pixels"),
    ("half.bmp", truncated(bmp, 0.5), "is truncated", "pixels"),
    ("head_only.gif", truncated(gif, 0.1), "its header is damaged", "header"),
    ("half.gif", truncated(gif, 0.3), "is truncated", "pixels"),
    ("half.webp", truncated(webp, 0.5), "is damaged", "header"),
    ("half.tif", truncated(tiff_gray_16, 0.5), "is truncated", "pixels"),
    ("half_packed.tif", truncated(tiff, 0.8), "its header is damaged", "header"),
    ("checksum.png", broken_checksum, "is damaged", "pixels"),
]
"""(name, writer, words of the reason, what finds it)."""
