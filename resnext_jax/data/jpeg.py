"""Read the header of a JPEG file, and find damage that libjpeg only warns of.

libjpeg fills what is missing with one color and warns; Pillow does not pass the warnings on. libjpeg keeps the text of
the first warning alone, so whatever it may warn of before the image data is cut out first.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg

START, END = b"\xff\xd8", b"\xff\xd9"
_SCAN, _END_OF_IMAGE, _NO_LENGTH = 0xDA, 0xD9, (0x00, 0x01, *range(0xD0, 0xD9))
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_APPLICATION_AND_COMMENT = {*range(0xE0, 0xF0), 0xFE}
# Warnings that pixels are missing or wrong. Bytes before the end marker are none: ImageNet has such files.
_DAMAGE = re.compile(
    r"premature end|bad Huffman code|bad arithmetic code|instead of RST|Inconsistent progression"
    r"|extraneous bytes before marker 0x(?!d9)",
    re.IGNORECASE,
)


class Header(NamedTuple):
    """What the header of a JPEG says.

    Attributes:
      color_space: "YCbCr", "RGB", "Gray", "CMYK" or "YCCK".
      coefficient_bytes: size of the coefficients of the whole image, which libjpeg keeps if it has several scans.
    """

    height: int
    width: int
    color_space: str
    coefficient_bytes: int


def read_header(data: bytes) -> Header | None:
    """Return the header; None for another file, or one that TurboJPEG does not read."""
    if not data.startswith(START):
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # also for a warning
        return None
    return Header(height, width, color_space, coefficient_bytes(data))


def coefficient_bytes(data: bytes) -> int:
    """Return the size of the coefficients that libjpeg keeps in memory: 0 for one scan, and for other files."""
    if not data.startswith(START):
        return 0
    frame, sampling = 0, []
    for marker, start, end in _segments(data):
        if marker in _FRAMES:
            frame, fields = marker, data[start + 4 : end]
            height, width = int.from_bytes(fields[1:3]), int.from_bytes(fields[3:5])
            sampling = [(max(1, byte >> 4), max(1, byte & 15)) for byte in fields[7::3]]
        elif marker == _SCAN and sampling and (frame not in _SEQUENTIAL or data[start + 4] < len(sampling)):
            shares = sum(across * down for across, down in sampling)
            most = max(across for across, _ in sampling) * max(down for _, down in sampling)
            return 2 * height * width * shares // most  # 16 bits each
    return 0


def damage(data: bytes) -> str | None:
    """Return libjpeg's warning that image data is missing or damaged; None if there is none.

    It is also None for a file that TurboJPEG does not read, which is for Pillow to judge.
    """
    with contextlib.suppress(ValueError):
        data = _without_harmless_parts(data)
        color_space = simplejpeg.decode_jpeg_header(data)[2]
        try:
            simplejpeg.decode_jpeg(data, "CMYK" if color_space in ("CMYK", "YCCK") else "GRAY", True, True, 1, 1)
        except ValueError as error:
            return str(error) if _DAMAGE.search(str(error)) else None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of each segment up to the header of the first scan, as libjpeg finds them."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == 0xFF or marker in _NO_LENGTH:  # a fill byte, or bytes that do not belong there
            at += 1
            continue
        if marker == _END_OF_IMAGE:
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            return
        yield marker, at, end
        if marker == _SCAN:
            return
        at = end


def _without_harmless_parts(data: bytes) -> bytes:
    """Return the JPEG without bytes between segments, metadata, and limits of a scan that its process does not have."""
    parts, frame, end = [START], 0, len(data)
    for marker, start, end in _segments(data):
        frame = marker if marker in _FRAMES else frame
        if marker == _SCAN and frame in _SEQUENTIAL:
            parts.append(data[start : end - 3] + b"\x00\x3f\x00")
        elif marker not in _APPLICATION_AND_COMMENT:
            parts.append(data[start:end])
    return b"".join([*parts, data[end:]])
