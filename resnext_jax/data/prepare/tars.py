"""List the files in a tar, or in a tar of tars, from the headers alone."""

import collections
import os
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from resnext_jax.data.folder import is_image
from resnext_jax.data.prepare.images import Images
from resnext_jax.errors import UserError
from resnext_jax.files import in_bucket


class Member(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    size: int


def list_tar(path: str, start: int = 0, size: int | None = None, inner: str = "") -> list[Member]:
    """Return the regular files of a tar, which may lie within another tar; only headers are read.

    Args:
      start, size: position of the tar in the file; by default the whole file.
      inner: name of the inner tar in messages.

    Raises:
      UserError: absent, not a tar, or truncated.
    """
    file_path = epath.Path(path)
    if not file_path.exists() or file_path.is_dir():
        what = "is a folder, not a tar file" if file_path.exists() else "does not exist"
        raise UserError(f"{path} {what}. Give the path of the archive as it was downloaded.")
    end = file_path.stat().length if size is None else start + size
    what = f"{inner} in {path}" if inner else path
    members, last, reason = [], None, "it does not begin with a header"
    # Unbuffered: a header has 512 bytes, and the next one is 100 kB further.
    with file_path.open("rb") if in_bucket(path) else open(path, "rb", buffering=0) as file:
        if not in_bucket(path) and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # do not read what lies between
        position = start
        try:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    if info.offset < end:
                        last = info.name
                    position = info.offset_data + info.size
                    if position > end:
                        break
                    if info.isreg():
                        members.append(Member(info.name, info.offset_data, info.size))
                else:
                    position = tar.offset
        except tarfile.TarError as error:
            position, reason = end, str(error)
        file.seek(position)
        whole = position + 512 <= end and file.read(512) == bytes(512)  # a tar ends with blocks of zeros
    if whole:
        return members
    if last is None:
        raise UserError(
            f"{what} is not a tar file, or is truncated at its beginning ({reason}). Fetch it again; "
            "a compressed one is unpacked first."
        )
    raise UserError(f"{what} is truncated: it ends after or within {last}. Fetch it again (and compare its size).")


def tar_images(members: Sequence[Member]) -> list[Member]:
    """Return the image files, sorted by name as bytes."""
    images = [member for member in members if is_image(os.path.basename(member.name))]
    return sorted(images, key=lambda member: os.fsencode(os.path.basename(member.name)))


class ClassTar(NamedTuple):
    """The tar of one class: a file or part of a file."""

    class_name: str
    path: str
    start: int
    size: int

    def images(self) -> Images:
        """Return the image files, sorted, with label 0; raises UserError if truncated or without an image."""
        members = tar_images(list_tar(self.path, self.start, self.size, f"{self.class_name}.tar"))
        if not members:
            raise UserError(f"{self.class_name}.tar in {self.path} has no image. Fetch the archive again.")
        names = [f"{self.class_name}/{os.path.basename(member.name)}" for member in members]
        offsets, sizes = [member.offset for member in members], [member.size for member in members]
        return Images.make(self.path, names, offsets, sizes, [0] * len(members))


def class_tars(path: str) -> list[ClassTar]:
    """Return the tars `<class>.tar` in a tar or in a folder, sorted by class.

    Raises:
      UserError: absent, truncated, or with other files than class tars.
    """
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
            ClassTar(os.path.basename(name).removesuffix(".tar"), path, offset, size) for name, offset, size in members
        ]
    if others or not tars:
        found = f"it holds {others[0]!r}" if others else "there is none"
        raise UserError(
            f"{path} is not what was expected: a tar (or a folder) with one tar per class, n01440764.tar and so on; "
            f"{found}. Give the right archive."
        )
    [(name, count)] = collections.Counter(tar.class_name for tar in tars).most_common(1)
    if count > 1:
        raise UserError(f"{path} has {name}.tar more than once. Give an archive with one tar per class.")
    return sorted(tars)
