"""Find the image files of a class folder, by their suffix or their first bytes, and name the files that are none."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.files import in_bucket

# Of the formats that `decode` reads.
IMAGE_SUFFIXES = (
    *(".jpeg", ".jpg", ".png", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".webp"),
)
_FIRST_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|BM.{4}\0{4}|GIF8[79]a|II[*+]\0|MM\0[*+]|P[1-6]\s[\s\d#]|RIFF.{4}WEBP", re.DOTALL
)
_NUM_FIRST_BYTES = 12
_MOST_NAMED = 3


class Found(NamedTuple):
    """Files below a folder, by their paths in it, sorted as bytes."""

    images: list[str]
    left_out: list[str]


def is_image(file_name: str) -> bool:
    """Return whether a file is an image, by its name."""
    return file_name.lower().endswith(IMAGE_SUFFIXES) and not file_name.startswith(".")


def find_images(folder: str) -> Found:
    """Return the image files of a folder and its sub-folders, and the files that are left out.

    A file without the suffix of an image is one if it begins like one. Hidden files are left out.

    Raises:
      UserError: a folder cannot be listed, or a file cannot be read.
    """
    found = Found([], [])
    _find(folder, "", found, ())
    return Found(sorted(found.images, key=os.fsencode), sorted(found.left_out, key=os.fsencode))


def _find(root: str, inside: str, found: Found, ancestors: Sequence[str]) -> None:
    folder = os.path.join(root, inside) if inside else root
    others = []
    for name in list_names(folder):
        path = f"{inside}/{name}" if inside else name
        if is_image(name):
            found.images.append(path)
        elif name.startswith("."):
            found.left_out.append(path)
        else:
            others.append(path)
    if not others:
        return
    ancestors = (*ancestors, folder if in_bucket(folder) else os.path.realpath(folder))
    for path, kind in zip(others, _kinds(root, others), strict=True):
        if kind == "image":
            found.images.append(path)
        elif kind == "file" or os.path.realpath(os.path.join(root, path)) in ancestors:  # a link to a folder above it
            found.left_out.append(path)
        else:
            _find(root, path, found, ancestors)


def _kinds(root: str, paths: Sequence[str]) -> Iterator[str]:
    """Yields "folder", "image" or "file" for each path."""
    if not in_bucket(root):
        yield from (_kind(os.path.join(root, path)) for path in paths)
        return
    with ThreadPoolExecutor(32) as threads:  # a bucket answers slowly
        yield from threads.map(lambda path: _kind(os.path.join(root, path)), paths)


def _kind(path: str) -> str:
    try:
        opened = epath.Path(path) if in_bucket(path) else None
        if opened.is_dir() if opened else os.path.isdir(path):
            return "folder"
        if not opened and not os.path.isfile(path):  # a pipe would wait for its writer
            return "file"
        with opened.open("rb") if opened else open(path, "rb", buffering=0) as file:
            return "image" if _FIRST_BYTES.match(file.read(_NUM_FIRST_BYTES)) else "file"
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} could not be read: {reason}. Make it readable, or remove it.") from None


def list_names(folder: str) -> list[str]:
    """Return the names in a folder, hidden ones too; raises UserError if it cannot be listed."""
    try:
        # epath is ten times slower on a local disk, which matters at a million files.
        return [path.name for path in epath.Path(folder).iterdir()] if in_bucket(folder) else os.listdir(folder)
    except OSError as error:
        raise _cannot_list(folder, error) from None


def list_folders(root: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders in `root` without hidden ones, and all other names, both sorted.

    Raises:
      UserError: it cannot be listed.
    """
    try:
        if in_bucket(root):
            names = {path.name: path.is_dir() for path in epath.Path(root).iterdir()}
        else:
            with os.scandir(root) as entries:
                names = {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        raise _cannot_list(root, error) from None
    folders = sorted(name for name, is_folder in names.items() if is_folder and not name.startswith("."))
    return folders, sorted(names.keys() - set(folders))


def _cannot_list(folder: str, error: OSError) -> UserError:
    return UserError(f"{folder} could not be listed: {error.strerror or error}. Make it readable (is its disk there?).")


def left_out_text(left_out: Sequence[str]) -> str:
    """Return the end of a sentence that counts and names the files that are left out."""
    if not left_out:
        return ""
    named = ", ".join(left_out[:_MOST_NAMED]) + (", ..." if len(left_out) > _MOST_NAMED else "")
    return f"; {len(left_out):,} left out that are hidden or no image of a format that is read: {named}"
