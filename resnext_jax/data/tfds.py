"""Data sets that TFDS has prepared in ArrayRecord format, read without TensorFlow."""

import concurrent.futures
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnext_jax.data import decode
from resnext_jax.data.absent import TFDS_INSTALL, absent
from resnext_jax.data.readers import ArraySource, Labels, Record, Source
from resnext_jax.errors import UserError
from resnext_jax.types import DatasetInfo


class TfdsSource:
    """A split of a prepared TFDS data set in ArrayRecord format, images left encoded; needs no TensorFlow.

    Raises:
      NotImplementedError: the data set is not in ArrayRecord format.
      UserError: a shard is missing.
    """

    def __init__(self, name: str, builder: Any, split: str):
        import tensorflow_datasets as tfds  # slow to import, and only this needs it

        self.records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        missing = [path for path in builder.info.splits[split].filepaths if not path.exists()]
        if missing:
            raise UserError(
                f"{len(missing)} shard(s) of {name!r} ({split}) are missing, the first {missing[0]}. "
                "Copy or prepare the data set again."
            )
        self.info = DatasetInfo(name, len(self.records), tuple(builder.info.features["label"].names), None)
        self.where = f"{builder.data_path}/{split}"

    def __len__(self) -> int:
        return self.info.num_images

    def __getitem__(self, index: int) -> Record:
        example = self.records[index]
        return Record(bytes(example["image"]), int(example["label"]), self.locate(index))

    def locate(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def all_labels(self) -> Labels:
        # TFDS keeps labels inside the records, so that each image is read for its label.
        logging.getLogger(__name__).warning("reading %s images of %s for their labels", f"{len(self):,}", self.where)
        with concurrent.futures.ThreadPoolExecutor(32) as threads:
            labels = threads.map(lambda index: int(self.records[index]["label"]), range(len(self)))
            return np.fromiter(labels, np.int32, len(self))


def open_tfds(name: str, split: str, data_dir: str | None, places: Sequence[str] = (), **_) -> Source:
    from etils import epath

    default_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    roots = [epath.Path(root) for root in (data_dir, default_dir) if root]
    patterns = (
        "dataset_info.json",
        "[0-9]*/dataset_info.json",
        f"{name}/[0-9]*/dataset_info.json",
        f"{name}/*/[0-9]*/dataset_info.json",
    )
    found = (path.parent for root in roots for pattern in patterns for path in _newest_first(root.glob(pattern)))
    directory = next(found, None)
    if directory is None:
        raise absent(name, split, [*places, *(f"{root / name} (TFDS)" for root in roots)])

    import tensorflow_datasets as tfds  # slow to import, and only this needs it

    builder: Any = tfds.builder_from_directory(directory)
    names = {"train": ("train",), "validation": ("validation", "test")}[split]
    tfds_split = next((key for key in names if key in builder.info.splits), None)
    if builder.name != name or tfds_split is None:
        raise UserError(
            f"{directory} holds {builder.name!r} with the splits {', '.join(builder.info.splits) or 'none'}; wanted is "
            f"{name!r}, {' or '.join(names)}. Change --config.data.name or --config.data.dir, or prepare it anew."
        )
    try:
        source = TfdsSource(name, builder, tfds_split)
    except NotImplementedError:
        raise UserError(
            f"{directory} is in the format {builder.info.file_format.value!r}, which cannot be read by index; "
            "'array_record' can. Convert it once, in an environment of its own (only this step needs TensorFlow):\n"
            f"      {TFDS_INSTALL}\n"
            f"      tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record"
        ) from None
    shape = builder.info.features["image"].shape
    return source if None in shape else _in_memory(source, shape)


def _newest_first(paths):
    return sorted(paths, key=lambda path: [int(n) for n in path.parent.name.split(".") if n.isdigit()], reverse=True)


def _in_memory(source: TfdsSource, shape: tuple[int, int, int]) -> Source:
    """Decodes small images of one shape (CIFAR, Fashion-MNIST) once, at some 90 us each, instead of every epoch."""
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int64)
    for index in range(len(source)):
        record = source[index]
        images[index] = decode.decode(bytes(record.image), record.name, num_channels=shape[-1])
        labels[index] = record.label
    return ArraySource(source.info.name, images, labels, source.info.class_names, source.where)
