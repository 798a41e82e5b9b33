"""200 corrupted files through training, preparation and evaluation: none crashes, none hangs, each is named."""

import gzip
import io
import json
import logging
import pathlib
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from resnext_jax.data import pipeline, stream
from resnext_jax.data.crops import Crop
from resnext_jax.data.prepare.__main__ import main
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from tests.data.archives import PHOTOS, jpeg, png, tar_of

NUM_GOOD = 50


def encoded(kind: str, number: int = 0, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PHOTOS[number % 2][:60, :80]).save(stream, kind, **options)
    return stream.getvalue()


def encoded_size(kind: str, width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, kind)
    return stream.getvalue()


def jpeg_of_size(data: bytes, height: int, width: int) -> bytes:
    """The same JPEG with another size in its header (SOF0)."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def corrupted() -> dict[str, bytes]:
    """By names that begin with what was done to them; bits that were flipped may leave a readable image."""
    rng, files = np.random.default_rng(0), {}
    for number, kind in enumerate(["JPEG", "JPEG", "PNG", "GIF"] * 15):
        whole = encoded(kind, number)
        files[f"truncated-{number}"] = whole[: rng.integers(1, len(whole) * 9 // 10)]
    for number, kind in enumerate(["JPEG", "PNG", "GIF"] * 20):
        whole = bytearray(encoded(kind, number))
        for _ in range(8):
            whole[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        files[f"flipped-{number}"] = bytes(whole)
    files |= {f"zero_length-{number}": b"" for number in range(10)}
    strangers = (
        *(b"hello", b"<html>404 Not Found</html>", b"%PDF-1.7\n%\xe2\xe3", b"%!PS-Adobe-3.0 EPSF-3.0\n(x) show\n"),
        *(tar_of({"x": b"y"}), gzip.compress(jpeg(0)), b"\0\0\0\x20ftypisom", b"RIFF\x24\0\0\0WAVEfmt "),
        *(encoded("JPEG2000"), encoded("ICNS"), b"\xff\xd8", b"\xff\xd8\xff\xe0", bytes(1000), rng.bytes(1000)),
    )
    files |= {f"wrong_type-{number}": strangers[number % len(strangers)] for number in range(30)}
    huge = (
        *(jpeg_of_size(encoded("JPEG"), 65_000, 65_000), jpeg_of_size(encoded("JPEG"), 9_500, 9_500)),
        *(png(100_000, 100_000), png(2**31 - 1, 1), b"P6 99999 99999 255\n" + bytes(100)),
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + encoded("GIF")[10:],
        b"BM" + struct.pack("<IIIIiiHHI", 200, 0, 54, 40, 90_000, 90_000, 1, 24, 0) + bytes(160),
        jpeg_of_size(encoded("JPEG"), 0, 0),
        # Few pixels, and whole: but with the short side at 224 px, 10 GB and 9 TB.
        encoded_size("JPEG", 65_000, 1),
        png(60_000_000, 1, (b"IDAT", zlib.compress(bytes(1 + 60_000_000 // 8)))),
    )
    files |= {f"enormous-{number}": huge[number % len(huge)] for number in range(24)}
    bombs = (
        png(12_000, 12_000, (b"IDAT", zlib.compress(bytes(12_000 * 1501)))),  # 18 kB, in RGB 432 MB
        png(8, 8, (b"zTXt", b"comment\0\0" + zlib.compress(bytes(100_000_000))), (b"IDAT", zlib.compress(bytes(16)))),
    )
    files |= {f"bomb-{number}": bombs[number % len(bombs)] for number in range(16)}
    assert len(files) == 200
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """One class of them, with good images in between; names end in .jpg, whatever they are."""
    root = tmp_path_factory.mktemp("corrupted")
    (root / "train" / "class").mkdir(parents=True)
    files = corrupted()
    for place, number in enumerate(np.random.default_rng(1).permutation(len(files)).tolist()):
        name = list(files)[number]
        (root / "train" / "class" / f"{place:03}-{name}.jpg").write_bytes(files[name])
        if place % 4 == 0:
            (root / "train" / "class" / f"{place:03}-good.jpg").write_bytes(jpeg(place))
    return root


def is_damaged(data: bytes) -> bool:
    """By what Pillow does not report: checksums of a PNG's chunks, and libjpeg's first warning."""
    if data.startswith(b"\x89PNG"):
        at = 8
        while at + 8 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            at += 12 + length
            if kind.isupper() and zlib.crc32(data[at - 8 - length : at - 4]) != int.from_bytes(data[at - 4 : at]):
                return True
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError as error:
        return bool(re.search("premature end|bad Huffman", str(error)))
    return False


def is_readable(path: pathlib.Path) -> bool:
    """By Pillow, and not damaged."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "GIF")) as image:
            image.convert("RGB").load()
    except Exception:
        return False
    return not is_damaged(path.read_bytes())


def names_in(texts: list[str], folder: pathlib.Path) -> list[str]:
    paths = [text.split(" is not a readable image")[0] for text in texts]
    assert {str(pathlib.Path(path).parent) for path in paths} <= {str(folder / "train" / "class"), "class"}
    return sorted(pathlib.Path(path).name for path in paths)


@pytest.fixture(scope="module")
def broken(folder) -> list[str]:
    """The names of those that cannot be read: all but some whose bits were flipped."""
    paths = sorted((folder / "train" / "class").iterdir())
    flipped = [path.name for path in paths if "flipped" in path.name and not is_readable(path)]
    assert 20 < len(flipped) < 60
    return sorted([*flipped, *(path.name for path in paths if "flipped" not in path.name and "good" not in path.name)])


@pytest.mark.slow
def test_training_goes_on_past_all_of_them_and_names_each_once(folder, broken, caplog, monkeypatch):
    monkeypatch.setattr(stream, "GIVE_UP_AFTER_S", 30.0)  # at one image
    source = open_source("folder", "train", data_dir=str(folder), on_bad_image="replace")
    assert len(source) == 200 + NUM_GOOD
    arguments: dict[str, Any] = {"batch_size": 25, "seed": 0, "steps": range(20), "num_threads": 4}
    with caplog.at_level(logging.WARNING):
        batches = list(pipeline.train_batches(source, Crop("random_sized", 16), **arguments))
    assert len(batches) == 20  # two epochs
    named = names_in([record.getMessage() for record in caplog.records], folder)
    assert len(named) == len(set(named))
    # What is damaged below the crop may be decoded without a word; two epochs have two crops.
    assert set(named) <= set(broken)
    assert {name for name in broken if "flipped" not in name} <= set(named)


def test_preparation_leaves_them_out_by_name(folder, broken, tmp_path, capsys):
    flags = ["folder", f"--dir={folder}", "--num_processes=1"]
    assert main([*flags, f"--out={tmp_path / 'error'}"]) == 2
    assert "is not a readable image" in capsys.readouterr().err
    assert main([*flags, f"--out={tmp_path / 'skip'}", "--on_bad_image=skip"]) == 0
    manifest = json.loads((tmp_path / "skip" / "manifest.json").read_text())
    assert names_in(manifest["notes"]["left_out"], folder) == broken
    assert manifest["splits"]["train"]["num_images"] == 200 + NUM_GOOD - len(broken)


@pytest.mark.slow
def test_evaluation_stops_at_each(folder, broken):
    source = open_source("folder", "train", data_dir=str(folder))
    crop = Crop("random_sized", 16, 18)

    class One:
        """One image of it."""

        info = source.info

        def __init__(self, index: int):
            self.index = index

        def __len__(self) -> int:
            return 1

        def all_labels(self):
            return source.all_labels()[[self.index]]

        def __getitem__(self, index: int):
            return source[self.index]

        def locate(self, index: int) -> str:
            return source.locate(self.index)

    stopped = []
    for index in range(len(source)):
        try:
            list(pipeline.evaluation_batches(One(index), crop, batch_size=1, num_threads=0))
        except UserError as error:
            stopped.append(str(error))
    assert names_in(stopped, folder) == broken
