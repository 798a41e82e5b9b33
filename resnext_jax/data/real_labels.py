"""ReaL: all correct labels of each validation image of ImageNet, chosen by people (Beyer et al. 2020).

The file is real.json of the authors' repository (google-research/reassessed-imagenet): a list of 50,000 lists of
labels, in the order of the images' numbers; some are empty.
"""

import os
import re

import numpy as np
from etils import epath
from jaxtyping import Int

from resnext_jax.data.readers import Record, WrappedSource
from resnext_jax.errors import UserError
from resnext_jax.json_files import parse_json

NUM_IMAGES, NUM_CLASSES = 50_000, 1000
MAX_LABELS = 100  # of one image; the table has as many columns as the longest list
NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def read_real_labels(path: str, *, num_images: int = NUM_IMAGES) -> Int[np.ndarray, "images most"]:
    """Return the labels of each image, int32, padded with -1; raises UserError for a file of other content."""
    try:
        lists = parse_json(epath.Path(os.path.expanduser(path)).read_bytes(), [[range(NUM_CLASSES)]])
        lengths = [len(labels) for labels in lists]
        if len(lists) != num_images:
            raise ValueError(f"it has {len(lists):,} lists, not {num_images:,}")
        if max(lengths) > MAX_LABELS:
            raise ValueError(f"list {np.argmax(lengths):,} has {max(lengths):,} labels, more than {MAX_LABELS}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"evaluate.real_labels={path} cannot be read: {reason}. It should be real.json of "
            "github.com/google-research/reassessed-imagenet: a list of labels for each of the 50,000 validation images."
        ) from None
    table = np.full((num_images, max(1, *lengths)), -1, np.int32)
    labels = [label for labels in lists for label in labels]
    table[np.arange(table.shape[1])[None] < np.array(lengths)[:, None]] = labels
    return table


class NumberedSource(WrappedSource):
    """ImageNet's validation images with their numbers, from 0, in place of labels."""

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        found = NUMBER.search(record.name)
        if not found or not 1 <= int(found[1]) <= NUM_IMAGES:
            raise UserError(
                f"{record.name} does not say which image of the validation set it is: ReaL labels belong to the files "
                "ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG. Leave out --config.evaluate.real_labels."
            )
        return record._replace(label=int(found[1]) - 1)
