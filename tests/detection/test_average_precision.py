"""average_precision.py: answers that are known by hand, and those of pycocotools."""

import dataclasses
from typing import Any

import data_sets
import numpy as np
import pytest

from resnext_jax.detection import average_precision, results
from resnext_jax.detection.types import DetectionData, Detections
from resnext_jax.errors import UserError

BOX = [100.0, 100.0, 100.0, 100.0]
OTHER = [500.0, 500.0, 100.0, 100.0]
ONE = pytest.approx(1, abs=1e-12)  # COCO adds 2e-16 to the number of detections


def ap_of(data: DetectionData, found: Detections) -> float:
    return average_precision.evaluate(data, found).summary["ap"]


def test_a_perfect_detection_has_ap_1():
    assert ap_of(data_sets.in_memory([{"box": BOX}]), data_sets.detections((0.3, BOX))) == ONE


def test_one_of_two_found_is_51_of_101_recalls():
    data = data_sets.in_memory([{"box": BOX}, {"box": OTHER}])
    assert ap_of(data, data_sets.detections((0.3, BOX))) == pytest.approx(51 / 101, abs=1e-12)


def test_a_better_scored_false_positive_halves_the_precision():
    found = data_sets.detections((0.9, OTHER), (0.3, BOX))
    assert ap_of(data_sets.in_memory([{"box": BOX}]), found) == pytest.approx(0.5, abs=1e-12)


def test_an_iou_of_3_quarters_counts_at_6_of_10_thresholds():
    data = data_sets.in_memory([{"box": [0, 0, 100, 100]}])
    summary = average_precision.evaluate(data, data_sets.detections((0.3, [0, 0, 100, 75]))).summary
    assert summary["ap"] == pytest.approx(0.6, abs=1e-12)
    assert (summary["ap50"], summary["ap75"]) == (ONE, ONE)


def test_detections_inside_a_crowd_are_no_mistakes():
    data = data_sets.in_memory([{"box": BOX}, {"box": [400, 400, 300, 300], "crowd": True}])
    found = data_sets.detections((0.9, [410, 410, 50, 50]), (0.8, [500, 500, 50, 50]), (0.7, BOX))
    assert ap_of(data, found) == ONE


def test_the_101st_detection_of_an_image_does_not_count():
    data = data_sets.in_memory([{"box": BOX}])
    others = [(0.9, OTHER)] * 100
    assert ap_of(data, data_sets.detections(*others, (0.3, BOX))) == 0
    assert ap_of(data, data_sets.detections(*others[:99], (0.3, BOX))) == pytest.approx(0.01, abs=1e-12)


def test_an_annotation_of_id_0_counts():
    data = data_sets.in_memory([{"box": BOX, "id": 0}])
    assert ap_of(data, data_sets.detections((0.3, BOX))) == ONE


def test_a_class_without_objects_is_left_out_of_the_mean():
    data = data_sets.in_memory([{"box": BOX}], num_classes=3)
    stray = data_sets.detections((0.9, OTHER), label=2)
    scores = average_precision.evaluate(data, results.join([data_sets.detections((0.3, BOX)), stray]))
    assert scores.summary["ap"] == ONE
    assert scores.ap_of_class.tolist() == [ONE, -1, -1]
    assert scores.summary["ap_small"] == -1  # there is no small object


def test_without_detections_all_is_zero():
    summary = average_precision.evaluate(data_sets.in_memory([{"box": BOX}]), results.join([])).summary
    assert summary["ap"] == summary["ar100"] == 0


def test_an_object_counts_once_in_its_size():
    data = data_sets.in_memory([{"box": [0, 0, 20, 20]}, {"box": [200, 200, 50, 50]}, {"box": [400, 400, 200, 200]}])
    summary = average_precision.evaluate(data, data_sets.detections((0.3, [200, 200, 50, 50]))).summary
    assert [summary[f"ap_{size}"] for size in ("small", "medium", "large")] == [0, ONE, 0]


def random_set(seed: int) -> tuple[DetectionData, Detections]:
    """30 images of 6 classes; crowds, ties in scores and boxes, absent classes, crowded images, all sizes."""
    rng = np.random.default_rng(seed)
    num_images, num_classes = 30, 6
    boxes, columns = [], []
    for image in range(num_images):
        for _ in range(rng.integers(0, 12)):
            sides = rng.choice([8.0, 20, 32, 60, 96, 150]) * rng.uniform(0.7, 1.4, 2)
            box = [*rng.integers(0, 400, 2).tolist(), *np.round(sides).tolist()]
            label = int(rng.integers(1, num_classes - 1))  # the last two classes have no object
            area = float(rng.choice([1.0, 0.6])) * box[2] * box[3]
            boxes.append({"box": box, "image": image, "label": label, "crowd": rng.random() < 0.15, "area": area})
            for _ in range(rng.integers(0, 5)):
                moved = np.array(box) + rng.integers(-6, 7, 4) * rng.integers(0, 2)
                moved[2:] = np.maximum(moved[2:], 1)
                label_found = label if rng.random() < 0.8 else int(rng.integers(1, num_classes + 1))
                columns.append((image, label_found, round(rng.random(), 1), moved.tolist()))
        columns += [
            (image, 1, round(rng.random(), 2), [*rng.integers(0, 400, 2), *rng.integers(5, 150, 2)])
            for _ in range(150 if image == 3 else 3)
        ]
    rng.shuffle(columns)
    image, label, score, corners = zip(*columns, strict=True)
    found = Detections(np.array(image), np.array(label), np.array(score), np.array(corners, np.float64))
    return data_sets.in_memory(boxes, num_images, num_classes), found


@pytest.mark.parametrize("seed", range(6))
def test_random_sets_score_as_with_pycocotools(seed):
    data, found = random_set(seed)
    assert data.annotations.crowd.any()
    assert np.bincount(found.image[found.label == 1]).max() > 100
    ours = average_precision.evaluate(data, found).summary
    theirs = results.evaluate_by_pycocotools(data, found)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=1e-12)
    assert 0.05 < ours["ap"] < 0.95


def test_pycocotools_misses_the_object_of_id_0_and_we_do_not():
    data, found = random_set(0)
    from_0 = dataclasses.replace(data.annotations, id=data.annotations.id - 1)
    renumbered = dataclasses.replace(data, annotations=from_0)
    assert (from_0.id == 0).sum() == 1
    assert average_precision.evaluate(renumbered, found).summary == average_precision.evaluate(data, found).summary
    alone = data_sets.in_memory([{"box": BOX, "id": 0}])
    assert results.evaluate_by_pycocotools(alone, data_sets.detections((0.3, BOX)))["ap"] == 0


def test_the_processes_that_found_detections_do_not_matter():
    data, found = random_set(3)
    parts = []
    for process in (2, 0, 1):
        own = found.image % 3 == process
        parts.append(Detections(*(column[own] for column in vars(found).values())))
    assert (
        average_precision.evaluate(data, results.join(parts)).summary == average_precision.evaluate(data, found).summary
    )


def test_float32_detections_score_as_their_float64_values():
    data, found = random_set(1)
    narrow = dataclasses.replace(found, boxes=found.boxes.astype(np.float32), score=found.score.astype(np.float32))
    wide = dataclasses.replace(narrow, boxes=narrow.boxes.astype(np.float64), score=narrow.score.astype(np.float64))
    assert average_precision.evaluate(data, narrow).summary == average_precision.evaluate(data, wide).summary


def test_proposals_have_the_recall_of_pycocotools():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data, found = random_set(2)
    truth: Any = COCO()
    truth.dataset = {"info": {}, **results.to_coco(data)}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results._entries(data, found)), "bbox")
    evaluation.params.useCats, evaluation.params.maxDets = 0, [100, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0]  # thresholds, 100 and 1000 proposals
    ours = average_precision.proposal_recall(data, found)
    np.testing.assert_allclose([ours["ar100"], ours["ar1000"]], recall.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose([ours["recall50_100"], ours["recall50_1000"]], recall[0], rtol=0, atol=1e-12)
    assert 0.2 < ours["ar100"] < ours["ar1000"] < 1


def test_images_left_out_or_evaluated_twice_are_told():
    average_precision.require_each_once(np.array([2, 0, 1]), 3)
    with pytest.raises(UserError, match=r"1 of 3 images were not evaluated, and 1 more than once"):
        average_precision.require_each_once(np.array([2, 0, 2]), 3)
