"""COCO's average precision and average recall, exactly as pycocotools computes them, in numpy.

One thing differs: pycocotools takes an object whose annotation has the id 0 for one that was not found.
Detections are matched to objects at all IoU thresholds and sizes of objects at once. Sources: the evaluation page of
cocodataset.org; pycocotools/cocoeval.py, `evaluateImg`, `accumulate` and `summarize`.
"""

import dataclasses
from collections.abc import Iterator

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

_LOW, _HIGH = np.array(list(AREAS.values())).T


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
    num_classes = len(data.class_names)
    precision = np.full((num_classes, len(AREAS), len(IOU_THRESHOLDS), len(RECALLS)), ABSENT)
    recall = np.full((num_classes, len(AREAS), len(MOST_DETECTIONS), len(IOU_THRESHOLDS)), ABSENT)
    num_objects = _count_objects(data.annotations, num_classes)
    matches = _match_all(data.annotations, found, len(data), MOST_DETECTIONS[-1])
    for label, group in _of_classes(matches):
        own = num_objects[label - 1]
        order = np.argsort(-group.score, kind="stable")
        true, false = group.true[..., order], group.false[..., order]
        for place, most in enumerate(MOST_DETECTIONS):
            taken = group.rank[order] < most
            hits, misses = true[..., taken].cumsum(-1), false[..., taken].cumsum(-1)
            last = hits[..., -1] if taken.any() else np.zeros(hits.shape[:-1])
            present = own > 0
            recall[label - 1, present, place] = last[present] / own[present, None]
            if most == MOST_DETECTIONS[-1]:
                for area in np.flatnonzero(present):
                    precision[label - 1, area] = _precision(hits[area], misses[area], int(own[area]))
    unfound = num_objects > 0
    empty = (precision[:, :, 0, 0] == ABSENT) & unfound  # of a class without a single detection
    precision[empty], recall[empty] = 0, 0
    return Scores(_summary(precision, recall), np.array([_mean(own[0]) for own in precision]))


def proposal_recall(data: DetectionData, proposals: Detections) -> dict[str, float]:
    """Return the recall of proposals, whatever the class: `ar100` and `ar1000`, means over the IoU thresholds.

    `recall50_100` and `recall50_1000` are those at IoU 0.5.
    """
    own = dataclasses.replace(data.annotations, label=np.ones_like(data.annotations.label))
    of_one = dataclasses.replace(proposals, label=np.ones(len(proposals), np.int32))
    num_objects = _count_objects(own, 1)[0, 0]
    hits = np.zeros((len(PROPOSALS), len(IOU_THRESHOLDS)))
    for match in _match_all(own, of_one, len(data), PROPOSALS[-1]):
        for place, most in enumerate(PROPOSALS):
            hits[place] += match.true[0][:, match.rank < most].sum(1)
    recall = hits / num_objects if num_objects else np.full_like(hits, ABSENT)
    result = {f"ar{most}": float(own.mean()) for most, own in zip(PROPOSALS, recall, strict=True)}
    return result | {f"recall50_{most}": float(own[0]) for most, own in zip(PROPOSALS, recall, strict=True)}


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
    """Detections of one class, in one image or in several: rank within the image, and right or wrong.

    A detection that is neither true nor false is left out: it lies on a crowd, or is of another size.
    """

    label: int
    score: Float64[np.ndarray, " detections"]
    rank: Int[np.ndarray, " detections"]
    true: Bool[np.ndarray, "areas thresholds detections"]
    false: Bool[np.ndarray, "areas thresholds detections"]


def _match_all(own: Annotations, found: Detections, num_images: int, most: int) -> Iterator[_Matches]:
    """Yield the matches of each class and image with detections, by class and then by image; the best come first."""
    order = np.lexsort((own.image, own.label))
    keys = own.label[order].astype(np.int64) * num_images + own.image[order]
    score = found.score.astype(np.float64)
    key = found.label.astype(np.int64) * num_images + found.image
    ranked = np.lexsort((-score, key))
    present, first = np.unique(key[ranked], return_index=True)
    starts, ends = np.searchsorted(keys, present), np.searchsorted(keys, present, "right")
    lasts = np.minimum(np.append(first[1:], len(ranked)), first + most)
    for place, start, end, one, last in zip(present.tolist(), starts, ends, first, lasts, strict=True):
        taken, objects = ranked[one:last], order[start:end]
        boxes = found.boxes[taken].astype(np.float64)
        area, crowd = own.area[objects], own.crowd[objects]
        ignored = crowd | (area < _LOW[:, None]) | (area > _HIGH[:, None])
        matched, excused = _match(_iou(boxes, own.boxes[objects], crowd), ignored, crowd)
        size = boxes[:, 2] * boxes[:, 3]
        other_size = (size < _LOW[:, None]) | (size > _HIGH[:, None])
        excused |= ~matched & other_size[:, None]
        rank = np.arange(len(taken))
        yield _Matches(place // num_images, score[taken], rank, matched & ~excused, ~matched & ~excused)


def _of_classes(matches: Iterator[_Matches]) -> Iterator[tuple[int, _Matches]]:
    """Yield the matches of each class in all images."""
    pending: list[_Matches] = []

    def joined() -> tuple[int, _Matches]:
        columns = ("score", "rank", "true", "false")
        arrays = (np.concatenate([getattr(one, name) for one in pending], -1) for name in columns)
        return pending[0].label, _Matches(pending[0].label, *arrays)

    for match in matches:
        if pending and match.label != pending[0].label:
            yield joined()
            pending = []
        pending.append(match)
    if pending:
        yield joined()


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
    lanes = (len(AREAS), len(thresholds))
    matched = np.zeros((*lanes, len(iou)), bool)
    excused = np.zeros((*lanes, len(iou)), bool)
    if not iou.size:
        return matched, excused
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
    inside = ~own.crowd & (own.area >= _LOW[:, None]) & (own.area <= _HIGH[:, None])
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
