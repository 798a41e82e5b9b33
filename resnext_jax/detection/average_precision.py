"""COCO's average precision and average recall, exactly as pycocotools computes them, in numpy.

One thing differs: pycocotools takes an object whose annotation has the id 0 for one that was not found.
Detections are matched to objects at all IoU thresholds and sizes of objects at once. Sources: the evaluation page of
cocodataset.org; pycocotools/cocoeval.py, `evaluateImg`, `accumulate` and `summarize`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int

from resnext_jax.detection.types import Annotations, DetectionData, Detections
from resnext_jax.errors import UserError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Square pixels of an object, both ends included: "small" is below 32 x 32, "large" above 96 x 96.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MOST_DETECTIONS = (1, 10, 100)  # of one class in one image
PROPOSALS = (100, 1000)
ABSENT = -1.0  # COCO's score of a class or a size without objects
_BELOW_ONE = 1 - 1e-10  # a perfect IoU may round to a little less than 1

_AREAS = np.array(list(AREAS.values()))


@dataclasses.dataclass(frozen=True)
class Scores:
    """Results of a detector.

    Attributes:
      summary: COCO's twelve numbers: ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small,
        ar_medium, ar_large; `ABSENT` where there are no such objects.
      ap_of_class: ap of each class.
    """

    summary: dict[str, float]
    ap_of_class: Float64[np.ndarray, " classes"]


def evaluate(data: DetectionData, found: Detections) -> Scores:
    """Return COCO's scores of the detections of all images of a data set.

    Equal scores of one class are ranked as they come, images in the order of the data set.
    """
    own, num_classes = data.annotations, len(data.class_names)
    precision = np.full((num_classes, len(AREAS), len(IOU_THRESHOLDS), len(RECALLS)), ABSENT)
    recall = np.full((num_classes, len(AREAS), len(MOST_DETECTIONS), len(IOU_THRESHOLDS)), ABSENT)
    num_objects = _count_objects(own, num_classes)
    for label in np.flatnonzero(num_objects.any(1)).tolist():
        matches = _match_class(own, found, label + 1, MOST_DETECTIONS[-1], _AREAS)
        order = np.argsort(-matches.score, kind="stable")
        hits, misses = matches.true[..., order].cumsum(-1), matches.false[..., order].cumsum(-1)
        for area in np.flatnonzero(num_objects[label]):
            count = int(num_objects[label, area])
            precision[label, area] = _precision(hits[area], misses[area], count)
            for place, most in enumerate(MOST_DETECTIONS):
                recall[label, area, place] = matches.true[area][:, matches.rank < most].sum(-1) / count
    return Scores(_summary(precision, recall), np.array([_mean(of_class[0]) for of_class in precision]))


def proposal_recall(data: DetectionData, proposals: Detections) -> dict[str, float]:
    """Return the recall of proposals, whatever the class: `ar100` and `ar1000`, means over the IoU thresholds.

    `recall50_100` and `recall50_1000` are those at IoU 0.5.
    """
    own = dataclasses.replace(data.annotations, label=np.ones_like(data.annotations.label))
    of_one = dataclasses.replace(proposals, label=np.ones(len(proposals), np.int32))
    num_objects = int(_count_objects(own, 1)[0, 0])
    matches = _match_class(own, of_one, 1, PROPOSALS[-1], _AREAS[:1])
    result = {}
    for most in PROPOSALS:
        hits = matches.true[0][:, matches.rank < most].sum(-1)
        recall = hits / num_objects if num_objects else np.full(len(hits), ABSENT)
        result |= {f"ar{most}": float(recall.mean()), f"recall50_{most}": float(recall[0])}
    return result


def require_each_once(images: Int[np.ndarray, " evaluated"], num_images: int) -> None:
    """Raise UserError if the evaluated images are not all images of the data set, each one once."""
    counts = np.bincount(images, minlength=num_images)
    if len(counts) != num_images or not (counts == 1).all():
        raise UserError(
            f"{(counts[:num_images] == 0).sum():,} of {num_images:,} images were not evaluated, and "
            f"{(counts > 1).sum():,} more than once: the scores would be wrong. Evaluate all of them again."
        )


@dataclasses.dataclass(frozen=True)
class _Matches:
    """Detections of one class: the rank of each within its image, and whether it is right or wrong.

    A detection that is neither true nor false does not count: it lies on a crowd, or is of another size.
    """

    score: Float64[np.ndarray, " detections"]
    rank: Int[np.ndarray, " detections"]
    true: Bool[np.ndarray, "areas thresholds detections"]
    false: Bool[np.ndarray, "areas thresholds detections"]


def _match_class(
    own: Annotations, found: Detections, label: int, most: int, areas: Float64[np.ndarray, "areas 2"]
) -> _Matches:
    """Return the matches of the best `most` detections of a class in each image, image after image.

    `areas` are the lowest and the highest area of objects that count.
    """
    low, high = areas[:, :1], areas[:, 1:]
    taken, objects = np.flatnonzero(found.label == label), np.flatnonzero(own.label == label)
    taken = taken[np.lexsort((-found.score[taken], found.image[taken]))]
    rank = np.arange(len(taken)) - np.searchsorted(found.image[taken], found.image[taken])
    taken, rank = taken[rank < most], rank[rank < most]
    image, image_of_object = found.image[taken], own.image[objects]
    boxes, true_boxes = found.boxes[taken].astype(np.float64), own.boxes[objects]
    area, crowd = own.area[objects], own.crowd[objects]
    ignored = crowd | (area < low) | (area > high)
    matched = np.zeros((len(areas), len(IOU_THRESHOLDS), len(taken)), bool)
    excused = np.zeros_like(matched)
    for one in np.unique(image_of_object).tolist():
        here = slice(*np.searchsorted(image, (one, one + 1)))
        there = slice(*np.searchsorted(image_of_object, (one, one + 1)))
        iou = _iou(boxes[here], true_boxes[there], crowd[there])
        matched[..., here], excused[..., here] = _match(iou, ignored[:, there], crowd[there])
    size = boxes[:, 2] * boxes[:, 3]
    other_size = (size < low) | (size > high)
    excused |= ~matched & other_size[:, None]
    return _Matches(found.score[taken].astype(np.float64), rank, matched & ~excused, ~matched & ~excused)


def _iou(
    found: Float64[np.ndarray, "detections 4"],
    true: Float64[np.ndarray, "objects 4"],
    crowd: Bool[np.ndarray, " objects"],
) -> Float64[np.ndarray, "detections objects"]:
    """Return the IoU of boxes (x, y, width, height), or, for a crowd, the share of the detection that lies inside."""
    corner, other = found[:, None, :2], true[None, :, :2]
    sides = np.minimum(corner + found[:, None, 2:], other + true[None, :, 2:]) - np.maximum(corner, other)
    inside = np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], 0)
    area = (found[:, 2] * found[:, 3])[:, None]
    total = np.where(crowd, area, area + true[:, 2] * true[:, 3] - inside)
    return np.divide(inside, total, out=np.zeros_like(inside), where=inside > 0)


def _match(
    iou: Float64[np.ndarray, "detections objects"],
    ignored: Bool[np.ndarray, "areas objects"],
    crowd: Bool[np.ndarray, " objects"],
) -> tuple[Bool[np.ndarray, "areas thresholds detections"], Bool[np.ndarray, "areas thresholds detections"]]:
    """Return which detections, the best first, are matched, and which of these to an object that does not count.

    A detection takes the object of the largest IoU that is free; an object that counts comes before one that does not,
    and of equal ones the last. Any number may share a crowd.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, _BELOW_ONE)
    lanes = (len(ignored), len(thresholds))
    matched = np.zeros((*lanes, len(iou)), bool)
    excused = np.zeros((*lanes, len(iou)), bool)
    free = np.ones((*lanes, iou.shape[1]), bool)
    counts, last = ~ignored[:, None], iou.shape[1] - 1
    rows, columns = np.indices(lanes)
    for place in np.flatnonzero(iou.max(1) >= thresholds[0]):
        possible = free & (iou[place] >= thresholds[:, None])
        best = np.where(possible & counts, iou[place], -1.0)
        best = np.where(best.max(-1, keepdims=True) >= 0, best, np.where(possible, iou[place], -1.0))
        taken = last - best[..., ::-1].argmax(-1)
        hit = possible.any(-1)
        matched[..., place] = hit
        excused[..., place] = hit & ignored[rows, taken]
        free[rows, columns, taken] &= ~hit | crowd[taken]
    return matched, excused


def _count_objects(own: Annotations, num_classes: int) -> Int[np.ndarray, "classes areas"]:
    inside = ~own.crowd & (own.area >= _AREAS[:, :1]) & (own.area <= _AREAS[:, 1:])
    return np.stack([np.bincount(own.label[area] - 1, minlength=num_classes) for area in inside], 1)


def _precision(
    hits: Int[np.ndarray, "thresholds detections"], misses: Int[np.ndarray, "thresholds detections"], num_objects: int
) -> Float64[np.ndarray, "thresholds recalls"]:
    """Return the best precision at each of `RECALLS` or above, from the counts down to each detection."""
    precision = hits / (hits + misses + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    best = np.append(best, np.zeros((len(best), 1)), 1)
    places = [np.searchsorted(own / num_objects, RECALLS) for own in hits]
    return np.take_along_axis(best, np.stack(places), 1)


def _mean(values: Float64[np.ndarray, "..."]) -> float:
    present = values[values > ABSENT]
    return float(present.mean()) if present.size else ABSENT


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    place = {round(threshold, 2): index for index, threshold in enumerate(IOU_THRESHOLDS.tolist())}
    result = {"ap": precision[:, 0]}
    result |= {f"ap{round(100 * level)}": precision[:, 0, place[level]] for level in (0.5, 0.75)}
    result |= {f"ap_{name}": precision[:, index] for index, name in enumerate(AREAS) if name != "all"}
    result |= {f"ar{most}": recall[:, 0, index] for index, most in enumerate(MOST_DETECTIONS)}
    result |= {f"ar_{name}": recall[:, index, -1] for index, name in enumerate(AREAS) if name != "all"}
    return {name: _mean(values) for name, values in result.items()}
