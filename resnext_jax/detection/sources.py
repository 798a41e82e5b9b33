"""Open a data set for detection: find its files, compare them with the annotations, and read images by index.

The layouts of COCO 2017 and 2014 hold the same images: train2017 is train2014 with the 35k of val2014, and val2017 is
minival, the rest of val2014.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath
from jaxtyping import Int32
from PIL import Image

from resnext_jax.data import decode
from resnext_jax.data.absent import bucket_problems
from resnext_jax.data.folder import SPLITS
from resnext_jax.data.listing import list_names
from resnext_jax.data.readers import Record
from resnext_jax.data.records import MANIFEST, OBJECTS, UNFINISHED, RecordSource, read_manifest
from resnext_jax.data.sources import open_source as open_images
from resnext_jax.detection.coco import read_annotations, subset
from resnext_jax.detection.types import DetectionData
from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.types import DatasetInfo

# layout -> split -> files of annotations, each with the folder of its images
LAYOUTS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "coco2017": {
        "train": (("annotations/instances_train2017.json", "train2017"),),
        "validation": (("annotations/instances_val2017.json", "val2017"),),
    },
    "coco2014": {
        "train": (
            ("annotations/instances_train2014.json", "train2014"),
            ("annotations/instances_valminusminival2014.json", "val2014"),
        ),
        "validation": (("annotations/instances_minival2014.json", "val2014"),),
    },
    # file_name is relative to the directory itself
    "own": {"train": (("annotations/train.json", ""),), "validation": (("annotations/validation.json", ""),)},
}
# Of COCO's train2017 and val2017; other numbers are said, since they make other results than the paper's.
COCO_NUM_IMAGES = {"train": 118_287, "validation": 5_000}
SIZE_THREADS = 32
MOST_NAMED = 3


class FileImages:
    """Image files below a directory, by index; the label of a record is the index.

    Raises:
      UserError: images are missing or of another size than the annotations say.
    """

    def __init__(self, data: DetectionData, root: str, *, check_sizes: bool = True):
        self.data, self.root = data, root
        self.info = DatasetInfo("coco", len(data), data.class_names, None)
        missing = self._missing()
        problems = []
        if missing:
            named = ", ".join(data.files[index] for index in sorted(missing)[:MOST_NAMED])
            problems.append(
                f"{root}: {len(missing):,} of {len(data):,} images of the annotations are missing: {named}"
                f"{', ...' * (len(missing) > MOST_NAMED)}. Copy them there, or correct file_name in the annotations."
            )
        if check_sizes:
            there = [index for index in range(len(data)) if index not in missing]
            with ThreadPoolExecutor(SIZE_THREADS) as threads:
                problems += _summary(list(threads.map(self._size_problem, there)), root)
        raise_all(problems)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        path = self.locate(index)
        try:
            return Record(epath.Path(path).read_bytes(), index, path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path} could not be read: {reason}. Put it back, then start again.") from None

    def locate(self, index: int) -> str:
        return os.path.join(self.root, self.data.files[index])

    def all_labels(self) -> Int32[np.ndarray, " images"]:
        return np.arange(len(self), dtype=np.int32)

    def _missing(self) -> set[int]:
        folders: dict[str, set[str]] = {}
        missing = set()
        for index, file in enumerate(self.data.files):
            folder, name = os.path.split(os.path.join(self.root, file))
            if folder not in folders:  # one listing is quicker than a question for each image
                folders[folder] = set(list_names(folder)) if epath.Path(folder).is_dir() else set()
            if name not in folders[folder]:
                missing.add(index)
        return missing

    def _size_problem(self, index: int) -> str | None:
        path, (height, width) = self.locate(index), self.data.size_px[index].tolist()
        try:
            with epath.Path(path).open("rb") as file, Image.open(file, formats=decode.FORMATS) as image:
                found = image.size
        except Exception as error:  # a broken file can raise almost anything in Pillow
            return f"{path} is not a readable image ({error}). Replace it."
        if found == (width, height):
            return None
        return size_problem(path, (found[1], found[0]), (height, width))


class PreparedImages:
    """Images of a directory that `detection.prepare` wrote, in the order of the annotations."""

    def __init__(self, data: DetectionData, records: RecordSource):
        labels = records.all_labels()  # a record's label is the index of its image
        self.data = data if len(labels) == len(data) else subset(data, np.sort(labels))
        self.records, self.info = records, records.info
        self._order = np.argsort(labels, kind="stable")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        return self.records[int(self._order[index])]._replace(label=index)

    def locate(self, index: int) -> str:
        return self.records.locate(int(self._order[index]))

    def all_labels(self) -> Int32[np.ndarray, " images"]:
        return np.arange(len(self), dtype=np.int32)


DetectionSource = FileImages | PreparedImages


def size_problem(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """Return the sentence for an image whose size (height, width) is not that of the annotations."""
    turned = found == wanted[::-1]
    return (
        f"{name} has {found[1]} x {found[0]} pixels, and the annotations say {wanted[1]} x {wanted[0]}. "
        + ("Its EXIF orientation was applied before it was annotated: rotate the file itself" * turned)
        + ("Take the image that was annotated, or correct its height and width" * (not turned))
        + "."
    )


def open_source(
    directory: str, split: str, *, annotations: str | None = None, check_sizes: bool = True
) -> DetectionSource:
    """Open one split of a data set in COCO's format.

    Args:
      directory: directory in one of `LAYOUTS`, or written by `detection.prepare`, or of the images of `annotations`.
      split: "train" or "validation".
      annotations: file of annotations of this split, where the directory has none of the layouts.
      check_sizes: whether to read the header of every image; about 0.2 ms for each.

    Raises:
      UserError: nothing of the kind is there, or images and annotations contradict each other.
    """
    directory = os.path.expanduser(directory)
    raise_all([unknown("split", split, SPLITS)] if split not in SPLITS else [])
    raise_all(bucket_problems(directory, annotations))
    if annotations is not None:
        return FileImages(read_annotations([(os.path.expanduser(annotations), "")]), directory, check_sizes=check_sizes)
    if any(epath.Path(directory, file).exists() for file in (MANIFEST, UNFINISHED)):
        return _open_prepared(directory, split)
    layout = find_layout(directory, split)
    data = read_annotations(_parts(directory, layout, split))
    if layout != "own" and len(data) != COCO_NUM_IMAGES[split]:
        note = (
            f"{directory}: {split} has {len(data):,} images, and COCO's has {COCO_NUM_IMAGES[split]:,}: the results "
            "will not compare with the paper's."
        )
        data = dataclasses.replace(data, notes=(*data.notes, note))
    return FileImages(data, directory, check_sizes=check_sizes)


def find_layout(directory: str, split: str) -> str:
    """Return the first of `LAYOUTS` whose annotations of a split are all there; raises UserError if there is none."""
    for layout in LAYOUTS:
        if all(epath.Path(path).exists() for path, _ in _parts(directory, layout, split)):
            return layout
    wanted = [" and ".join(path for path, _ in _parts(directory, layout, split)) for layout in LAYOUTS]
    raise UserError(
        "\n".join(
            [
                f"annotations of the {split} split were not found. Looked for:",
                *(f"  - {paths}" for paths in wanted),
                "Change --config.data.dir, or give the files these names. The two "
                "parts of val2014 are instances_minival2014.json and instances_valminusminival2014.json of the authors "
                "of Faster R-CNN; with COCO 2017 none is needed. VOC's XML becomes such a directory with python -m "
                "resnext_jax.detection.prepare voc.",
            ]
        )
    )


def require_apart(train: DetectionData, validation: DetectionData) -> None:
    """Raise UserError if an image is both in training and in validation; at COCO, ids tell."""
    shared = np.intersect1d(train.image_ids, validation.image_ids)
    names = set(train.files) & set(validation.files)
    both_coco = len(shared) and all(_number(data.files) == data.image_ids.tolist() for data in (train, validation))
    if both_coco or names:
        count, first = (len(shared), f"id {shared[0]}") if both_coco else (len(names), min(names))
        raise UserError(
            f"{count:,} images are in training and in validation, the first {first}. Results would be too good: take "
            "splits without a common image (at COCO 2014, minival and valminusminival)."
        )


def _number(files: Sequence[str]) -> list[int | None]:
    """Return the number at the end of each name, which is the id at COCO: COCO_val2014_000000000042.jpg."""
    ends = [os.path.splitext(file)[0][-12:] for file in files]
    return [int(end) if end.isdecimal() else None for end in ends]


def _parts(directory: str, layout: str, split: str) -> list[tuple[str, str]]:
    return [(os.path.join(directory, path), folder) for path, folder in LAYOUTS[layout][split]]


def _summary(problems: list[str | None], root: str) -> list[str]:
    found = [problem for problem in problems if problem]
    more = len(found) - MOST_NAMED
    return found[:MOST_NAMED] + [f"{root}: {more:,} more images are wrong in such a way."] * (more > 0)


def annotations_file(split: str) -> str:
    """Return the name of the file of annotations in a prepared directory."""
    return f"{split}.json"


def _open_prepared(directory: str, split: str) -> PreparedImages:
    records, manifest = open_images("records", split, data_dir=directory), read_manifest(directory)
    assert manifest is not None  # `open_images` has read it
    if manifest.name != OBJECTS or not isinstance(records, RecordSource):
        raise UserError(
            f"{directory} was prepared as {manifest.name!r}, without boxes. Take a directory that python -m "
            "resnext_jax.detection.prepare coco wrote."
        )
    path = epath.Path(directory, annotations_file(split))
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != manifest.notes["annotations"][split]:
        raise UserError(
            f"{path} is missing or has other content than was written. Copy it again, or run the prepare command again."
        )
    return PreparedImages(read_annotations([(str(path), "")]), records)
