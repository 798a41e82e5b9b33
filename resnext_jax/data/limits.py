"""Which images are not decoded, by their headers: those that would take too much memory, and those without a scale.

A file of some kilobytes may announce millions of pixels, and each thread decodes an image of its own.
"""

from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

# What decoding one image may allocate, its output included: 256 MiB, or a JPEG in color of 89 million pixels.
MAX_DECODE_BYTES = 1 << 28
# Long side divided by short side. At a short side of up to 640 px no scaled image has more pixels than that JPEG.
MAX_ELONGATION = 200
OUTPUT_BYTES = 3  # of a pixel
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # of a pixel in Pillow; 4 in all other modes
# Of a pixel, besides: in decoders of Pillow that are written in Python, and in the canvases of libwebp.
_COLLECTED_BYTES = {"BMP": 4, "PPM": 8, "WEBP": 14}


def refusal(height: int, width: int, num_bytes: int) -> str | None:
    """Return why an image is not decoded that takes so many bytes in all; None if it is."""
    if max(height, width) > MAX_ELONGATION * min(height, width):
        return f"{width} x {height} pixels, where one side may be at most {MAX_ELONGATION} times as long as the other"
    if num_bytes > MAX_DECODE_BYTES:
        return f"{width} x {height} pixels, which take {num_bytes:,} bytes to decode; at most {MAX_DECODE_BYTES:,} may"
    return None


def webp_refusal(data: bytes) -> str | None:
    """Return why a WebP file is not opened, by its first chunk: libwebp allocates its canvases when it opens one."""
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else b""
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(data[start : start + 2], "little") & 0x3FFF for start in (26, 28))
    else:
        return None  # Pillow refuses it
    return refusal(height, width, (4 + _COLLECTED_BYTES["WEBP"]) * height * width)


def refusal_of(image: Image.Image, coefficient_bytes: int) -> str | None:
    """Return why an image that Pillow has opened is not decoded; None if it is.

    Args:
      coefficient_bytes: what libjpeg needs beside the pixels (`jpeg.coefficient_bytes`).
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        return "its values have 32 bits or a sign, so it does not say which of them is white; save it with 8 or 16 bits"
    collected = _COLLECTED_BYTES.get(image.format or "", 0)
    if isinstance(image, TiffImageFile):  # of a strip, which may be the whole image
        collected = -(-sum(image.tag_v2.get(BITSPERSAMPLE, (1,))) // 8)
    # The output is allocated when what was collected is no longer needed.
    pixel_bytes = _STORED_BYTES.get(image.mode[:4], 4) + max(OUTPUT_BYTES, collected)
    return refusal(image.height, image.width, pixel_bytes * image.height * image.width + coefficient_bytes)
