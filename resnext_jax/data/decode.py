"""Decode an image file and crop it to the uint8 square that goes to the device.

The crops and their rounding are those of the original Torch code (fb.resnet.torch, datasets/transforms.lua); converted
weights are tested with TorchVision's rounding, which timm shares. Scaling is
Pillow's bicubic, which filters before it shrinks, as in later reproductions; Torch's sampled four points. Intact JPEGs
in color or gray are read by libjpeg-turbo (simplejpeg), with the same pixels as Pillow. Pillow reads all other files
and decides which are broken.
"""

import contextlib
import io
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from resnext_jax.data import jpeg, limits, partial, png, resize
from resnext_jax.errors import UserError

MIN_AREA_FRACTION = 0.08
MIN_ASPECT, MAX_ASPECT = 3 / 4, 4 / 3
NUM_TRIES = 10
# Formats of photographs; none that runs a program, such as EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_ROWS_OF_PIXELS = 1 << 20  # converted at once
TORCH7, TORCHVISION = "torch7", "torchvision"  # whose rounding an evaluation has


def decode(data: bytes, name: str, *, num_channels: int = 3) -> UInt8[np.ndarray, "height width channel"]:
    """Return the pixels of an image file as Torch's `image` package does, whatever its suffix is.

    Gray becomes RGB; transparency is dropped; 16 bits become their upper 8. A CMYK JPEG becomes its first three
    channels as stored (Adobe's programs invert them, so they look like RGB without black). EXIF orientation is ignored.

    Args:
      name: name of the image in messages.
      num_channels: 3, or 1 for a data set of gray images.

    Raises:
      UserError: truncated, broken, damaged, not an image, too large or too elongated (`limits`), or with values of
        32 bits.
    """
    if num_channels == 3 and (pixels := _plain_jpeg(data)) is not None:
        return pixels
    with _opened(data, name) as image:
        _load(image, data)
        pixels = np.empty((image.height, image.width, num_channels), np.uint8)
        rows = max(1, _ROWS_OF_PIXELS // image.width)
        for top in range(0, image.height, rows):  # a copy of the whole would be large
            bottom = min(top + rows, image.height)
            part = image if rows >= image.height else image.crop((0, top, image.width, bottom))
            pixels[top:bottom] = _eight_bits(part, image, num_channels).reshape(bottom - top, image.width, num_channels)
        return pixels


def _load(image: Image.Image, data: bytes) -> None:
    """Decodes the pixels; raises ValueError for damage that Pillow does not report."""
    if damage := jpeg.damage(data) if data.startswith(jpeg.START) else None:
        raise ValueError(damage)
    image.load()
    if damage := png.damage(data) if image.format == "PNG" else None:
        raise ValueError(damage)


def _eight_bits(part: Image.Image, whole: Image.Image, num_channels: int) -> np.ndarray:
    """Return some rows of an image as RGB or gray."""
    if part.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        values, bits = np.asarray(part), 16
        if isinstance(whole, TiffImageFile):
            bits = whole.tag_v2.get(BITSPERSAMPLE, (16,))[0]
            if whole.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:  # zero is white
                values = (1 << bits) - 1 - values
        part = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    elif part.mode == "P":
        part = part.convert("RGBA")  # its transparency may be a table, which RGB cannot take
    elif part.mode == "CMYK" and whole.format == "JPEG" and num_channels == 3:
        # Pillow assumes that every CMYK JPEG is Adobe's, and has inverted the channels.
        part = ImageChops.invert(Image.merge("RGB", part.split()[:3]))
    return np.asarray(part.convert("RGB" if num_channels == 3 else "L"))


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """Return the pixels of an intact JPEG in color or gray, in 3/4 of Pillow's time; None for other files."""
    with contextlib.suppress(ValueError):  # includes warnings of libjpeg
        return None if _plain_shape(data) is None else simplejpeg.decode_jpeg(data)


def _plain_shape(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG in color or gray of an allowed size; None for other files."""
    header = jpeg.read_header(data)
    if header is None or header.color_space not in ("YCbCr", "RGB", "Gray"):
        return None
    height, width = header.height, header.width
    needed = limits.OUTPUT_BYTES * height * width + header.coefficient_bytes
    return None if limits.refusal(height, width, needed) else (height, width)


def check(data: bytes, name: str) -> None:
    """Raises the errors of `decode` in less time: a JPEG is decoded at an eighth of its size."""
    if _plain_shape(data) is not None:
        with contextlib.suppress(ValueError):  # for Pillow to judge
            simplejpeg.decode_jpeg(data, "GRAY", True, True, 1, 1)
            return
    with _opened(data, name) as image:
        image.draft("L", (1, 1))
        _load(image, data)


def size(data: bytes, name: str) -> tuple[int, int]:
    """Return height and width of an image file; raises UserError if its header cannot be read."""
    if (shape := _plain_shape(data)) is not None:
        return shape
    with _opened(data, name) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """Yields the image; every error becomes a `UserError`."""
    try:
        if refusal := limits.webp_refusal(data):
            raise ValueError(refusal)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if refusal := limits.refusal_of(image, jpeg.coefficient_bytes(data)):
                raise ValueError(refusal)
            yield image
    except Exception as error:  # a broken file can raise almost anything in Pillow
        # Pillow would print the buffer in memory.
        reason = f"it begins with {data[:8]!r}" if isinstance(error, UnidentifiedImageError) else error or type(error)
        raise UserError(
            f"{name} is not a readable image ({len(data):,} bytes: {reason}). "
            "Images are JPEG or PNG files; replace or remove this one."
        ) from None


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "height width 3"]:
    """Return the RGB pixels of an image file; raises UserError if it cannot be read, or is no image."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}. Give the path of a JPEG or PNG file.") from None
    return decode(data, str(path))


def sample_crop_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """Return a random (top, left, height, width) inside an image, or None if none of ten draws fits.

    The fraction of the area is uniform in [0.08, 1] and the aspect ratio uniform in [3/4, 4/3]. Width and height are
    swapped with probability 1/2.
    """
    for _ in range(NUM_TRIES):
        area = rng.uniform(MIN_AREA_FRACTION, 1.0) * height * width
        aspect = rng.uniform(MIN_ASPECT, MAX_ASPECT)
        # At least 1, for images of a few pixels.
        crop_width = max(1, math.floor(math.sqrt(area * aspect) + 0.5))
        crop_height = max(1, math.floor(math.sqrt(area / aspect) + 0.5))
        if rng.random() < 0.5:
            crop_width, crop_height = crop_height, crop_width
        if crop_height <= height and crop_width <= width:
            top = int(rng.integers(0, height - crop_height, endpoint=True))
            left = int(rng.integers(0, width - crop_width, endpoint=True))
            return top, left, crop_height, crop_width
    return None


def random_sized_crop(
    image: UInt8[np.ndarray, "height width channel"], size_px: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size_px size_px channel"]:
    """Return a random box of the image (`sample_crop_box`), resized to a square; the center crop if there is none."""
    box = sample_crop_box(image.shape[0], image.shape[1], rng)
    if box is None:
        return center_crop(image, size_px, size_px)
    top, left, height, width = box
    return resize.bicubic(image[top : top + height, left : left + width], size_px, size_px)


def read_random_sized_crop(
    data: bytes, name: str, size_px: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size_px size_px 3"]:
    """Return `random_sized_crop(decode(data, name), size_px, rng)`; decodes only the crop if possible.

    Raises:
      UserError: as `decode`; a JPEG that is broken below the crop raises only if its end is missing.
    """
    shape = _plain_shape(data)
    if shape is None:
        return random_sized_crop(decode(data, name), size_px, rng)
    box = sample_crop_box(*shape, rng)
    if box is None:
        return center_crop(decode(data, name), size_px, size_px)
    pixels = partial.box_of_jpeg(data, shape, box)
    if pixels is None:
        top, left, height, width = box
        pixels = decode(data, name)[top : top + height, left : left + width]
    return resize.bicubic(pixels, size_px, size_px)


def rounding_of(description: dict[str, Any]) -> str:
    """Return whose rounding belongs to the weights of a checkpoint.

    Args:
      description: JSON item of the checkpoint; that of converted weights has their `source`.
    """
    return TORCHVISION if description.get("source", {}).get("format") in ("torchvision", "timm") else TORCH7


def center_crop(
    image: UInt8[np.ndarray, "height width channel"],
    size_px: int,
    resize_px: int,
    interpolation: str = "bicubic",
    rounding: str = TORCH7,
) -> UInt8[np.ndarray, "size_px size_px channel"]:
    """Return the central square after `scale_short_side` to `resize_px`, which is at least `size_px`."""
    return central(scale_short_side(image, resize_px, interpolation, rounding), size_px, size_px, rounding)


def scale_short_side(
    image: UInt8[np.ndarray, "height width channel"], short_px: int, interpolation: str, rounding: str = TORCH7
) -> UInt8[np.ndarray, "new_height new_width channel"]:
    """Return the image with the short side resized to `short_px` by one of `resize.FILTERS`; the long rounds down."""
    short, long = sorted(image.shape[:2])
    # Of 319 x 341 px with a short side of 232 px these are 247 and 248.
    long_px = int(long / short * short_px) if rounding == TORCH7 else int(short_px * long / short)
    height, width = (long_px, short_px) if image.shape[1] < image.shape[0] else (short_px, long_px)
    return resize.scale(image, height, width, interpolation)


def central(
    image: UInt8[np.ndarray, "height width channel"], height: int, width: int, rounding: str = TORCH7
) -> UInt8[np.ndarray, "new_height new_width channel"]:
    """Return the center of an image; of an odd margin Torch7 has the extra pixel at the top and the left.

    TorchVision rounds half a pixel to the nearest even number.
    """
    half = math.ceil if rounding == TORCH7 else round
    top, left = half((image.shape[0] - height) / 2), half((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]
