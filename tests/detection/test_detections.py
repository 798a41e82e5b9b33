"""From outputs of Fast R-CNN to the objects of an image, with loops over classes in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from test_nms import numpy_nms

from resnext_jax.detection import detections as lib

RNG = np.random.default_rng(0)
CLASSES, REGIONS, SIZE_PX = 5, 60, (200, 300)


def run(logits, deltas, regions, present=None, **options) -> lib.Detections:
    present = np.ones(len(regions), bool) if present is None else present
    arrays = (*(jnp.float32(array) for array in (logits, deltas, regions)), jnp.asarray(present), jnp.float32(SIZE_PX))
    return jax.jit(lambda *arrays: lib.find_objects(*arrays, **options))(*arrays)


def random_outputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    corner = RNG.uniform(0, 100, (REGIONS, 2))
    regions = np.concatenate([corner, corner + RNG.uniform(20, 80, (REGIONS, 2))], axis=1)
    return RNG.normal(size=(REGIONS, CLASSES + 1)) * 2, RNG.normal(size=(REGIONS, CLASSES, 4)), regions


def numpy_objects(logits, deltas, regions, present, smallest_score, iou_threshold) -> list[tuple]:
    """(score, label, box) of all objects, best first."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability = exponents / exponents.sum(axis=1, keepdims=True)
    found = []
    for label in range(1, logits.shape[1]):
        codes = deltas[:, label - 1] * [0.1, 0.1, 0.2, 0.2]
        size = regions[:, 2:] - regions[:, :2] + 1
        center = regions[:, :2] + size / 2 + codes[:, :2] * size
        size = size * np.exp(codes[:, 2:])
        boxes = np.concatenate([center - size / 2, center + size / 2 - 1], axis=1)
        boxes = np.clip(boxes, 0, (SIZE_PX[1] - 1, SIZE_PX[0] - 1) * 2)
        scores = np.where(present & (probability[:, label] > smallest_score), probability[:, label], -np.inf)
        kept = numpy_nms(boxes.astype(np.float32), scores.astype(np.float32), iou_threshold, REGIONS, REGIONS)
        found += [(probability[index, label], label, boxes[index]) for index in kept]
    return sorted(found, key=lambda entry: -entry[0])


def check(outputs, present, smallest_score, iou_threshold, num_detections) -> int:
    logits, deltas, regions = outputs
    want = numpy_objects(logits, deltas, regions, present, smallest_score, iou_threshold)
    options = dict(smallest_score=smallest_score, iou_threshold=iou_threshold, num_detections=num_detections)
    found = run(logits, deltas, regions, present, **options)
    count = int(found.present.sum())
    assert found.present[:count].all()
    assert count == min(len(want), num_detections)
    np.testing.assert_allclose(found.score[:count], [score for score, _, _ in want[:count]], rtol=1e-5)
    np.testing.assert_array_equal(found.label[:count], [label for _, label, _ in want[:count]])
    np.testing.assert_allclose(found.boxes[:count], [box for _, _, box in want[:count]], atol=1e-3)
    for rest in (found.score, found.label, found.boxes):
        assert not rest[count:].any()
    return len(want)


def test_objects_are_those_of_a_loop_over_classes():
    present = np.arange(REGIONS) % 7 > 0
    assert check(random_outputs(), present, 0.05, 0.3, 100) < 100  # all of them


def test_only_the_best_of_all_classes_stay():
    assert check(random_outputs(), np.ones(REGIONS, bool), 0.0, 0.5, 30) > 100


def test_one_region_may_be_two_objects():
    logits = np.log([[0.2, 0.5, 0.04, 0.26]])
    found = run(logits, np.zeros((1, 3, 4)), [[10, 20, 49, 59]])
    assert found.label.tolist() == [1, 3, 0]  # the second class has a score below 0.05
    np.testing.assert_allclose(found.score, [0.5, 0.26, 0], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[:2], [[10, 20, 49, 59]] * 2, atol=1e-4)


def test_an_image_without_proposals_has_no_objects():
    found = run(*random_outputs(), np.zeros(REGIONS, bool))
    assert not found.present.any()
    assert np.isfinite(found.boxes).all()
