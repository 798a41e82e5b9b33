"""Find damage in a PNG file that Pillow does not report: wrong checksums, and image data that ends early."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_ONE_PASS = ((0, 0, 1, 1),)
# Adam7: first column and row, and the distances between columns and between rows
_SEVEN_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_AT_ONCE_BYTES = 1 << 20


def damage(data: bytes) -> str | None:
    """Return what is damaged in a PNG whose header Pillow has read; None if nothing is.

    Like libpng, it ignores damage in chunks without which an image can be shown.
    """
    at, header, image_data = len(SIGNATURE), b"", []
    while (kind := data[at + 4 : at + 8]) != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if not kind or end + 4 > len(data):
            return "it ends before its last chunk"
        body = memoryview(data)[at + 8 : end]
        if kind[:1].isupper():  # the image needs it
            if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end : end + 4]):
                return f"the checksum of its chunk {kind!r} is wrong"
            if kind == b"IHDR":
                header = bytes(body)
            elif kind == b"IDAT":
                image_data.append(body)
        at = end + 4
    missing = _num_bytes(header) - _inflated(image_data)
    return f"{missing:,} bytes of its image data are missing" if missing > 0 else None


def _num_bytes(header: bytes) -> int:
    """Return the size of the image data that the header announces: rows of packed bits, each after a filter byte."""
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits, total = header[8] * _CHANNELS[header[9]], 0
    for left, top, across, down in _SEVEN_PASSES if header[12] else _ONE_PASS:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def _inflated(parts: list[memoryview]) -> int:
    """Return the size of the image data up to the end of its zlib stream; 0 if the stream has no end or is damaged."""
    stream, size = zlib.decompressobj(), 0
    try:
        for part in parts:
            rest = bytes(part)
            while rest and not stream.eof:
                size += len(stream.decompress(rest, _AT_ONCE_BYTES))
                rest = stream.unconsumed_tail
        while not stream.eof and (last := stream.decompress(b"", _AT_ONCE_BYTES)):
            size += len(last)
    except zlib.error:
        return 0
    return size if stream.eof else 0
