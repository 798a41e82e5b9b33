"""A file with the labels of a split, for data sets whose labels can only be read together with the images.

The first 32 bytes are the SHA-256 of the version of the data and the labels; then one little-endian int32 per image.
"""

import hashlib
import logging
import os
from collections.abc import Callable

import numpy as np
from etils import epath

from resnext_jax.data.readers import Labels
from resnext_jax.files import in_bucket, replace_file


def kept_labels(beside: epath.PathLike, belongs_to: str, num_images: int, read: Callable[[], Labels]) -> Labels:
    """Return the labels from their file. If there is none, calls `read` and writes the file.

    Args:
      beside: path of the file; if it cannot be written, a file in the user's cache directory is used.
      belongs_to: split and version of the data set; a file of another one is not used.
      read: reads the labels from the images, slowly.
    """
    name = hashlib.sha256(f"{beside} {belongs_to}".encode()).hexdigest()[:32]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    paths = [epath.Path(beside), epath.Path(cache) / "resnext_jax" / f"{name}.labels"]
    for path in paths:
        try:
            content = path.read_bytes()
        except Exception:  # absent, or an error of a bucket's library
            continue
        if len(content) == 32 + 4 * num_images and content[:32] == _digest(belongs_to, content[32:]):
            return np.frombuffer(content, "<i4", offset=32).astype(np.int32)
    labels = read()
    data = labels.astype("<i4").tobytes()
    for path in paths:
        try:
            if not in_bucket(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, _digest(belongs_to, data) + data)
            return labels
        except Exception as error:
            logging.getLogger(__name__).debug("%s could not be written: %s", path, error)
    logging.getLogger(__name__).warning(
        "the labels could be kept neither in %s nor in %s: the next start reads every image again", *paths
    )
    return labels


def _digest(belongs_to: str, data: bytes) -> bytes:
    return hashlib.sha256(belongs_to.encode() + data).digest()
