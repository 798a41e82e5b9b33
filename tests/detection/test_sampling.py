"""Which anchors and regions are trained, by hand and against loops in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from resnext_jax.detection import anchors as grids
from resnext_jax.detection import sampling as lib

RNG = np.random.default_rng(0)
GRID = grids.grid(12, 14, 16, grids.cell_anchors(scales=(2, 4, 8)))
SIZE_PX = jnp.float32([180, 220])
# Of 8 px, where four anchors tie for the best; like an anchor; in the middle between two anchors; anywhere; padding.
BOXES = np.array(
    [[120, 72, 127, 79], [102, 57, 137, 86], [48, 24, 111, 87], [40, 40, 103, 95], [150, 135, 215, 178], [0, 0, 0, 0]],
    np.float32,
)
OBJECT = np.array([True, True, True, True, True, False])


def numpy_iou(a: np.ndarray, b: np.ndarray) -> np.floating:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return np.float32(shared) / np.float32(area - shared)


def numpy_labels(candidate: np.ndarray) -> np.ndarray:
    overlap = np.array([[numpy_iou(anchor, box) for box in BOXES[OBJECT]] for anchor in GRID.anchors])
    overlap[~candidate] = 0
    label = np.full(len(overlap), -1)
    label[overlap.max(axis=1) < np.float32(0.3)] = 0
    for column in overlap.T:
        label[column == column.max()] = 1
    label[overlap.max(axis=1) >= np.float32(0.7)] = 1
    label[~candidate] = -1
    return label


def inside() -> np.ndarray:
    return np.asarray(grids.inside(GRID, SIZE_PX))


def sample_anchors(seed: int, candidate=None, is_object=OBJECT, **options) -> lib.AnchorSample:
    candidate = inside() if candidate is None else candidate
    arguments = (jnp.asarray(GRID.anchors), jnp.asarray(candidate), jnp.asarray(BOXES), jnp.asarray(is_object))
    return jax.jit(partial(lib.sample_anchors, **options))(jax.random.key(seed), *arguments)


def test_labels_of_anchors_are_those_of_the_rules():
    candidate = inside()
    label, match = jax.jit(lib.label_anchors)(
        jnp.asarray(GRID.anchors), jnp.asarray(candidate), jnp.asarray(BOXES), jnp.asarray(OBJECT)
    )
    want = numpy_labels(candidate)
    assert (want == 1).sum() > 4
    assert (want == -1).sum() > (~candidate).sum()
    np.testing.assert_array_equal(label, want)
    for anchor in np.flatnonzero(want == 1):
        overlaps = [numpy_iou(GRID.anchors[anchor], box) for box in BOXES[OBJECT]]
        assert match[anchor] == np.argmax(overlaps)


def test_all_anchors_that_tie_for_the_best_of_a_box_are_positive():
    anchors = jnp.float32([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    boxes = jnp.float32([[10, 0, 24, 9], [5, 0, 14, 9]])  # the second overlaps only the first anchor
    everything = jnp.ones(3, bool)
    label, _ = lib.label_anchors(anchors, everything, boxes, jnp.array([True, False]))
    np.testing.assert_array_equal(label, [0, 1, 0])
    boxes = jnp.float32([[5, 0, 24, 9], [300, 300, 310, 310]])  # 5 px of the first and of the second anchor
    label, _ = lib.label_anchors(anchors, everything, boxes, jnp.array([True, True]))
    np.testing.assert_array_equal(label, [1, 1, 0])  # and none is the best of the box that no anchor touches


def test_half_of_the_anchors_are_positive_at_most():
    label = numpy_labels(inside())
    num_positive = (label == 1).sum()
    sample = sample_anchors(0, num_samples=8)
    assert (np.asarray(sample.label) == 1).sum() == 4 < num_positive
    np.testing.assert_array_equal(label[sample.index], sample.label)
    assert sample.used.all()
    assert len(set(np.asarray(sample.index).tolist())) == 8

    filled = sample_anchors(0, num_samples=100)  # fewer than 50 positives: negatives fill the rest
    assert (np.asarray(filled.label) == 1).sum() == num_positive < 50
    assert filled.used.all()

    everything = sample_anchors(0, num_samples=10_000)
    assert everything.used.sum() == (label >= 0).sum()
    np.testing.assert_array_equal(np.sort(everything.index[everything.used]), np.flatnonzero(label >= 0))


def test_an_image_without_objects_has_only_negative_anchors():
    sample = sample_anchors(0, is_object=np.zeros(6, bool))
    assert sample.used.all()
    assert not sample.label.any()
    assert np.isfinite(sample.target).all()


def test_every_anchor_of_a_label_is_drawn_equally_often():
    positive, negative = np.arange(60) < 10, (np.arange(60) >= 20) & (np.arange(60) < 50)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: lib.draw(key, jnp.asarray(positive), jnp.asarray(negative), 12, 4)))
    index, used = draw(keys)
    assert used.all()
    counts = np.bincount(np.asarray(index).ravel(), minlength=60)
    np.testing.assert_allclose(counts[positive], 4000 * 4 / 10, rtol=0.15)
    np.testing.assert_allclose(counts[negative], 4000 * 8 / 30, rtol=0.2)
    assert counts.sum() == counts[positive | negative].sum()


def test_a_sample_depends_on_the_key_alone():
    first, second, other = (sample_anchors(seed, num_samples=8).index.tolist() for seed in (3, 3, 4))
    assert first == second != other


CROWDS = np.array([[10, 10, 49, 49], [60, 60, 99, 99], [100, 100, 199, 199], [0, 0, 0, 0]], np.float32)
LABEL, CROWD = np.array([5, 2, 7, 0], np.int32), np.array([False, False, True, False])


def sample_regions(seed: int, proposals, present=None, **options) -> lib.RegionSample:
    proposals = jnp.float32(proposals)
    present = jnp.ones(len(proposals), bool) if present is None else jnp.asarray(present)
    arguments = (proposals, present, jnp.asarray(CROWDS), jnp.asarray(LABEL), jnp.asarray(CROWD))
    return jax.jit(partial(lib.sample_regions, **options))(jax.random.key(seed), *arguments)


def by_box(sample: lib.RegionSample) -> dict[tuple, tuple[int, list[float]]]:
    rows = zip(*(np.asarray(array) for array in sample), strict=True)
    return {tuple(map(int, box)): (int(label), target.tolist()) for box, label, target, used in rows if used}


def test_regions_get_class_and_box_of_the_nearest_object():
    # IoU 0.5 with the first object (40x20 of 40x40), just below, in the second, far from all, and no proposal.
    proposals = [[10, 10, 49, 29], [10, 10, 49, 28], [62, 60, 99, 99], [200, 10, 230, 50], [0, 0, 3, 3]]
    found = by_box(sample_regions(0, proposals, [True] * 4 + [False], foreground_share=1.0))
    labels = {box: label for box, (label, _) in found.items()}
    objects = {(10, 10, 49, 49): 5, (60, 60, 99, 99): 2}  # the true boxes are regions too; the crowd is none
    assert labels == objects | {
        (10, 10, 49, 29): 5,
        (10, 10, 49, 28): 0,
        (62, 60, 99, 99): 2,
        (200, 10, 230, 50): 0,
    }
    # The center goes down by 10 of 20 px, the height doubles; in units of 0.1 and 0.2.
    np.testing.assert_allclose(found[10, 10, 49, 29][1], [0, 5, 0, np.log(2) / 0.2], rtol=1e-5)
    np.testing.assert_allclose(found[60, 60, 99, 99][1], np.zeros(4), atol=1e-6)


def test_regions_in_a_crowd_are_not_background():
    # 100 %, 70 % and 71 % of the area inside the crowd.
    proposals = [[110, 110, 120, 120], [30, 100, 129, 199], [170, 100, 269, 199], [71, 100, 170, 199]]
    inside = [np.clip(min(199, x2) - max(100, x1) + 1, 0, 100) for x1, _, x2, _ in proposals]
    assert inside == [11, 30, 30, 71]
    labels = {box: label for box, (label, _) in by_box(sample_regions(0, proposals, foreground_share=1.0)).items()}
    assert (110, 110, 120, 120) not in labels
    assert (71, 100, 170, 199) not in labels
    assert labels[30, 100, 129, 199] == labels[170, 100, 269, 199] == 0


def test_a_quarter_of_the_regions_are_objects_at_most():
    near = np.array([10, 10, 49, 49], np.float32) + RNG.integers(-2, 3, (50, 4))
    far = np.array([200, 10, 230, 50], np.float32) + RNG.integers(-9, 10, (100, 4))
    sample = sample_regions(0, np.concatenate([near, far]))
    assert sample.used.all()
    assert len(sample.label) == 64
    assert (np.asarray(sample.label) > 0).sum() == 16


def test_too_few_regions_leave_rows_unused():
    sample = sample_regions(0, [[200, 10, 230, 50]], num_samples=8)
    assert sample.used.tolist() == [True] * 3 + [False] * 2  # one proposal and two true boxes, of five rows
