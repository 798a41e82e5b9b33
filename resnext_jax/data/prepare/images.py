"""Lists of images to be written: where each lies in a tar or a folder, its label and its name. No image is held."""

import concurrent.futures
import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
from etils import epath

from resnext_jax.data.folder import image_files, is_image
from resnext_jax.errors import UserError

LOOSE = -1  # in place of an offset: a file of its own


class Entry(NamedTuple):
    """One image: `size` bytes at `offset` of the file `where`, or all of it (LOOSE)."""

    where: str
    offset: int
    size: int
    label: int
    name: str


@dataclasses.dataclass(frozen=True)
class Images:
    """Many images in arrays, about 60 bytes each: as Python objects, 6.8 million would be some gigabytes.

    Attributes:
      containers: tars, or folders of loose files.
      container: index into containers, per image.
      offset, size: in bytes, per image; LOOSE for a file of its own.
      label: per image.
      names, ends: the names one after the other, and where each ends; `<class>/<file>`.
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
        cls,
        container: str,
        names: Sequence[str],
        offsets: Sequence[int],
        sizes: Sequence[int],
        labels: Sequence[int] | np.ndarray,
    ) -> "Images":
        """The images of one container."""
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
        """All of them, in this order."""
        starts = np.cumsum([0, *(len(part.containers) for part in parts)])
        name_starts = np.cumsum([0, *(len(part.names) for part in parts)])
        return cls(
            sum((part.containers for part in parts), ()),
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
        """One image."""
        name = os.fsdecode(self.names[self.ends[index - 1] if index else 0 : self.ends[index]])
        where = self.containers[self.container[index]]
        return Entry(where, int(self.offset[index]), int(self.size[index]), int(self.label[index]), name)

    def digest(self) -> str:
        """Of what will be written: names, sizes and labels in their order, wherever the files lie."""
        digest = hashlib.sha256(self.names)
        for array in (self.ends, self.size, self.label):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()


# ---- folders


def folder_images(root: str, class_names: Sequence[str], present: Sequence[str]) -> Images:
    """The image files of the class folders `present` in `root`; labels by place in `class_names`."""
    labels = {name: label for label, name in enumerate(class_names)}

    def of_class(name: str) -> Images:
        files = image_files(os.path.join(root, name))
        loose = [LOOSE] * len(files)
        return Images.make(root, [f"{name}/{file}" for file in files], loose, loose, [labels[name]] * len(files))

    return Images.join([of_class(name) for name in present])


# ---- tars


class Member(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    size: int


class _Window(io.RawIOBase):
    """Some bytes of a file, as a file: the tar within a tar."""

    def __init__(self, file: IO[bytes], start: int, size: int):
        self.file, self.start, self.size, self.position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.position)
        self.file.seek(self.start + self.position)
        data = self.file.read(left if size < 0 else min(size, left))
        self.position += len(data)
        return data


def tar_size(path: str) -> int:
    """The size of a tar in bytes.

    Raises:
      UserError: it does not exist.
    """
    file = epath.Path(path)
    if not file.exists() or file.is_dir():
        what = "is a folder, not a tar file" if file.exists() else "does not exist"
        raise UserError(f"{path} {what}. Give the path of the archive as it was downloaded.")
    return file.stat().length


def list_tar(path: str, start: int = 0, size: int | None = None, inner: str = "") -> list[Member]:
    """The regular files of a tar, which may lie within another; only headers are read.

    Args:
      path: the tar file.
      start, size: the bytes that are the tar; by default all.
      inner: what to call a tar within the tar, in an error.

    Raises:
      UserError: absent, no tar, or truncated.
    """
    size = tar_size(path) - start if size is None else size
    what = f"{inner} in {path}" if inner else path
    members = []
    # Unbuffered: a header is 512 bytes, and the next one 100 kB further.
    with epath.Path(path).open("rb") if "://" in path else open(path, "rb", buffering=0) as file:
        if "://" not in path and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # else the disk reads all that lies between
        window = _Window(file, start, size)
        try:
            with tarfile.open(fileobj=window, mode="r:") as tar:
                members.extend(Member(info.name, start + info.offset_data, info.size) for info in tar if info.isreg())
                end = tar.offset
        except tarfile.TarError as error:
            if members:
                raise UserError(_truncated(what, members[-1].name)) from None
            raise UserError(
                f"{what} is not a tar file, or is truncated at its beginning ({error}). Fetch it again; "
                "a compressed one is unpacked first."
            ) from None
        window.seek(end)
        if window.read(512) != bytes(512):  # a tar ends in blocks of zeros
            raise UserError(_truncated(what, members[-1].name if members else "its beginning"))
    return members


def _truncated(what: str, last: str) -> str:
    return f"{what} is truncated: it ends after or within {last}. Fetch it again (and compare its size)."


def tar_images(members: Sequence[Member]) -> list[Member]:
    """Those that are image files, sorted by name as bytes."""
    images = [member for member in members if is_image(os.path.basename(member.name))]
    return sorted(images, key=lambda member: os.fsencode(os.path.basename(member.name)))


class ClassTar(NamedTuple):
    """The tar of one class: a file, or part of one."""

    class_name: str
    path: str
    start: int
    size: int

    def images(self) -> Images:
        """Its image files, sorted, with label 0.

        Raises:
          UserError: truncated, or without an image.
        """
        members = tar_images(list_tar(self.path, self.start, self.size, f"{self.class_name}.tar"))
        if not members:
            raise UserError(f"{self.class_name}.tar in {self.path} has no image. Fetch the archive again.")
        names = [f"{self.class_name}/{os.path.basename(member.name)}" for member in members]
        offsets, sizes = [member.offset for member in members], [member.size for member in members]
        return Images.make(self.path, names, offsets, sizes, np.zeros(len(members), np.int32))


def class_tars(members_of: str) -> list[ClassTar]:
    """The tars `<class>.tar` within a tar, or in a folder, sorted by class.

    Raises:
      UserError: absent, truncated, or something else than class tars is in it.
    """
    path = members_of
    if epath.Path(path).is_dir():
        tars = [
            ClassTar(file.name.removesuffix(".tar"), os.fspath(file), 0, file.stat().length)
            for file in epath.Path(path).iterdir()
            if file.name.endswith(".tar") and not file.name.startswith(".")
        ]
        others = []
    else:
        members = list_tar(path)
        others = [member.name for member in members if not member.name.endswith(".tar")]
        tars = [
            ClassTar(os.path.basename(name).removesuffix(".tar"), path, offset, size)
            for name, offset, size in members
            if name.endswith(".tar")
        ]
    if others or not tars:
        found = f"it holds {others[0]!r}" if others else "there is none"
        raise UserError(
            f"{path} is not what was expected: a tar (or a folder) with one tar per class, n01440764.tar and so on; "
            f"{found}. Give the right archive."
        )
    return sorted(tars)


def map_in_order(pool: concurrent.futures.Executor, function, tasks: Sequence) -> Iterator:
    """`pool.map` that starts no more than some tasks before the first result is taken."""
    waiting, rest = [], iter(tasks)
    for task in rest:
        waiting.append(pool.submit(function, task))
        if len(waiting) == 256:
            break
    while waiting:
        yield waiting.pop(0).result()
        for task in rest:
            waiting.append(pool.submit(function, task))
            break
