"""Scale images. Bicubic uses the compiled `_resize.c` if there is one, otherwise Pillow, with equal results."""

import ctypes
import importlib.machinery
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def _load() -> ctypes.CDLL | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = pathlib.Path(__file__).with_name(f"_resize{suffix}")
        if path.exists():
            library = ctypes.CDLL(str(path))
            image, sizes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int], [ctypes.c_int, ctypes.c_int]
            library.resnext_jax_resize.argtypes = [*image, ctypes.c_void_p, *sizes]
            return library
    return None


COMPILED = _load()
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def scale(
    image: UInt8[np.ndarray, "height width channel"], height: int, width: int, interpolation: str
) -> UInt8[np.ndarray, "new_height new_width channel"]:
    """Return a scaled image; converted weights need other FILTERS than `bicubic`."""
    if interpolation == "bicubic":
        return bicubic(image, height, width)
    return image if image.shape[:2] == (height, width) else _by_pillow(image, height, width, interpolation)


def bicubic(
    image: UInt8[np.ndarray, "height width channel"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width channel"]:
    """Return the image scaled by Pillow's bicubic: first every row to `width`, then every column to `height`.

    Pillow 13 begins with the columns if the height shrinks by much more than the width. That changes an eighth of the
    crops, in a sixth of their values, nearly all by one level. Here the order is the same with any version.

    Args:
      image: image, or a box of a larger image whose rows are contiguous in memory.
      height, width: size of the result.
    """
    rows, columns, channels = image.shape
    if (rows, columns) == (height, width):
        return image
    if COMPILED is None or channels != 3 or image.strides[1:] != (3, 1):
        return _by_pillow(image, height, width, "bicubic")
    result = np.empty((height, width, 3), np.uint8)
    sizes = (image.strides[0], rows, columns)
    if not COMPILED.resnext_jax_resize(image.ctypes.data, *sizes, result.ctypes.data, height, width):
        raise MemoryError(f"scaling {columns} x {rows} pixels to {width} x {height}")
    return result


def _by_pillow(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    (rows, _, channels), resample = image.shape, FILTERS[interpolation]
    pixels = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
    pixels = pixels.resize((width, rows), resample).resize((width, height), resample)
    return np.asarray(pixels).reshape(height, width, channels)
