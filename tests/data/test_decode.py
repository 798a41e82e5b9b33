"""decode.py against Pillow-written files, the crop's definition, and PyTorch's bicubic."""

import io
import pathlib
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import decode, partial
from resnext_jax.errors import UserError
from tests.data.archives import PHOTOS, png


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


class FixedDraws(np.random.Generator):
    """An rng that returns what the test wrote down, and records the ranges that it was asked for."""

    def __new__(cls, *draws):
        return super().__new__(cls, np.random.PCG64(0))  # pyright: ignore[reportCallIssue]

    def __init__(self, *draws):
        super().__init__(np.random.PCG64(0))
        self.draws, self.asked = list(draws), []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.draws.pop(0)

    def random(self):
        return self.draws.pop(0)

    def integers(self, low, high, endpoint):
        assert endpoint
        self.asked.append((low, high))
        return self.draws.pop(0)


# ---- decode


def test_photographs_survive_a_jpeg_round_trip():
    for photo in PHOTOS:
        decoded = decode.decode(encoded(Image.fromarray(photo), "JPEG", quality=95), "photo")
        assert decoded.shape == (427, 640, 3)
        assert decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - photo).mean() < 2.5


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(decode.decode(data, mode), np.repeat(grey[..., None], 3, axis=2))


def test_palette_with_a_table_of_transparencies():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    decoded = decode.decode(encoded(image, "PNG", transparency=bytes([0, 128])), "palette")
    np.testing.assert_array_equal(decoded, [[[10, 20, 30], [40, 50, 60]]])


def test_one_channel_stays_one():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    decoded = decode.decode(encoded(Image.fromarray(grey), "PNG"), "grey", num_channels=1)
    np.testing.assert_array_equal(decoded, grey[..., None])


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn right to look at it"
    photo = Image.fromarray(PHOTOS[0])
    plain, turned = encoded(photo, "JPEG"), encoded(photo, "JPEG", exif=exif)
    assert decode.decode(turned, "turned").shape == (427, 640, 3)
    np.testing.assert_array_equal(decode.decode(turned, "turned"), decode.decode(plain, "plain"))


def libjpeg_channels(data: bytes) -> np.ndarray:
    """What libjpeg itself gives for a CMYK JPEG: the stored channels, before Pillow turns Adobe's round."""
    with Image.open(io.BytesIO(data)) as image:
        image.tile = [tile._replace(args=("CMYK", *tile.args[1:])) for tile in image.tile]
        return np.asarray(image)


def test_cmyk_jpegs_are_read_as_torch_read_them():
    """Torch's image package took the first three of libjpeg's four channels."""
    cmyk = Image.fromarray(PHOTOS[1]).convert("CMYK")
    adobe = encoded(cmyk, "JPEG", quality=95)
    assert Image.open(io.BytesIO(adobe)).info["adobe"] == 100
    stored = libjpeg_channels(adobe)
    np.testing.assert_array_equal(decode.decode(adobe, "adobe"), stored[..., :3])
    # Pillow makes CMYK without black, so that the stored, inverted channels are the photograph
    assert np.abs(decode.decode(adobe, "adobe").astype(int) - PHOTOS[1]).mean() < 4
    # black 0: one that is stored inverted as 255. With black, the other channels stay what they are.
    dark = Image.merge("CMYK", (*cmyk.split()[:3], Image.new("L", cmyk.size, 200)))
    assert np.abs(decode.decode(encoded(dark, "JPEG", quality=95), "dark").astype(int) - PHOTOS[1]).mean() < 4
    # the same without Adobe's marker (FFEE): libjpeg inverts nothing, and Pillow inverts whatever is CMYK
    marker = adobe.index(b"\xff\xee\x00\x0eAdobe")
    plain = adobe[:marker] + adobe[marker + 16 :]
    np.testing.assert_array_equal(decode.decode(plain, "plain"), stored[..., :3])


def test_a_png_by_the_name_of_jpeg():
    # ImageNet's n02105855_2933.JPEG is one
    pixels = PHOTOS[0][:9, :8]
    np.testing.assert_array_equal(decode.decode(encoded(Image.fromarray(pixels), "PNG"), "n02105855_2933.JPEG"), pixels)


def test_16_bits_of_colour_and_of_grey_keep_the_upper_8():
    """A PNG with 16 bits per channel, written by hand: Pillow writes none in colour."""
    values = np.array([[[0, 255, 256], [257, 511, 65_535]]], ">u2")
    for colour_type, row in ((2, values), (0, values.reshape(1, 6))):
        data = png(row.shape[1], 1, (b"IDAT", zlib.compress(b"\0" + row.tobytes())), bits=16, colour_type=colour_type)
        found = decode.decode(data, "16 bits", num_channels=3 if colour_type else 1)
        assert found.ravel().tolist() == [0, 0, 1, 1, 1, 255]


JPEG_KINDS = {
    "colour": ("RGB", {}),
    "grey": ("L", {}),
    "without subsampling": ("RGB", {"subsampling": "4:4:4"}),
    "subsampled across": ("RGB", {"subsampling": "4:2:2"}),
    "progressive": ("RGB", {"progressive": True}),
    "stored as RGB": ("RGB", {"keep_rgb": True}),
    "stored as CMYK": ("CMYK", {}),
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_jpegs_have_the_same_pixels_read_directly_and_by_pillow(kind):
    mode, options = JPEG_KINDS[kind]
    for photo in (PHOTOS[0], PHOTOS[1][:33, :47]):
        data = encoded(Image.fromarray(photo).convert(mode), "JPEG", **options)
        ours = decode.decode(data, "photo")
        assert (decode._plain_jpeg(data) is None) == (mode == "CMYK")
        if mode != "CMYK":
            np.testing.assert_array_equal(ours, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_what_is_not_flawless_is_for_pillow_to_judge(monkeypatch):
    """Bits flipped and ends cut: the same pixels, or the same refusal, as without the direct way."""
    rng, refused = np.random.default_rng(1), 0
    whole = [
        encoded(Image.fromarray(photo[:60, :80]).convert(mode), "JPEG") for photo in PHOTOS for mode in ("L", "RGB")
    ]
    direct = decode._plain_jpeg
    for case in range(120):
        data = bytearray(whole[case % len(whole)])
        if case % 3:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            data = data[: rng.integers(len(data) // 2, len(data) + 1)]
        found = []
        for way in (direct, lambda data: None):
            monkeypatch.setattr(decode, "_plain_jpeg", way)
            try:
                found.append(decode.decode(bytes(data), "photo"))
            except UserError as error:
                found.append(str(error))
        np.testing.assert_equal(*found)
        refused += isinstance(found[0], str)
    assert 20 < refused < 100


JPEG = encoded(Image.fromarray(PHOTOS[0]), "JPEG")
PNG = encoded(Image.fromarray(PHOTOS[0][:40, :40]), "PNG")


BROKEN = {
    "empty": b"",
    "text": b"not an image",
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "JPEG header": JPEG[:30],
    "half a PNG": PNG[: len(PNG) // 2],
    "decompression bomb": png(60_000, 60_000, bits=8, colour_type=2),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_named(data):
    for read in (decode.decode, decode.check):
        with pytest.raises(UserError, match=r"class/broken\.jpg is not a readable image"):
            read(data, "class/broken.jpg")


def small_jpeg(**options) -> bytes:
    """133 rows, as of a thumbnail."""
    return encoded(Image.fromarray(PHOTOS[0][:133, :200]), "JPEG", quality=90, **options)


PLAIN, MIDDLE = small_jpeg(), len(small_jpeg()) // 2
DAMAGED = {
    **{f"{percent} % and an end": PLAIN[: len(PLAIN) * percent // 100] + b"\xff\xd9" for percent in (60, 30, 10)},
    "40 bytes of another scan": PLAIN[:MIDDLE] + b"\xff\xd8" * 20 + PLAIN[MIDDLE + 40 :],
    "an end in the middle": PLAIN[:MIDDLE] + b"\xff\xd9" + PLAIN[MIDDLE + 2 :],
    "progressive": small_jpeg(progressive=True)[:2500] + b"\xff\xd9",
    "gray": encoded(Image.fromarray(PHOTOS[0]).convert("L"), "JPEG")[:20_000] + b"\xff\xd9",
    "CMYK": encoded(Image.fromarray(PHOTOS[0]).convert("CMYK"), "JPEG")[:20_000] + b"\xff\xd9",
    # 0 where a row begins anew
    "a lost restart marker": small_jpeg(restart_marker_rows=1).replace(b"\xff\xd3", b"\0\0"),
    # whatever is harmless comes first
    "behind an unknown revision": PLAIN[:MIDDLE].replace(b"JFIF\0\1", b"JFIF\0\3") + b"\xff\xd9",
    "behind zeros between segments": PLAIN[:20] + bytes(3) + PLAIN[20:MIDDLE] + b"\xff\xd9",
}


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("library", ["with", "without"])
@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_jpeg_is_refused_however_it_is_read(data, library, num_channels, monkeypatch):
    if library == "without":
        monkeypatch.setattr(partial, "LIBRARY", None)
    monkeypatch.setattr(decode, "sample_crop_box", lambda height, width, _: (1, 2, height - 1, width - 2))
    crop = lambda data, name: decode.read_random_sized_crop(data, name, 16, np.random.default_rng(0))  # noqa: E731
    for read in (lambda data, name: decode.decode(data, name, num_channels=num_channels), decode.check, crop):
        with pytest.raises(UserError, match="damaged is not a readable image"):
            read(data, "damaged")


HARMLESS = {
    "bytes before the end": PLAIN[:-2] + b"1234" + b"\xff\xd9",
    "zeros between segments": PLAIN[:20] + bytes(3) + PLAIN[20:],
    "an unknown revision": PLAIN.replace(b"JFIF\0\1", b"JFIF\0\3"),
    "an unknown transform": small_jpeg(keep_rgb=True).replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\7"),
    "no limits of a scan": PLAIN.replace(
        b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0", b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\0\0"
    ),
    "bytes after the end": PLAIN + b"\0" * 100,
    "broken EXIF": PLAIN[:2] + b"\xff\xe1\0\x0eExif\0\0II*\0\xff\xff" + PLAIN[2:],
}


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS)
def test_a_jpeg_with_a_harmless_flaw_is_read(data):
    """ImageNet has such files. The pixels are Pillow's, which reads them all."""
    assert data != PLAIN
    decode.check(data, "flawed")
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(data, "flawed"), whole)
    crop = decode.read_random_sized_crop(data, "flawed", 16, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, decode.random_sized_crop(whole, 16, np.random.default_rng(0)))


ROWS = b"".join(b"\0" + row.tobytes() for row in PHOTOS[0][:60, :80])
PACKED = zlib.compress(ROWS)
SHORT = zlib.compress(ROWS[: len(ROWS) // 2])
DAMAGED_PNG = {
    "fewer rows": png(80, 60, (b"IDAT", SHORT), bits=8, colour_type=2),
    "fewer rows, interlaced": png(80, 60, (b"IDAT", SHORT), bits=8, colour_type=2, interlaced=True),
    "no end of its data": png(80, 60, (b"IDAT", PACKED[:-4]), bits=8, colour_type=2),
    "no last chunk": png(80, 60, (b"IDAT", PACKED), bits=8, colour_type=2)[:-12],
    "another checksum": png(80, 60, (b"IDAT", PACKED), bits=8, colour_type=2).replace(
        PACKED[-4:], PACKED[-4:] + b"\1", 1
    )[:-1],
    "a flipped bit of the palette": png(
        8, 8, (b"PLTE", bytes(6)), (b"IDAT", zlib.compress(bytes(16))), colour_type=3
    ).replace(b"PLTE" + bytes(6), b"PLTE" + b"\x80" + bytes(5)),
}


@pytest.mark.parametrize("data", DAMAGED_PNG.values(), ids=DAMAGED_PNG)
def test_a_damaged_png_is_refused(data):
    for read in (decode.decode, decode.check):
        with pytest.raises(UserError, match="damaged is not a readable image"):
            read(data, "damaged")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "colour_type"), [(1, 0), (2, 3), (4, 0), (8, 2), (8, 4), (16, 0), (16, 2), (16, 6)])
def test_an_intact_png_of_every_kind_is_read(bits, colour_type, interlaced):
    """All zeros, 13 x 7 px; the size of interlaced data from the seven passes of the PNG specification, by hand."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    # columns x rows of each pass
    passes = [(2, 1), (2, 1), (4, 1), (3, 2), (7, 2), (6, 4), (13, 3)] if interlaced else [(13, 7)]
    rows = bytes(sum(down * (1 + -(-across * channels * bits // 8)) for across, down in passes))
    extra = [(b"PLTE", bytes(12))] if colour_type == 3 else []
    chunks = (*extra, (b"IDAT", zlib.compress(rows)[:9]), (b"IDAT", zlib.compress(rows)[9:]))
    data = png(13, 7, *chunks, bits=bits, colour_type=colour_type, interlaced=interlaced)
    decode.check(data, "zeros")
    np.testing.assert_array_equal(decode.decode(data, "zeros"), np.zeros((7, 13, 3), np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, np.int16])
def test_values_without_a_scale_are_refused(dtype):
    """They became one color: Pillow clips them at 255."""
    ramp = np.arange(256).reshape(16, 16).astype(dtype)
    image = Image.fromarray(ramp.astype(np.int32) if dtype in (np.uint32, np.int16) else ramp)
    data = encoded(image, "TIFF")
    if dtype in (np.uint32, np.int16):  # Pillow reads them, but does not write them: SampleFormat is tag 339
        bits, kind = (32, 1) if dtype == np.uint32 else (16, 2)
        data = tiff(ramp, bits, kind)
    for read in (decode.decode, decode.check, decode.size):
        with pytest.raises(UserError, match="8 or 16 bits"):
            read(data, "X-ray")


def tiff(values: np.ndarray, bits: int, sample_format: int = 1, photometric: int = 1) -> bytes:
    """A gray TIFF, written by hand."""
    pixels = values.tobytes()
    tags = {256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: values.shape[0], 279: len(pixels), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("number", [0, 256, 0x1234, 65_535])
def test_gray_values_of_16_bits_keep_the_upper_8(number):
    values = np.full((2, 2), number, "<u2")
    files = {
        "TIFF": encoded(Image.fromarray(values), "TIFF"),
        "TIFF, zero is white": tiff(65_535 - values, 16, photometric=0),
        "PGM": b"P5 2 2 65535\n" + values.astype(">u2").tobytes(),
        "PNG": encoded(Image.fromarray(values), "PNG"),
    }
    for name, data in files.items():
        np.testing.assert_array_equal(decode.decode(data, name), np.full((2, 2, 3), number >> 8), err_msg=name)


def test_200_corrupted_images_are_read_or_named():
    """Cut anywhere, bits flipped anywhere, other beginnings, other sizes in the header: no other error, no hang."""
    rng = np.random.default_rng(0)
    small = [encoded(Image.fromarray(photo[:60, :80]), kind) for photo in PHOTOS for kind in ("JPEG", "PNG", "GIF")]
    named = 0
    for case in range(200):
        data = bytearray(small[case % len(small)])
        if case % 4 == 0:
            data = data[: rng.integers(len(data))]
        elif case % 4 == 1:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif case % 4 == 2:
            data[2 : rng.integers(3, 200)] = rng.bytes(100)
        else:
            data[rng.integers(min(200, len(data)))] = 255
        for read in (decode.decode, decode.check):
            try:
                read(bytes(data), f"case {case}")
            except UserError as error:
                named += str(error).startswith(f"case {case} is not a readable image")
    assert named > 100
    for photo in PHOTOS:  # a check passes what is whole
        decode.check(encoded(Image.fromarray(photo), "JPEG"), "whole")


def test_read_image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PHOTOS[0][:5, :7]).save(path)
    np.testing.assert_array_equal(decode.read_image(path), PHOTOS[0][:5, :7])
    with pytest.raises(UserError, match=r"absent.png could not be read: No such file"):
        decode.read_image(tmp_path / "absent.png")
    with pytest.raises(UserError, match="could not be read"):
        decode.read_image(tmp_path)
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"text.jpg is not a readable image"):
        decode.read_image(tmp_path / "text.jpg")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_images_are_at_most_200_times_as_long_as_wide(file_format):
    """Bicubic to a short side of 640 px makes 640 * 640 * 200 pixels of such a one, 82 million."""
    for shape in ((2, 400), (400, 2)):
        data = encoded(Image.fromarray(np.zeros((*shape, 3), np.uint8)), file_format)
        assert decode.decode(data, "thin").shape == (*shape, 3)
        assert decode.read_random_sized_crop(data, "thin", 8, np.random.default_rng(0)).shape == (8, 8, 3)
    for shape in ((2, 401), (401, 2)):
        data = encoded(Image.fromarray(np.zeros((*shape, 3), np.uint8)), file_format)
        crop = lambda data, name: decode.read_random_sized_crop(data, name, 8, np.random.default_rng(0))  # noqa: E731
        for read in (decode.decode, decode.check, decode.size, crop):
            with pytest.raises(UserError, match=rf"thinner is not .*{shape[1]} x {shape[0]} pixels.*200 times"):
                read(data, "thinner")


def with_size(data: bytes, marker: bytes, height: int, width: int) -> bytes:
    """The same JPEG with another size in its header."""
    place = data.index(marker) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def gray_png(side: int, bits: int, colour_type: int = 0) -> bytes:
    """Zeros; some kilobytes."""
    row = 1 + -(-side * bits * {0: 1, 2: 3, 6: 4}[colour_type] // 8)
    return png(side, side, (b"IDAT", zlib.compress(bytes(side * row), 9)), bits=bits, colour_type=colour_type)


# Bytes of a pixel: 3 of the output, Pillow's 1, 2 or 4 of its image, and 2 for each coefficient of a progressive JPEG.
TOO_LARGE = {  # 2^28 bytes are allowed
    "1 bit, 9,400 px: 4 bytes": gray_png(9400, 1),
    "16 bits, 7,400 px: 5 bytes": gray_png(7400, 16),
    "RGBA, 6,200 px: 7 bytes": gray_png(6200, 8, 6),
    "progressive, 6,700 px: 6 bytes": with_size(small_jpeg(progressive=True), b"\xff\xc2", 6700, 6700),
    "progressive 4:4:4, 5,500 px: 9 bytes": with_size(
        small_jpeg(progressive=True, subsampling="4:4:4"), b"\xff\xc2", 5500, 5500
    ),
    "GIF, 8,200 px: 4 bytes": b"GIF89a" + struct.pack("<HH", 8200, 8200) + encoded(Image.new("L", (9, 9)), "GIF")[10:],
    **{
        # RIFF, and the first chunk with the size of 3,900 px that the format puts at this place
        f"WebP, 3,900 px: 18 bytes, {kind.decode()}": b"RIFF----WEBP" + kind + bytes(gap) + size + bytes(99)
        for kind, gap, size in (
            (b"VP8X", 8, 2 * (3899).to_bytes(3, "little")),
            (b"VP8L", 5, (3899 << 14 | 3899).to_bytes(4, "little")),
            (b"VP8 ", 10, 2 * (3900).to_bytes(2, "little")),
        )
    },
    "PPM, 5,000 px: 11 bytes": b"P6 5000 5000 65535\n" + bytes(100),
}


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE)
def test_an_image_that_needs_much_memory_is_refused(data):
    assert len(data) < 300_000
    crop = lambda data, name: decode.read_random_sized_crop(data, name, 8, np.random.default_rng(0))  # noqa: E731
    tracemalloc.start()
    for read in (decode.decode, decode.check, decode.size, crop):
        with pytest.raises(UserError, match=r"large is not .* bytes to decode; at most 268,435,456 may"):
            read(data, "large")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


NEARLY_TOO_LARGE = {
    "1 bit": lambda: gray_png(8100, 1),
    "RGBA": lambda: gray_png(6100, 8, 6),
    "16 bits": lambda: gray_png(7300, 16),
    "progressive": lambda: encoded(Image.new("RGB", (6600, 6600)), "JPEG", progressive=True),
    "WebP": lambda: encoded(Image.new("RGB", (3850, 3850)), "WEBP", lossless=True),
    "TIFF": lambda: encoded(Image.new("RGB", (6100, 6100)), "TIFF", compression="tiff_lzw", strip_size=1 << 30),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NEARLY_TOO_LARGE)
def test_decoding_takes_no_more_memory_than_is_allowed(kind, tmp_path):
    """2^28 bytes, and a tenth for the rows that are converted at once; in a process of its own."""
    (tmp_path / "large").write_bytes(NEARLY_TOO_LARGE[kind]())
    code = "import re, sys; from resnext_jax.data import decode; data = open(sys.argv[1], 'rb').read()\n"
    code += "peak = lambda: 1024 * int(re.search('VmHWM:\\\\s*(\\\\d+)', open('/proc/self/status').read())[1])\n"
    code += "before = peak(); decode.decode(data, ''); print(peak() - before)"
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "large")]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert 0.8 * 2**28 < int(found) < 1.1 * 2**28


# ---- the random-sized crop


def test_crop_box_by_hand():
    # 400 x 500 px, half of the area, aspect 1.25: width sqrt(125,000) = 353.55, height sqrt(80,000) = 282.8
    rng = FixedDraws(0.5, 1.25, 0.5, 17, 23)
    assert decode.sample_crop_box(400, 500, rng) == (17, 23, 283, 354)
    assert rng.asked == [(0.08, 1.0), (3 / 4, 4 / 3), (0, 400 - 283), (0, 500 - 354)]
    assert decode.sample_crop_box(400, 500, FixedDraws(0.5, 1.25, 0.49, 1, 2)) == (1, 2, 354, 283)


def test_crop_box_tries_ten_times():
    miss = (1.0, 1.0, 0.9)  # a square of the whole area never fits a 100 x 400 image: 200 px high
    assert decode.sample_crop_box(100, 400, FixedDraws(*miss * 9, 0.25, 1.0, 0.9, 0, 5)) == (0, 5, 100, 100)
    rng = FixedDraws(*miss * 10, "an eleventh")
    assert decode.sample_crop_box(100, 400, rng) is None
    assert rng.draws == ["an eleventh"]


def test_crop_boxes_have_the_distribution_of_the_definition():
    height, width = 3000, 3000  # square, and large enough that rounding to pixels does not show
    rng = np.random.default_rng(0)
    boxes = [decode.sample_crop_box(height, width, rng) for _ in range(4000)]
    top, left, h, w = np.array(boxes).T
    # Only boxes with a side beyond the image are drawn again; below 3/4 of the area there are none,
    # and there the area is uniform and the longer over the shorter side is the aspect's or its inverse.
    area = h * w / (height * width)
    kept = area < 0.75
    uniform = np.sort((area[kept] - 0.08) / (0.75 - 0.08))
    # Kolmogorov-Smirnov distance at p = 0.001
    assert np.abs(uniform - np.linspace(0, 1, kept.sum())).max() < 1.95 / np.sqrt(kept.sum())
    # aspect a uniform in [3/4, 4/3], then a or 1/a with equal probability: P(x <= t) = (F(t) + 1 - F(1/t)) / 2
    aspect = np.sort((w / h)[kept])
    cdf = np.interp(aspect, [3 / 4, 4 / 3], [0, 1]) / 2 + (1 - np.interp(1 / aspect, [3 / 4, 4 / 3], [0, 1])) / 2
    assert np.abs(cdf - np.linspace(0, 1, kept.sum())).max() < 1.95 / np.sqrt(kept.sum())
    for offset, room in ((top, height - h), (left, width - w)):
        place = np.sort((offset / np.maximum(room, 1))[kept])
        assert np.abs(place - np.linspace(0, 1, kept.sum())).max() < 1.95 / np.sqrt(kept.sum())
    assert (top >= 0).all()
    assert (top + h <= height).all()
    assert (left >= 0).all()
    assert (left + w <= width).all()
    assert area.min() > 0.0795
    assert area.max() > 0.9


def test_random_sized_crop_of_a_photograph_is_crop_then_bicubic():
    photo = PHOTOS[1] // 2 + 60  # so that no overshoot is clipped, which Pillow does after each of its two passes
    rng = FixedDraws(0.5, 1.25, 0.5, 17, 23)  # height sqrt(0.5 * 427 * 640 / 1.25) = 330.6, width 413.3
    ours = decode.random_sized_crop(photo, 224, rng)
    box = Image.fromarray(photo).crop((23, 17, 23 + 413, 17 + 331))
    np.testing.assert_array_equal(ours, np.asarray(box.resize((224, 224), Image.Resampling.BICUBIC)))
    torch = pytest.importorskip("torch")
    pixels = torch.from_numpy(photo[17 : 17 + 331, 23 : 23 + 413].astype(np.float32)).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    assert np.abs(ours - theirs.clamp(0, 255).numpy()).max() < 1.5  # two roundings


def test_random_sized_crop_falls_back_to_the_centre():
    image = np.zeros((4, 100, 1), np.uint8)
    image[:, 48:52] = 200
    crop = decode.random_sized_crop(image, 4, np.random.default_rng(0))  # no box of aspect 3/4 to 4/3 is likely here
    assert crop.shape == (4, 4, 1)
    never = FixedDraws(*(1.0, 1.0, 0.9) * 10)
    np.testing.assert_array_equal(decode.random_sized_crop(image, 4, never), np.full((4, 4, 1), 200))


def test_one_pixel_is_an_image_too():
    crop = decode.random_sized_crop(np.full((1, 1, 3), 7, np.uint8), 8, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, np.full((8, 8, 3), 7))


# ---- the centre crop


def test_center_crop_by_hand():
    # 5 x 8, short side stays 5: margins 2 and 5, of which ceil(1) = 1 and ceil(2.5) = 3 come before the crop
    image = np.arange(40, dtype=np.uint8).reshape(5, 8, 1)
    np.testing.assert_array_equal(decode.center_crop(image, 3, 5), image[1:4, 3:6])
    portrait = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(decode.center_crop(portrait, 3, 5), portrait[3:6, 1:4])


@pytest.mark.parametrize(
    ("shape", "resized"), [((427, 640), (256, 383)), ((640, 427), (383, 256)), ((300, 300), (256, 256))]
)
def test_center_crop_of_a_photograph(shape, resized):
    # 640 / 427 * 256 = 383.7, and the long side rounds down
    photo = np.resize(PHOTOS[0], (*shape, 3))
    height, width = resized
    whole = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))
    top, left = -(-(height - 224) // 2), -(-(width - 224) // 2)
    np.testing.assert_array_equal(decode.center_crop(photo, 224, 256), whole[top : top + 224, left : left + 224])
