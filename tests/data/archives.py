"""Small archives with the layout of ImageNet's, made from two real photographs."""

import io
import pathlib
import struct
import tarfile
import zlib
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from resnext_jax.data.readers import GatherSource
from resnext_jax.data.sources import open_source

PHOTOS = load_sample_images().images  # china.jpg and flower.jpg, uint8 (427, 640, 3)


def open_arrays(name: str, split: str, **arguments: Any) -> GatherSource:
    """Return the source of a data set whose images all have the same shape."""
    source = open_source(name, split, **arguments)
    assert isinstance(source, GatherSource)
    return source


def jpeg(number: int, width: int = 64, height: int = 48) -> bytes:
    """A cut of a photograph; every number gives another."""
    left, top = number * 7 % (640 - width), number * 3 % (427 - height)
    stream = io.BytesIO()
    Image.fromarray(PHOTOS[number % 2][top : top + height, left : left + width]).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits=1, colour_type=0, interlaced=False) -> bytes:
    """A PNG with these chunks between its header and its end, by default of black and white."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar with these files, in this order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def class_files(counts: dict[str, int]) -> dict[str, dict[str, bytes]]:
    """For each class its files, so many, in an order that is not sorted."""
    files, number = {}, 0
    for name, count in counts.items():
        order = np.random.default_rng(number).permutation(count)
        files[name] = {f"{name}_{i}.JPEG": jpeg(number + i) for i in order.tolist()}
        number += count
    return files


def class_tar_of_tars(counts: dict[str, int]) -> bytes:
    """As ILSVRC2012_img_train.tar: one tar per class within a tar."""
    return tar_of({f"{name}.tar": tar_of(files) for name, files in class_files(counts).items()})


def validation_tar(count: int) -> bytes:
    """As ILSVRC2012_img_val.tar."""
    return tar_of({f"ILSVRC2012_val_{i:08}.JPEG": jpeg(1000 + i) for i in range(count, 0, -1)})


def write_folders(root: pathlib.Path, split: str, counts: dict[str, int], **size: int) -> None:
    """Class folders of JPEGs."""
    for number, (name, count) in enumerate(counts.items()):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            (root / split / name / f"{i:03}.JPEG").write_bytes(jpeg(100 * number + i, **size))
