"""Decode only the part of a JPEG that a crop needs, with libturbojpeg 3 if it is installed. The pixels are the same.

The library is searched in the package `turbojpeg`, which contains it, and then in the system.
"""

import ctypes
import ctypes.util
import importlib.metadata
import threading

import numpy as np
from jaxtyping import UInt8

# The decoded box must begin at a multiple of the widest block. Chroma is smoothed over its edges, so it has this margin
# around the crop, or ends at the edge of the image.
BLOCK_PX, MARGIN_PX = 32, 16
_DECOMPRESS, _RGB = 1, 0


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "width", "height")]


def _load() -> ctypes.CDLL | None:
    try:
        files = importlib.metadata.files("turbojpeg") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    paths = [str(file.locate()) for file in files if file.name.startswith("libturbojpeg")]
    for path in (*paths, ctypes.util.find_library("turbojpeg")):
        try:
            library = ctypes.CDLL(path) if path else None
        except OSError:
            continue
        if library is not None and hasattr(library, "tj3SetCroppingRegion"):  # since version 3
            handle, data, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
            library.tj3Init.restype = handle
            library.tj3Destroy.argtypes = [handle]
            library.tj3DecompressHeader.argtypes = [handle, data, size]
            library.tj3SetCroppingRegion.argtypes = [handle, _Region]
            library.tj3Decompress8.argtypes = [handle, data, size, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
            return library
    return None


LIBRARY = _load()


class _Decoder(threading.local):
    """One decoder for each thread."""

    def __init__(self):
        assert LIBRARY is not None
        self.library, self.handle = LIBRARY, LIBRARY.tj3Init(_DECOMPRESS)

    def __del__(self):
        self.library.tj3Destroy(self.handle)


_decoder = _Decoder() if LIBRARY is not None else None


def box_of_jpeg(
    data: bytes, shape: tuple[int, int], box: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "height width 3"] | None:
    """Return the RGB pixels of a box of a JPEG in color or gray; None without the library or for a broken file.

    `shape` is (height, width) of the image; `box` is (top, left, height, width), inside the image.
    """
    # A truncated file may end below the crop; it must be reported all the same.
    if LIBRARY is None or _decoder is None or not data.endswith(b"\xff\xd9"):
        return None
    top, left, height, width = box
    first = max(0, left - MARGIN_PX) // BLOCK_PX * BLOCK_PX
    last = min(shape[1], left + width + MARGIN_PX)
    pixels = np.empty((height, last - first, 3), np.uint8)
    failed = (
        LIBRARY.tj3DecompressHeader(_decoder.handle, data, len(data))
        or LIBRARY.tj3SetCroppingRegion(_decoder.handle, _Region(first, top, last - first, height))
        or LIBRARY.tj3Decompress8(_decoder.handle, data, len(data), pixels.ctypes.data, 0, _RGB)
    )
    return None if failed else pixels[:, left - first : left - first + width]
