"""partial.py against the whole image, decoded by Pillow."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from resnext_jax.data import decode, partial
from resnext_jax.errors import UserError
from tests.data.archives import PHOTOS

KINDS = {
    "4:2:0": ("RGB", {}),
    "4:2:2": ("RGB", {"subsampling": "4:2:2"}),
    "4:4:4": ("RGB", {"subsampling": "4:4:4"}),
    "grey": ("L", {}),
    "progressive": ("RGB", {"progressive": True}),
    "stored as RGB": ("RGB", {"keep_rgb": True}),
}


def jpeg(photo: np.ndarray, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo).convert(mode).save(stream, "JPEG", quality=92, **options)
    return stream.getvalue()


def needs_the_library() -> None:
    if partial.LIBRARY is None:
        pytest.skip("no libturbojpeg 3 here: pip install turbojpeg")


def jpeg_of_another_kind(photo: np.ndarray, subsampling: str) -> bytes:
    """What Pillow does not write."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(photo), quality=92, colorsubsampling=subsampling)


@pytest.mark.parametrize("kind", [*KINDS, "411", "440"])
def test_boxes_have_the_pixels_of_the_whole(kind):
    needs_the_library()
    rng = np.random.default_rng(0)
    for case in range(60):
        rows, columns = rng.integers(1, 200, 2).tolist()
        photo = PHOTOS[case % 2][50 : 50 + rows, 80 : 80 + columns]
        data = jpeg(photo, KINDS[kind][0], **KINDS[kind][1]) if kind in KINDS else jpeg_of_another_kind(photo, kind)
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        height, width = rng.integers(1, rows, endpoint=True), rng.integers(1, columns, endpoint=True)
        top, left = rng.integers(rows - height, endpoint=True), rng.integers(columns - width, endpoint=True)
        found = partial.box_of_jpeg(data, (rows, columns), (int(top), int(left), int(height), int(width)))
        np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("library", ["with", "without"])
def test_crops_of_files_are_the_crops_of_their_pixels(library, monkeypatch):
    if library == "without":
        monkeypatch.setattr(partial, "LIBRARY", None)
    else:
        needs_the_library()
    wide = PHOTOS[0][:20]  # of which no box of the right shape is found: the centre crop
    files = [jpeg(PHOTOS[0]), jpeg(PHOTOS[1][:100], "L"), jpeg(wide), jpeg(PHOTOS[1], "CMYK")]
    stream = io.BytesIO()
    Image.fromarray(PHOTOS[1]).save(stream, "PNG")
    for data in (*files, stream.getvalue()):
        for seed in range(5):
            found = decode.read_random_sized_crop(data, "photo", 64, np.random.default_rng(seed))
            whole = decode.random_sized_crop(decode.decode(data, "photo"), 64, np.random.default_rng(seed))
            np.testing.assert_array_equal(found, whole)


def test_what_is_truncated_is_found_wherever_the_crop_is():
    data = jpeg(PHOTOS[0])
    for end in (len(data) // 2, len(data) - 200):
        for seed in range(5):
            with pytest.raises(UserError, match="photo is not a readable image"):
                decode.read_random_sized_crop(data[:end], "photo", 64, np.random.default_rng(seed))


def test_flipped_bits_give_the_same_with_and_without_the_library(monkeypatch):
    needs_the_library()
    rng = np.random.default_rng(0)
    whole = jpeg(PHOTOS[0][:80, :120])
    library, refused, same = partial.LIBRARY, 0, 0
    for case in range(150):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        found = []
        for way in (library, None):
            monkeypatch.setattr(partial, "LIBRARY", way)
            try:
                found.append(decode.read_random_sized_crop(bytes(data), "photo", 32, np.random.default_rng(case)))
            except UserError as error:
                found.append(str(error))
        if isinstance(found[1], str):
            refused += isinstance(found[0], str)
        else:
            np.testing.assert_array_equal(*found)
            same += 1
    assert same > 100
    assert refused > 2


def test_several_threads_have_decoders_of_their_own():
    needs_the_library()
    import concurrent.futures

    data = jpeg(PHOTOS[0])
    whole = np.asarray(Image.open(io.BytesIO(data)))

    def check(case: int) -> None:
        top, left = case % 100, case * 7 % 200
        box = partial.box_of_jpeg(data, (427, 640), (top, left, 150, 160))
        np.testing.assert_array_equal(box, whole[top : top + 150, left : left + 160])

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(check, range(200)))
