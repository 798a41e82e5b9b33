"""Lists of images to write: position in a tar or a folder, label and name, without the image itself."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnext_jax.data.folder import find_class_images
from resnext_jax.data.listing import left_out_text
from resnext_jax.progress import say

LOOSE = -1  # offset and size of an image that is a file of its own


class Entry(NamedTuple):
    """One image: `size` bytes at `offset` of the tar `where`, or the file `name` in the folder `where` (LOOSE)."""

    where: str
    offset: int
    size: int
    label: int
    name: str


@dataclasses.dataclass(frozen=True)
class Images:
    """Many images in arrays, about 60 bytes each; 6.8 million Python objects would take gigabytes.

    Attributes:
      containers: tars, or folders of loose files.
      container: index into `containers` of every image.
      offset, size: position of every image in bytes; LOOSE for a file of its own.
      names, ends: concatenated names `<class>/<file>`, and the end of each.
    """

    containers: tuple[str, ...]
    container: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    names: bytes
    ends: np.ndarray

    @classmethod
    def make(
        cls, container: str, names: Sequence[str], offsets: Sequence[int], sizes: Sequence[int], labels: Sequence[int]
    ) -> "Images":
        """Return the images of one container."""
        encoded = [os.fsencode(name) for name in names]
        return cls(
            (container,),
            np.zeros(len(names), np.int32),
            np.asarray(offsets, np.int64),
            np.asarray(sizes, np.int64),
            np.asarray(labels, np.int32),
            b"".join(encoded),
            np.cumsum([len(name) for name in encoded], dtype=np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence["Images"]) -> "Images":
        """Return all images of several lists, in this order."""
        starts = np.cumsum([0, *(len(part.containers) for part in parts)])
        name_starts = np.cumsum([0, *(len(part.names) for part in parts)])
        return cls(
            tuple(itertools.chain.from_iterable(part.containers for part in parts)),
            np.concatenate([part.container + start for part, start in zip(parts, starts, strict=False)]),
            np.concatenate([part.offset for part in parts]),
            np.concatenate([part.size for part in parts]),
            np.concatenate([part.label for part in parts]),
            b"".join(part.names for part in parts),
            np.concatenate([part.ends + start for part, start in zip(parts, name_starts, strict=False)]),
        )

    def __len__(self) -> int:
        return len(self.label)

    def entry(self, index: int) -> Entry:
        """Return one image."""
        name = os.fsdecode(self.names[self.ends[index - 1] if index else 0 : self.ends[index]])
        where = self.containers[self.container[index]]
        return Entry(where, int(self.offset[index]), int(self.size[index]), int(self.label[index]), name)

    def digest(self) -> str:
        """Return the SHA-256 of names, sizes and labels in their order; the location of the files does not matter."""
        digest = hashlib.sha256(self.names)
        for array in (self.ends, self.size, self.label):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()


def folder_images(root: str, class_names: Sequence[str]) -> Images:
    """Return the image files of the class folders in `root`, and tell which files are left out.

    The label is the index in `class_names`.
    """
    found, left_out = find_class_images(root, class_names)
    parts = [Images.make(root, [], [], [], [])]
    for label, images in found.items():
        files, loose = [f"{class_names[label]}/{file}" for file in images], [LOOSE] * len(images)
        parts.append(Images.make(root, files, loose, loose, [label] * len(files)))
    joined = Images.join(parts)
    say(f"{root}: {len(joined):,} images in {len(found):,} classes{left_out_text(left_out)}")
    return joined
