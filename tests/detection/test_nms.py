"""NMS against the loop over single boxes in NumPy, for all kinds of boxes and scores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.detection import nms as lib


def numpy_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, num_outputs: int, num_inputs: int) -> list[int]:
    """The definition, in float32: the best box, then what it does not cover, and so on."""
    limit = np.float32(threshold)
    order = [index for index in np.argsort(-scores, kind="stable")[:num_inputs] if scores[index] > -np.inf]
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2] + 1, 0), axis=1)
    kept = []
    remaining = np.array(order, int)
    while len(remaining) and len(kept) < num_outputs:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        start = np.maximum(boxes[best, :2], boxes[remaining, :2])
        shared = np.prod(np.maximum(np.minimum(boxes[best, 2:], boxes[remaining, 2:]) - start + 1, 0), axis=1)
        union = area[best] + area[remaining] - shared
        remaining = remaining[~(shared > 0) | (shared / np.maximum(union, 1e-30) <= limit)]
    return kept


def check(boxes, scores, threshold=0.7, num_outputs=300, num_inputs=6000):
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    suppress = jax.jit(lib.nms, static_argnums=(2, 3, 4))
    index, chosen = suppress(jnp.asarray(boxes), jnp.asarray(scores), threshold, num_outputs, num_inputs)
    count = int(chosen.sum())
    assert np.asarray(chosen)[:count].all()
    assert np.asarray(index)[:count].tolist() == numpy_nms(boxes, scores, threshold, num_outputs, num_inputs)
    assert not np.asarray(index)[count:].any()
    return count


def crowded(rng: np.random.Generator, count: int, span: float) -> np.ndarray:
    corner, side = rng.uniform(0, span, (count, 2)), rng.uniform(5, 60, (count, 2))
    return np.concatenate([corner, corner + side], axis=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "num_outputs"), [(1300, 1300), (1000, 40)])
def test_boxes_kept_are_those_of_the_loop(seed, count, num_outputs):
    rng = np.random.default_rng(seed)
    for span, threshold in ((60, 0.7), (300, 0.3)):
        check(crowded(rng, count, span), rng.normal(size=count), threshold, num_outputs, count)


@pytest.mark.parametrize("seed", range(5))
def test_ties_of_scores_and_of_overlaps_are_those_of_the_loop(seed):
    """Few scores, and corners on a coarse grid: many equal boxes, and many IoUs that equal the threshold."""
    rng = np.random.default_rng(seed)
    corner, side = rng.integers(0, 4, (1100, 2)), rng.integers(0, 5, (1100, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    for threshold in (0.5, 1 / 3, 0.0):
        check(boxes, rng.integers(0, 6, 1100), threshold, 1100, 1100)
    check(boxes, np.zeros(1100), 0.5, 1100, 1100)


def test_a_chain_of_overlaps_is_that_of_the_loop():
    """Each box covers the next, so every second one is kept: as many rounds as there are boxes in a block."""
    start = np.arange(1200)[:, None] * 2.0
    boxes = np.concatenate([start, 0 * start, start + 6, 0 * start], axis=1)
    assert check(boxes, -np.arange(1200), 0.5, 1200, 1200) == 600


def test_only_the_best_candidates_are_looked_at():
    rng = np.random.default_rng(0)
    boxes, scores = crowded(rng, 2000, 2000), rng.normal(size=2000)
    assert check(boxes, scores, 0.7, 2000, 700) <= 700


@pytest.mark.parametrize("missing", [-np.inf, np.nan])
def test_boxes_without_a_score_are_never_kept(missing):
    rng = np.random.default_rng(0)
    boxes, scores = crowded(rng, 600, 5000), rng.normal(size=600)
    scores[::3] = missing
    want = np.where(np.isnan(scores), -np.inf, scores)
    index, chosen = lib.nms(jnp.float32(boxes), jnp.float32(scores), 0.7, 600)
    assert index[chosen].tolist() == numpy_nms(boxes.astype(np.float32), want.astype(np.float32), 0.7, 600, 600)
    assert not (index[chosen] % 3 == 0).any()
    _, none = lib.nms(jnp.float32(boxes), jnp.full(600, missing, jnp.float32), 0.7, 10)
    assert not none.any()


def test_empty_boxes_suppress_nothing():
    boxes = [[5, 5, 1, 1], [5, 5, 1, 1], [0, 0, 9, 9], [5, 5, 4, 9]]
    assert check(boxes, [4, 3, 2, 1]) == 4


def test_images_of_a_batch_are_apart():
    rng = np.random.default_rng(0)
    boxes = np.stack([crowded(rng, 700, span) for span in (50, 5000)]).astype(np.float32)
    scores = rng.normal(size=(2, 700)).astype(np.float32)
    run = partial(lib.nms, iou_threshold=0.5, num_outputs=500)
    index, chosen = jax.jit(jax.vmap(run))(jnp.asarray(boxes), jnp.asarray(scores))
    for image in range(2):
        want = numpy_nms(boxes[image], scores[image], 0.5, 500, 700)
        assert index[image][chosen[image]].tolist() == want


@pytest.mark.slow
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(12_000, 2_000), (6_000, 300)])
def test_boxes_kept_of_coco_sizes_are_those_of_the_loop(num_inputs, num_outputs):
    rng = np.random.default_rng(0)
    check(crowded(rng, 28_728, 900), rng.normal(size=28_728), 0.7, num_outputs, num_inputs)
