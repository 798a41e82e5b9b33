"""Data sets that TFDS has prepared in ArrayRecord format, read without TensorFlow."""

import concurrent.futures
import contextlib
import os
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from resnext_jax.data import decode
from resnext_jax.data.absent import TFDS_INSTALL, absent
from resnext_jax.data.label_file import kept_labels
from resnext_jax.data.readers import ArraySource, Labels, Record, Source
from resnext_jax.errors import UserError
from resnext_jax.progress import Progress, say
from resnext_jax.types import DatasetInfo

NUM_LABEL_THREADS, LABELS_AT_ONCE = 32, 256
# Data sets with several variants in TFDS: the variant that the name means.
CONFIGS = {"imagenet_v2": "imagenet_v2/matched-frequency"}


class TfdsSource:
    """Split of a prepared TFDS data set in ArrayRecord format, with encoded images, read without TensorFlow.

    Raises:
      NotImplementedError: the data set is not in ArrayRecord format.
      UserError: a shard is missing.
    """

    def __init__(self, name: str, builder: Any, split: str):
        import tensorflow_datasets as tfds  # slow to import, and only this needs it

        self.records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        paths = builder.info.splits[split].filepaths
        with concurrent.futures.ThreadPoolExecutor(32) as threads:  # a bucket answers slowly
            sizes = list(threads.map(_size, paths))
        missing = [path for path, size in zip(paths, sizes, strict=True) if size is None]
        if missing:
            raise UserError(
                f"{len(missing)} shard(s) of {name!r} ({split}) are missing, the first {missing[0]}. "
                "Copy or prepare the data set again."
            )
        self.info = DatasetInfo(name, len(self.records), tuple(builder.info.features["label"].names), None)
        self.where = f"{builder.data_path}/{split}"
        self.label_file = builder.data_path / f"{name}-{split}.labels"
        self.version = f"{name} {split} {builder.info.version} {builder.info.splits[split].num_bytes} {sizes}"

    def __len__(self) -> int:
        return self.info.num_images

    def __getitem__(self, index: int) -> Record:
        try:
            example = self.records[index]
        except Exception as error:  # a damaged record can raise almost anything in TFDS
            raise self._unreadable(index, error) from None
        name = self.locate(index)
        if "file_name" in example:  # as in ImageNet
            name += f" ({bytes(example['file_name']).decode(errors='replace')})"
        return Record(bytes(example["image"]), int(example["label"]), name)

    def locate(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def _unreadable(self, index: int, error: Exception) -> UserError:
        reason = str(error).split(";")[0]
        return UserError(f"{self.locate(index)} could not be read ({reason}). Copy or prepare the data set again.")

    def all_labels(self) -> Labels:
        return kept_labels(self.label_file, self.version, len(self), self._read_labels)

    def _read_labels(self) -> Labels:
        """Reads the labels from the records, together with the images (140 GB for ImageNet)."""
        from tensorflow_datasets.proto import tf_example_pb2

        def label(index: int) -> int:
            try:
                example = tf_example_pb2.Example.FromString(self.records.data_source[index])
            except Exception as error:
                raise self._unreadable(index, error) from None
            return example.features.feature["label"].int64_list.value[0]

        say(f"reading {len(self):,} images of {self.where} for their labels, this once")
        progress, labels = Progress("labels", len(self), "image"), np.empty(len(self), np.int32)
        parts = [range(len(self))[start : start + LABELS_AT_ONCE] for start in range(0, len(self), LABELS_AT_ONCE)]
        threads = concurrent.futures.ThreadPoolExecutor(NUM_LABEL_THREADS)
        try:
            found = threads.map(lambda part: list(map(label, part)), parts)
            for part, values in zip(parts, found, strict=True):
                labels[part.start : part.stop] = values
                progress.update(part.stop, "")
        finally:
            progress.close()
            threads.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
        return labels


def _size(path: Any) -> int | None:
    """Return the size in bytes, or None if the file is missing."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().length


def open_tfds(name: str, split: str, data_dir: str | None, places: Sequence[str] = (), **_) -> Source:
    default_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    root = epath.Path(data_dir or default_dir)  # only the given directory, if one is given
    folder = CONFIGS.get(name, name)
    patterns = ("dataset_info.json", "[0-9]*/dataset_info.json", f"{folder}/[0-9]*/dataset_info.json")
    found = next((versions for pattern in patterns if (versions := [path.parent for path in root.glob(pattern)])), None)
    if found is None:
        raise absent(name, split, [*places, f"{root / folder} (TFDS)"], data_dir)
    directory = max(found, key=lambda path: [int(number) for number in path.name.split(".") if number.isdigit()])

    import tensorflow_datasets as tfds  # slow to import, and only this needs it

    try:
        builder: Any = tfds.builder_from_directory(directory)
    except Exception as error:  # damaged or old files can raise almost anything in TFDS
        raise UserError(
            f"{directory} is not a data set that TFDS {tfds.__version__} can open ({error}). Copy it again, or prepare "
            "it anew."
        ) from None
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
        # TFDS 4.9.10 converts the shards of a relative path, but does not record the new format.
        path = str(directory) if "://" in str(directory) else os.path.abspath(directory)
        raise UserError(
            f"{directory} is in the format {builder.info.file_format.value!r}, which cannot be read by index; "
            "'array_record' can. Convert it once, in an environment of its own (only this step needs TensorFlow):\n"
            f"      {TFDS_INSTALL}\n"
            f"      tfds convert_format --dataset_version_dir={shlex.quote(path)} --out_file_format=array_record"
        ) from None
    shape = builder.info.features["image"].shape
    return source if None in shape else _in_memory(source, shape)


def _in_memory(source: TfdsSource, shape: tuple[int, int, int]) -> Source:
    """Return a source with small images of one shape (CIFAR, Fashion-MNIST) decoded once, about 90 us each."""
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int64)
    for index in range(len(source)):
        record = source[index]
        images[index] = decode.decode(bytes(record.image), record.name, num_channels=shape[-1])
        labels[index] = record.label
    return ArraySource(source.info.name, images, labels, source.info.class_names, source.where)
