"""The labels of a split whose labels lie within its images' records, kept in a file once they have been read there.

32 bytes: the SHA-256 of what the labels belong to and of the labels; then little-endian int32 per image.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable

import numpy as np
from etils import epath

from resnext_jax.data.readers import Labels


def kept_labels(beside: epath.PathLike, belongs_to: str, num_images: int, read: Callable[[], Labels]) -> Labels:
    """The labels from their file, or else from `read`, and then the file is written.

    Args:
      beside: the file; where it cannot be written, one in the user's cache directory takes its place.
      belongs_to: differs between the splits and versions of data sets; a file that belongs to another is not read.
      num_images: how many labels there are.
      read: reads them where they are slow to read.
    """
    name = hashlib.sha256(f"{beside} {belongs_to}".encode()).hexdigest()[:32]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    paths = [epath.Path(beside), epath.Path(cache) / "resnext_jax" / f"{name}.labels"]
    for path in paths:
        try:
            content = path.read_bytes()
        except Exception:  # absent, or whatever a bucket says where one may not look
            continue
        if len(content) == 32 + 4 * num_images and content[:32] == _digest(belongs_to, content[32:]):
            return np.frombuffer(content, "<i4", offset=32).astype(np.int32)
    labels = read()
    data = labels.astype("<i4").tobytes()
    for path in paths:
        try:
            _write(path, _digest(belongs_to, data) + data)
        except Exception as error:
            logging.getLogger(__name__).debug("%s could not be written: %s", path, error)
            continue
        break
    else:
        logging.getLogger(__name__).warning(
            "the labels could be kept neither in %s nor in %s: the next start reads every image again", *paths
        )
    return labels


def _digest(belongs_to: str, data: bytes) -> bytes:
    return hashlib.sha256(belongs_to.encode() + data).digest()


def _write(path: epath.Path, content: bytes) -> None:
    """Whole or not at all, whoever else does the same."""
    if "://" in str(path):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp-{secrets.token_hex(8)}"  # hosts may share the directory
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
