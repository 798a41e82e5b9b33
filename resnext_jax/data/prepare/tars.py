"""List the files in a tar, or in a tar of tars, from the headers alone."""

import collections
import os
import tarfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from resnext_jax.data.listing import is_image, left_out_text
from resnext_jax.data.prepare.images import Images
from resnext_jax.errors import UserError
from resnext_jax.files import in_bucket
from resnext_jax.progress import say

MAX_HEADER_BYTES = 1 << 20  # long names and extended headers have some kilobytes


class Member(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    size: int


class _HeadersOnly:
    """A file for `tarfile` that refuses to read as much as a damaged header may ask for."""

    def __init__(self, file: Any):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size:,} bytes")
        return self._file.read(size)


def list_tar(path: str, start: int = 0, size: int | None = None, inner: str = "") -> list[Member]:
    """Return the regular files of a tar, which may lie within another tar; only headers are read.

    Args:
      start, size: position of the tar in the file; by default the whole file.
      inner: name of the inner tar in messages.

    Raises:
      UserError: absent, not a tar, truncated, with a damaged header, or with sparse files.
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
        headers: Any = _HeadersOnly(file)  # it has what tarfile uses of a file
        try:
            file.seek(start)
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                for info in tar:
                    if info.offset < end:
                        last = info.name
                    size_text = info.pax_headers.get("size", "0")  # tarfile takes 0 for text that is no number
                    if info.size < 0 or tar.offset <= info.offset or not size_text.isdecimal():
                        raise ValueError(f"{info.name} has a size of {info.size:,} bytes, {size_text!r}")
                    if info.issparse():
                        raise ValueError(f"{info.name} is stored without its zeros, as a sparse file")
                    position = info.offset_data + info.size
                    if position > end:
                        break
                    if info.isreg():
                        members.append(Member(info.name, info.offset_data, info.size))
                else:
                    position = tar.offset
        except tarfile.TarError as error:
            position, reason = end, str(error)
        except Exception as error:  # a damaged header can raise almost anything in tarfile
            raise UserError(
                f"{what} cannot be read at or after {last or 'its beginning'} ({str(error) or type(error).__name__}). "
                "Fetch the archive again; if it is your own, make it again without sparse files."
            ) from None
        whole = False
        if position + 512 <= end:
            file.seek(position)
            whole = file.read(512) == bytes(512)  # a tar ends with blocks of zeros
    if whole:
        return members
    if last is None:
        raise UserError(
            f"{what} is not a tar file, or is truncated at its beginning ({reason}). Fetch it again; "
            "a compressed one is unpacked first."
        )
    raise UserError(f"{what} is truncated: it ends after or within {last}. Fetch it again (and compare its size).")


def tar_images(members: Sequence[Member], what: str) -> list[Member]:
    """Return the image files, sorted by name as bytes.

    Args:
      what: name of the archive in messages.

    Raises:
      UserError: it has an image more than once.
    """
    images = [member for member in members if is_image(os.path.basename(member.name))]
    counts = collections.Counter(os.path.basename(member.name) for member in images)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise UserError(
            f"{what} has {len(twice):,} image(s) more than once: {', '.join(twice[:3])}{', ...' * (len(twice) > 3)}. "
            "Fetch the archive again."
        )
    if len(images) < len(members):
        others = [member.name for member in members if not is_image(os.path.basename(member.name))]
        say(f"{what}: {len(images):,} images{left_out_text(others)}")
    return sorted(images, key=lambda member: os.fsencode(os.path.basename(member.name)))


class ClassTar(NamedTuple):
    """The tar of one class: a file or part of a file."""

    class_name: str
    path: str
    start: int
    size: int

    def images(self) -> Images:
        """Return the image files, sorted, with label 0; raises UserError if truncated or without an image."""
        inner = f"{self.class_name}.tar"
        members = tar_images(list_tar(self.path, self.start, self.size, inner), f"{inner} in {self.path}")
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
        members = [member for member in list_tar(path) if not os.path.basename(member.name).startswith(".")]
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
