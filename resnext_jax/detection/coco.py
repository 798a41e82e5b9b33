"""Read and check annotations in COCO's format.

A file is a JSON object with `images` (id, file_name, height, width), `annotations` (id, image_id, category_id, bbox as
x, y, width, height; area and iscrowd where they are known) and `categories` (id, name).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float64, Int, Int64

from resnext_jax.detection.types import Annotations, DetectionData
from resnext_jax.errors import UserError, raise_all

_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score")
_MOST_ID = 2**63
_COORDINATE_LIMIT = 1e9  # beyond it nothing is a pixel
_FORMAT = "COCO's format is a JSON object with the lists images, annotations and categories."


def read_json(path: epath.PathLike, what: str) -> Any:
    """Return the content of a JSON file of annotations or results.

    Args:
      path: the file.
      what: what it should be, for messages.

    Raises:
      UserError: it cannot be read, or is truncated or no JSON.
    """
    try:
        return json.loads(epath.Path(path).read_bytes(), object_hook=_without_outlines)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} could not be read: {reason}. It should be {what}; give the right path.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not complete JSON ({str(error)[:200]}). It should be {what}; copy or write it again."
        ) from None


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    """Keep of an annotation what is read here: the outlines are nine tenths of COCO's files."""
    if "bbox" in entry and "image_id" in entry:
        return {name: entry[name] for name in _FIELDS if name in entry}
    return entry


def read_annotations(parts: Sequence[tuple[str, str]]) -> DetectionData:
    """Return the images and boxes of one or more files of annotations, joined.

    Boxes that are empty or outside of their image stay: COCO's evaluation counts them. `notes` says how many training
    leaves out.

    Args:
      parts: for each file its path and the folder of its images, relative to the directory of all images.

    Raises:
      UserError: with all problems of all files: truncated, without images, annotations or classes, entries with missing
        or wrong fields, unknown or duplicate ids.
    """
    problems: list[str] = []
    images, entries, classes = [], [], None
    for path, folder in parts:
        content = read_json(path, "a file of annotations in COCO's format")
        lists = _lists(content, path)
        own = _checked(lists["categories"], _class_row, path, "class(es)", problems)
        if classes is not None and sorted(own) != sorted(classes):
            problems.append(f"{path} has other classes than {parts[0][0]}. Files of one split need equal classes.")
        classes = own if classes is None else classes
        images += _checked(lists["images"], partial(_image_row, folder=folder), path, "image(s)", problems)
        entries += _checked(lists["annotations"], _annotation_row, path, "annotation(s)", problems)
    where = " and ".join(path for path, _ in parts)
    classes = sorted(classes or ())
    raise_all(problems)
    missing = {"classes": classes, "images": images, "annotations": entries}
    raise_all(
        [
            f"{where}: there are no {what}. {_FORMAT} Give a file with some."
            for what, rows in missing.items()
            if not rows
        ]
    )
    names = [name for _, name in classes]
    if repeated := len(names) - len(set(names)):
        problems.append(f"{where}: {repeated} class name(s) come more than once. Give every class its own name.")
    images.sort(key=lambda row: row[0])
    image_ids, class_ids = (np.array([row[0] for row in rows], np.int64) for rows in (images, classes))
    table = np.array([row[:3] for row in entries], np.int64)
    places = [
        _places(ids, table[:, column], f"{where}: annotation(s) of an unknown {name}", table[:, 0], problems)
        for column, name, ids in ((1, "image_id", image_ids), (2, "category_id", class_ids))
    ]
    for name, ids in (("images", image_ids), ("classes", class_ids), ("annotations", table[:, 0])):
        problems += _duplicates(ids, name, where)
    raise_all(problems)
    order = np.argsort(places[0], kind="stable")
    numbers = np.array([row[3:] for row in entries], np.float64)[order]
    annotations = Annotations(
        table[order, 0],
        places[0][order].astype(np.int32),
        places[1][order].astype(np.int32) + 1,
        np.ascontiguousarray(numbers[:, :4]),
        numbers[:, 4].copy(),
        numbers[:, 5] != 0,
    )
    size_px = np.array([row[1:3] for row in images], np.int32)
    files = tuple(row[3] for row in images)
    notes = _degenerate(annotations, size_px, files, where)
    return DetectionData(tuple(names), class_ids, image_ids, size_px, files, annotations, notes)


def subset(data: DetectionData, images: Int[np.ndarray, " images"]) -> DetectionData:
    """Return some images, given by ascending index, with their boxes."""
    own, left_out = data.annotations, len(data) - len(images)
    kept = np.isin(own.image, images)
    columns = {name: column[kept] for name, column in vars(own).items()}
    columns["image"] = np.searchsorted(images, columns["image"]).astype(np.int32)
    return dataclasses.replace(
        data,
        image_ids=data.image_ids[images],
        size_px=data.size_px[images],
        files=tuple(data.files[index] for index in images.tolist()),
        annotations=Annotations(**columns),
        notes=(*data.notes, f"{left_out:,} of {len(data):,} images are left out, with their boxes."),
    )


def kept_in_training(
    boxes: Float64[np.ndarray, "annotations 4"], sizes_px: Int64[np.ndarray, "annotations 2"]
) -> Bool[np.ndarray, " annotations"]:
    """Return which boxes (x, y, width, height) have a part inside of their image (height, width)."""
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes_px[:, ::-1])
    inside = (boxes[:, 2:] > 0) & (high > low)
    return inside[:, 0] & inside[:, 1]


def _degenerate(own: Annotations, size_px: np.ndarray, files: tuple[str, ...], where: str) -> tuple[str, ...]:
    lost = np.flatnonzero(~kept_in_training(own.boxes, size_px[own.image].astype(np.int64)))
    if not lost.size:
        return ()
    first = lost[0]
    height, width = size_px[own.image[first]].tolist()
    return (
        f"{where}: {lost.size:,} of {len(own):,} boxes are empty or outside of their image; training leaves them out. "
        f"The first is annotation {own.id[first]} of {files[own.image[first]]} ({width} x {height} px): "
        f"{own.boxes[first].tolist()}.",
    )


def _lists(content: Any, path: str) -> dict[str, list[Any]]:
    lists: dict[str, Any] = dict.fromkeys(("images", "annotations", "categories"))
    if isinstance(content, dict):
        lists = {name: content.get(name) for name in lists}
    wrong = [name for name, own in lists.items() if not isinstance(own, list)]
    if wrong:
        raise UserError(f"{path} has no list {', '.join(wrong)}. {_FORMAT} Results of a detector are another file.")
    return lists


def _checked(
    entries: Iterable[Any], row_of: Callable[[dict], tuple], path: str, what: str, problems: list[str]
) -> list[tuple]:
    """Return the rows of the entries; adds one sentence for those that are wrong."""
    rows, count, first = [], 0, ""
    for number, entry in enumerate(entries):
        try:
            rows.append(row_of(entry))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            first = first or f"number {number}, {str(entry)[:150]}: {reason}"
            count += 1
    if count:
        problems.append(f"{path}: {count:,} {what} are not as they should be; the first is {first}. Correct the file.")
    return rows


def _id(entry: dict, name: str) -> int:
    value = entry[name]
    if not isinstance(value, int) or isinstance(value, bool) or not -_MOST_ID <= value < _MOST_ID:
        raise ValueError(f"{name} must be a whole number")
    return value


def _class_row(entry: dict) -> tuple[int, str]:
    if not isinstance(entry["name"], str):
        raise ValueError("name must be a text")
    return _id(entry, "id"), entry["name"]


def _image_row(entry: dict, folder: str) -> tuple[int, int, int, str]:
    height, width = _id(entry, "height"), _id(entry, "width")
    if not (0 < height < 2**31 and 0 < width < 2**31):
        raise ValueError("height and width must be 1 or more")
    if not isinstance(entry["file_name"], str) or not entry["file_name"]:
        raise ValueError("file_name must be a text")
    return _id(entry, "id"), height, width, f"{folder}/{entry['file_name']}" if folder else entry["file_name"]


def _annotation_row(entry: dict) -> tuple:
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError("bbox must be x, y, width and height")
    area = entry.get("area")
    x, y, width, height = (float(value) for value in box)
    area = width * height if area is None else float(area)
    if not all(math.isfinite(value) and abs(value) < _COORDINATE_LIMIT for value in (x, y, width, height)):
        raise ValueError("bbox must be four numbers of pixels")
    if not math.isfinite(area):
        raise ValueError("area must be a number")
    crowd = bool(entry.get("iscrowd", 0))
    return _id(entry, "id"), _id(entry, "image_id"), _id(entry, "category_id"), x, y, width, height, area, crowd


def _places(
    known: Int64[np.ndarray, " known"],
    ids: Int64[np.ndarray, " ids"],
    what: str,
    numbers: Int64[np.ndarray, " ids"],
    problems: list[str],
) -> Int64[np.ndarray, " ids"]:
    """Return the index of each id in the sorted `known`; adds a sentence for those that are not there."""
    places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    absent = np.flatnonzero(known[places] != ids)
    if absent.size:
        problems.append(
            f"{what}: {absent.size:,}; the first is annotation {numbers[absent[0]]} with {ids[absent[0]]}. Known are "
            f"{len(known):,} ids from {known[0]} to {known[-1]}. Remove these annotations, or add what they belong to."
        )
    return places


def _duplicates(ids: Int64[np.ndarray, " ids"], what: str, where: str) -> list[str]:
    values, counts = np.unique(ids, return_counts=True)
    twice = values[counts > 1]
    if not twice.size:
        return []
    return [f"{where}: {twice.size:,} id(s) of {what} come more than once, the first {twice[0]}. Number them anew."]
