"""Detections as arrays, as COCO's results JSON, and scored by pycocotools itself."""

import contextlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from resnext_jax.detection.average_precision import AREAS, MOST_DETECTIONS
from resnext_jax.detection.coco import read_json
from resnext_jax.detection.types import DetectionData, Detections
from resnext_jax.errors import UserError, raise_all
from resnext_jax.files import write_whole

_FIELDS = ("image_id", "category_id", "bbox", "score")
_FORMAT = "COCO's results are a JSON list of objects with image_id, category_id, bbox (x, y, width, height) and score."


def from_corners(
    boxes: Float[np.ndarray, "batch most 4"],
    score: Float[np.ndarray, "batch most"],
    label: Int[np.ndarray, "batch most"],
    image: Int[np.ndarray, " batch"],
    taken: Bool[np.ndarray, "batch most"],
) -> Detections:
    """Return the detections of a batch.

    Args:
      boxes: x1, y1, x2, y2 in pixels of the original images. The corners belong to the box: it is x2 - x1 + 1 wide.
      score, label: score and label (1 to num_classes) of each.
      image: index of each image in the data set.
      taken: False for the padding of a row, and in every place of a row that pads the batch.
    """
    rows, places = np.nonzero(taken)
    corners = boxes[rows, places]
    sides = corners[:, 2:] - corners[:, :2] + 1
    return Detections(image[rows], label[rows, places], score[rows, places], np.append(corners[:, :2], sides, 1))


def join(parts: Sequence[Detections]) -> Detections:
    """Return the detections of several batches or processes as one."""
    if not parts:
        none = np.zeros(0, np.int32)
        return Detections(none, none, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    return Detections(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def to_coco(data: DetectionData) -> dict[str, Any]:
    """Return a data set as the content of a file of annotations."""
    own = data.annotations
    columns = (own.id, data.image_ids[own.image], data.class_ids[own.label - 1], own.boxes, own.area, own.crowd)
    return {
        "images": [
            {"id": id_, "file_name": file, "height": height, "width": width}
            for id_, file, (height, width) in zip(
                data.image_ids.tolist(), data.files, data.size_px.tolist(), strict=True
            )
        ],
        "annotations": [
            {"id": id_, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for id_, image, label, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True)
        ],
        "categories": [
            {"id": id_, "name": name} for id_, name in zip(data.class_ids.tolist(), data.class_names, strict=True)
        ],
    }


def write_results(path: epath.PathLike, data: DetectionData, found: Detections) -> None:
    """Write COCO's results JSON, with every digit; raises UserError if the file cannot be written."""
    write_whole(epath.Path(path), json.dumps(_entries(data, found)) + "\n")


def read_results(path: epath.PathLike, data: DetectionData) -> Detections:
    """Return the detections in COCO's results JSON.

    Raises:
      UserError: with all problems: truncated, no list, entries with missing or wrong fields, images or classes that
        the data set does not have.
    """
    content = read_json(path, "COCO's results")
    if not isinstance(content, list):
        raise UserError(f"{path} is not a list. {_FORMAT} Give such a file.")
    rows, wrong = [], []
    for number, entry in enumerate(content):
        try:
            image, label, box, score = (entry[name] for name in _FIELDS)
            row = (*map(float, box), float(score))
            if len(row) != 5 or not np.isfinite(row).all() or type(image) is not int or type(label) is not int:
                raise ValueError
            rows.append((image, label, row))
        except (KeyError, TypeError, ValueError):
            wrong.append(f"number {number}, {str(entry)[:150]}")
    if wrong:
        raise UserError(f"{path}: {len(wrong):,} entries are not as they should be, the first {wrong[0]}. {_FORMAT}")
    numbers = np.array([row for _, _, row in rows], np.float64).reshape(-1, 5)
    columns, problems = [], []
    for column, (known, what) in enumerate(((data.image_ids, "image"), (data.class_ids, "category"))):
        ids = np.array([row[column] for row in rows], np.int64)
        places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        strangers = np.unique(ids[known[places] != ids])
        if strangers.size:
            problems.append(
                f"{path} has {strangers.size:,} {what} id(s) that the data set does not have, the first {strangers[0]} "
                f"(it has {len(known):,}, from {known[0]} to {known[-1]}). Give the results of this data set, or open "
                "the data set that they belong to."
            )
        columns.append(places.astype(np.int32))
    raise_all(problems)
    return Detections(columns[0], columns[1] + 1, numbers[:, 4], numbers[:, :4])


def evaluate_by_pycocotools(data: DetectionData, found: Detections) -> dict[str, float]:
    """Return the summary of `average_precision.evaluate` as pycocotools computes it, its error for the id 0 included.

    Raises:
      UserError: pycocotools is not installed, or it cannot evaluate because there is no detection.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UserError(
            "pycocotools is not installed: pip install 'resnext_jax[detection]', or leave evaluate.coco as it is; the "
            "scores are the same."
        ) from None
    if not len(found):
        raise UserError("pycocotools cannot evaluate without a detection. Lower --config.evaluate.min_score.")
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()  # its types know results in files only
        truth.dataset = {"info": {}, **to_coco(data)}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(_entries(data, found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    sizes = [name for name in AREAS if name != "all"]
    names = ["ap", "ap50", "ap75", *(f"ap_{name}" for name in sizes)]
    names += [*(f"ar{most}" for most in MOST_DETECTIONS), *(f"ar_{name}" for name in sizes)]
    return dict(zip(names, evaluation.stats.tolist(), strict=True))


def _entries(data: DetectionData, found: Detections) -> list[dict[str, Any]]:
    ids = (data.image_ids[found.image], data.class_ids[found.label - 1])
    columns = (*ids, found.boxes.astype(np.float64), found.score.astype(np.float64))
    return [dict(zip(_FIELDS, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]
