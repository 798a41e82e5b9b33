"""Sources of images and labels by index; `sources` opens them by name."""

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Integer, UInt8

from resnext_jax.errors import UserError
from resnext_jax.types import DatasetInfo

MAX_IDX_BYTES = 1 << 28  # five times Fashion-MNIST's training images; some kilobytes of gzip unpack to gigabytes

Images = UInt8[np.ndarray, "batch height width channel"]
Labels = Integer[np.ndarray, " batch"]


class Record(NamedTuple):
    """One example: a uint8 image (height, width, channel) or an encoded file, its label, and a name for messages."""

    image: np.ndarray | bytes
    label: int
    name: str


@runtime_checkable
class Source(Protocol):
    """One split of a data set, with random access to examples by index in [0, len)."""

    info: DatasetInfo

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def locate(self, index: int) -> str:
        """Return the location of an example for messages, without reading it."""
        ...

    def all_labels(self) -> Labels:
        """Return the int32 labels of all images; may read the whole data set (only TFDS, once)."""
        ...


@runtime_checkable
class GatherSource(Source, Protocol):
    """Source whose images all have `info.image_shape`; it returns a whole batch at once."""

    def gather(self, indices: Labels) -> tuple[Images, Labels]: ...


class WrappedSource:
    """The same images and labels as another source, for sources that change a part of it."""

    def __init__(self, source: Source):
        self.source, self.info = source, source.info

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self.source[index]

    def locate(self, index: int) -> str:
        return self.source.locate(index)

    def all_labels(self) -> Labels:
        return self.source.all_labels()


class ArraySource:
    """Images (uint8, one shape) and labels in memory.

    Raises:
      UserError: a label is not in [0, number of classes); it is named with `where`, the file of the labels.
    """

    def __init__(self, name: str, images: Images, labels: Labels, class_names: Sequence[str], where: str):
        wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if wrong.size:
            raise UserError(
                f"{where}: label {labels[wrong[0]]} at index {wrong[0]} ({wrong.size} such labels in all); the "
                f"{len(class_names)} classes of {name!r} are 0 to {len(class_names) - 1}. Fetch the files of {name!r} "
                "anew; images of your own go into class folders, with --config.data.name=folder."
            )
        height, width, channel = images.shape[1:]
        self.info = DatasetInfo(name, len(images), tuple(class_names), (height, width, channel))
        self.images, self.labels, self.where = images, labels.astype(np.int32), where

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]), self.locate(index))

    def locate(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def all_labels(self) -> Labels:
        return self.labels

    def gather(self, indices: Labels) -> tuple[Images, Labels]:
        return self.images[indices], self.labels[indices]


class SyntheticSource:
    """Learnable images without files: noise plus a 4 x 4 pattern of colors for each class.

    Image `index` has the class `index % num_classes`. Its noise is a window into one fixed pool, so an image of any
    size costs one copy and one addition. Both splits have the same patterns and different noise.
    """

    def __init__(self, split: str, num_images: int, num_classes: int, image_size_px: int, num_channels: int):
        self.shape = (image_size_px, image_size_px, num_channels)
        self.info = DatasetInfo("synthetic", num_images, tuple(f"class {i}" for i in range(num_classes)), self.shape)
        rng = np.random.default_rng(0)
        self.cells = np.arange(image_size_px) * 4 // image_size_px
        self.pattern_rows = rng.integers(0, 128, (num_classes, 4, 4, num_channels), np.uint8)[:, :, self.cells]
        pool = rng.integers(0, 128, math.prod(self.shape) + (1 << 20), np.uint8)
        self.windows = np.lib.stride_tricks.sliding_window_view(pool, math.prod(self.shape))
        self.first_image = {"train": 0, "validation": 500_009}[split]

    def __len__(self) -> int:
        return self.info.num_images

    def __getitem__(self, index: int) -> Record:
        images, labels = self.gather(np.array([index]))
        return Record(images[0], int(labels[0]), self.locate(index))

    def locate(self, index: int) -> str:
        return f"synthetic[{index}]"

    def all_labels(self) -> Labels:
        return (np.arange(len(self)) % self.info.num_classes).astype(np.int32)

    def gather(self, indices: Labels) -> tuple[Images, Labels]:
        labels = (indices % self.info.num_classes).astype(np.int32)
        starts = (indices + self.first_image) * 7919 % len(self.windows)  # a prime apart, so that every start occurs
        images = self.windows[starts].reshape(len(indices), *self.shape)
        images += self.pattern_rows[labels[:, None], self.cells]
        return images, labels


def read_idx(path: epath.PathLike) -> UInt8[np.ndarray, "..."]:
    """Return the array in an idx file of bytes, plain or gzipped; raises UserError if it is broken or another file.

    Only as much is unpacked as the header announces, and at most MAX_IDX_BYTES.
    """
    advice = "Fetch the file again, or remove it."
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(epath.Path(path).open("rb"))
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = io.BufferedReader(stack.enter_context(gzip.open(file))) if is_gzip else file
            # header, big-endian: two zeros, type 8 = uint8, number of dimensions; then each dimension
            start = content.read(4)
            num_dims = start[3] if start[:3] == b"\0\0\x08" and len(start) == 4 else 0
            sizes = content.read(4 * num_dims)
            if num_dims == 0 or len(sizes) < 4 * num_dims:
                start = start.hex() or "nothing"
                raise UserError(f"{path} is not an idx file of bytes (it begins with {start}, not 000008). {advice}")
            shape = np.frombuffer(sizes, ">i4").tolist()
            shape_text, announced = " x ".join(map(str, shape)), math.prod(shape)
            if announced > MAX_IDX_BYTES and min(shape) >= 0:
                raise UserError(f"{path} announces {shape_text} values; at most {MAX_IDX_BYTES:,} are read. {advice}")
            most = min(max(0, announced), MAX_IDX_BYTES) + 1024  # with the end, which has a checksum
            data = content.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} could not be read: {error}. {advice}") from None
    if min(shape) < 0 or len(data) != announced:
        more = " or more" if len(data) == most else ""
        raise UserError(f"{path} holds {len(data)}{more} values where its header says {shape_text}. {advice}")
    return np.frombuffer(data, np.uint8).reshape(shape)
