"""What lies where in a tar, or in a tar of tars, from the headers alone."""

import io
import os
import tarfile
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np
from etils import epath

from resnext_jax.data.folder import is_image
from resnext_jax.data.prepare.images import Images
from resnext_jax.errors import UserError


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
    names = [tar.class_name for tar in tars]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        raise UserError(f"{path} has {twice}.tar more than once. Give an archive with one tar per class.")
    return sorted(tars)
