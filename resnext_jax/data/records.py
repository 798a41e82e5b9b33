"""Read image files from sharded ArrayRecord by index. `data.prepare` writes these directories:

    DIR/manifest.json                        what the directory holds: counts, class names, a checksum per file
    DIR/train-00000-of-01024.array_record    records, uncompressed, each a group of its own
    DIR/train.labels                         little-endian int32 per image, in the order of the records

A record is the label (uint32) and the length of the name (uint16), both little-endian, the name in UTF-8
(`<class>/<file>`), and then the image file as it was.
"""

import bisect
import concurrent.futures
import hashlib
import itertools
import json
import struct
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from resnext_jax.data.readers import Labels, Record
from resnext_jax.errors import UserError, raise_all
from resnext_jax.files import sha256_of
from resnext_jax.json_files import WHOLE, is_file_name, read_json, shown
from resnext_jax.types import DatasetInfo

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # `prepare` has this file instead until the last shard is written
FORMAT = "resnext_jax records 1"
HEADER = struct.Struct("<IH")
LABEL_BYTES = 4  # of a file of labels; a record takes more
WRITER_OPTIONS = "group_size:1,uncompressed"  # a record is read alone, and JPEGs do not shrink
FILE = {"file": str, "num_images": WHOLE, "num_bytes": WHOLE, "sha256": str}  # forms of JSON values
CONTENT = {
    "format": str,
    "name": str,
    "class_names": [str],
    "settings": dict,
    "notes": dict,
    "splits": {str: {"num_images": WHOLE, "shards": [FILE], "labels": FILE}},
}
_READER_OPTIONS = {"max_parallelism": "0"}


class File(NamedTuple):
    """Entry of one file in the manifest; in a file of labels, `num_images` is the number of labels."""

    file: str
    num_images: int
    num_bytes: int
    sha256: str


class Split(NamedTuple):
    """Files of one split, in the order of the records."""

    shards: tuple[File, ...]
    labels: File

    @property
    def num_images(self) -> int:
        return sum(shard.num_images for shard in self.shards)


class Manifest(NamedTuple):
    """Content of a prepared directory.

    Attributes:
      name: "imagenet2012", "imagenet5k" or "folder".
      class_names: names of the classes in label order.
      splits: files of "train" and "validation", or of one of them.
      settings: settings of the preparation, and the digest of the list of images.
      notes: more facts about the classes (`imagenet1k_labels`) and the images that were left out.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    settings: dict[str, Any]
    notes: dict[str, Any]

    def files(self) -> tuple[File, ...]:
        return tuple(file for split in self.splits.values() for file in (*split.shards, split.labels))


def pack(image: bytes, label: int, name: str) -> bytes:
    """Return a record. The name is cut at 65,535 bytes, more than any file system allows."""
    encoded = name.encode("utf-8", "surrogateescape")[:65_535]
    return b"".join((HEADER.pack(label, len(encoded)), encoded, image))


def unpack(record: bytes) -> Record:
    """Return the image, label and name of a record."""
    label, length = HEADER.unpack_from(record)
    end = HEADER.size + length
    return Record(record[end:], label, record[HEADER.size : end].decode("utf-8", "surrogateescape"))


def manifest_json(manifest: Manifest) -> str:
    """Return the text of manifest.json."""
    splits = {
        key: {
            "num_images": split.num_images,
            "shards": [shard._asdict() for shard in split.shards],
            "labels": split.labels._asdict(),
        }
        for key, split in manifest.splits.items()
    }
    content = {"format": FORMAT, **manifest._asdict(), "splits": splits}
    return json.dumps(content, indent=1) + "\n"


def read_manifest(directory: epath.PathLike) -> Manifest | None:
    """Return the manifest of a directory, or None; raises UserError if it cannot be read or contradicts itself."""
    path = epath.Path(directory) / MANIFEST
    if not path.exists():
        return None
    advice = "Copy it again, or prepare the data again."
    found = read_json(path, {"format": str}, advice)["format"]
    if found != FORMAT:
        raise UserError(
            f"{path} is of the format {shown(found)}; this version reads {FORMAT!r}. Prepare the data again, or use "
            "the version that wrote it."
        )
    content = read_json(path, CONTENT, advice)
    splits, problems = {}, []
    for key, split in content["splits"].items():
        splits[key] = Split(tuple(map(file_of, split["shards"])), file_of(split["labels"]))
        said, found = split["num_images"], splits[key].num_images
        if said != found:
            problems.append(f"{path} says {said:,} images for {key}, but its shards have {found:,}. {advice}")
        problems += [f"{path} is damaged ({problem}). {advice}" for problem in _size_problems(splits[key])]
    raise_all(problems)
    return Manifest(content["name"], tuple(content["class_names"]), splits, content["settings"], content["notes"])


def file_of(fields: dict[str, Any]) -> File:
    """Return the entry of a file from JSON of the form FILE."""
    return File(*(fields[name] for name in File._fields))


def size_problem(file: File) -> str | None:
    """Return what is wrong with the name or the sizes of a file in themselves."""
    if not is_file_name(file.file):
        return f"{shown(file.file)} is no name of a file"
    if file.num_images * LABEL_BYTES > file.num_bytes:
        return f"{file.file} cannot hold {file.num_images:,} images in {file.num_bytes:,} bytes"
    return None


def _size_problems(split: Split) -> list[str]:
    """Return what contradicts itself in the names and sizes of a split; sizes on disk are left to `check_files`."""
    problems = [problem for file in (*split.shards, split.labels) if (problem := size_problem(file))]
    if not split.labels.num_bytes == LABEL_BYTES * split.labels.num_images == LABEL_BYTES * split.num_images:
        problems.append(
            f"{split.labels.file} has {split.labels.num_images:,} labels in {split.labels.num_bytes:,} bytes for "
            f"{split.num_images:,} images"
        )
    return problems


def check_files(directory: epath.PathLike, files: tuple[File, ...], *, checksums: bool = False) -> list[str]:
    """Return a sentence for every file that is missing or differs from its entry in the manifest.

    Only sizes are compared, or, with `checksums`, every byte.
    """

    def problem(file: File) -> str | None:
        path = epath.Path(directory) / file.file
        if not path.exists():
            return f"{path} is missing."
        if (found := path.stat().length) != file.num_bytes:
            return f"{path} has {found:,} bytes where the manifest says {file.num_bytes:,}."
        if checksums and sha256_of(path) != file.sha256:
            return f"{path} has other content than was written (its SHA-256 differs from the manifest's)."
        return None

    with concurrent.futures.ThreadPoolExecutor(8 if checksums else 32) as threads:  # a bucket answers slowly
        return [text for text in threads.map(problem, files) if text]


# Name in the manifest of data for detection, whose labels are the indices of images.
OBJECTS = "detection"


class RecordSource:
    """Split of a prepared directory. A shard is opened at its first use, in any thread or process.

    Raises:
      UserError: the split or a file is missing, or a file has the wrong size.
    """

    def __init__(self, name: str, split: str, directory: epath.PathLike, manifest: Manifest):
        import grain  # slow to import, and the manifest does not need it

        if split not in manifest.splits:
            raise UserError(
                f"{directory} has no {split} split, only {', '.join(manifest.splits)}. Prepare it with one, or change "
                "--config.data.dir."
            )
        self.split, self.directory = manifest.splits[split], directory
        problems = check_files(directory, (*self.split.shards, self.split.labels))
        if problems:
            more = f" ({len(problems) - 1} more files are wrong.)" if len(problems) > 1 else ""
            raise UserError(f"{problems[0]}{more} Copy the directory again, or run the same prepare command again.")
        # With the given counts no file is opened yet.
        self.records = grain.sources.ArrayRecordDataSource(
            [f"{epath.Path(directory) / shard.file}[0:{shard.num_images}]" for shard in self.split.shards],
            reader_options=_READER_OPTIONS,
        )
        self.ends = list(itertools.accumulate(shard.num_images for shard in self.split.shards))
        self.info = DatasetInfo(name, self.split.num_images, manifest.class_names, None)
        # Images that were left out have labels too.
        self._num_labels = 2**31 if manifest.name == OBJECTS else self.info.num_classes

    def __len__(self) -> int:
        return self.info.num_images

    def __getitem__(self, index: int) -> Record:
        try:
            return unpack(self.records[index])
        except (RuntimeError, ValueError, struct.error) as error:
            raise UserError(
                f"{self.locate(index)} could not be read ({str(error).split(';')[0]}). Find every damaged file "
                f"with python -m resnext_jax.data.prepare --verify={self.directory}, and copy or prepare those again."
            ) from None

    def locate(self, index: int) -> str:
        shard = min(bisect.bisect_right(self.ends, index), len(self.ends) - 1)
        number = index - (self.ends[shard - 1] if shard else 0)
        return f"record {number} of {epath.Path(self.directory) / self.split.shards[shard].file}"

    def all_labels(self) -> Labels:
        path = epath.Path(self.directory) / self.split.labels.file
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.split.labels.sha256:
            raise UserError(f"{path} has other content than was written. Copy it again, or prepare the data again.")
        labels = np.frombuffer(content, "<i4").astype(np.int32)
        if (wrong := labels[(labels < 0) | (labels >= self._num_labels)]).size:
            raise UserError(
                f"{path} has the label {wrong[0]}, and {MANIFEST} {self._num_labels:,} labels. Prepare the data again."
            )
        return labels
