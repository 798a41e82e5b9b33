"""From outputs of the RPN to proposals, step by step in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_nms import numpy_nms

from resnext_jax.detection import anchors as grids
from resnext_jax.detection import proposals as lib

RNG = np.random.default_rng(0)
GRID = grids.grid(8, 9, 16, grids.cell_anchors(scales=(1, 2, 4)))
COUNT = len(GRID.anchors)


def run(logits, deltas, size_px=(100, 130), scale=1.0, **options) -> lib.Proposals:
    propose = jax.jit(partial(lib.propose, grid=GRID, **options))
    outputs, size_px, scale = (jnp.float32(logits), jnp.float32(deltas)), jnp.float32(size_px), jnp.float32(scale)
    return propose(*outputs, size_px=size_px, scale=scale)


def numpy_boxes(deltas: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    anchors = GRID.anchors.astype(np.float64)
    size = anchors[:, 2:] - anchors[:, :2] + 1
    center = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    size = size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16)))
    boxes = np.concatenate([center - size / 2, center + size / 2 - 1], axis=1)
    return np.clip(boxes, 0, (size_px[1] - 1, size_px[0] - 1) * 2)


@pytest.mark.parametrize(("num_candidates", "num_proposals"), [(6000, 300), (150, 300), (6000, 20)])
def test_proposals_are_clipped_filtered_and_suppressed(num_candidates, num_proposals):
    size_px, scale = (100, 130), 0.7
    logits, deltas = RNG.normal(size=COUNT), RNG.normal(size=(COUNT, 4)) * 0.3
    boxes = numpy_boxes(deltas, size_px)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    origin = GRID.origin
    keep = (sides.min(axis=1) >= 16 * scale) & (origin[:, 0] < 100) & (origin[:, 1] < 130)
    assert 0 < keep.sum() < COUNT
    scores = np.where(keep, logits, -np.inf).astype(np.float32)
    want = numpy_nms(boxes.astype(np.float32), scores, 0.7, num_proposals, num_candidates)

    found = run(logits, deltas, size_px, scale, num_candidates=num_candidates, num_proposals=num_proposals)
    count = int(found.present.sum())
    assert found.present[:count].all()
    assert count == len(want)
    np.testing.assert_allclose(found.boxes[:count], boxes[want], atol=1e-3)
    np.testing.assert_allclose(found.score[:count], 1 / (1 + np.exp(-logits[want])), rtol=1e-5)
    assert not found.boxes[count:].any()
    assert not found.score[count:].any()


@pytest.mark.parametrize(("scale", "is_there"), [(1.0, True), (1.01, False), (0.6, True)])
def test_the_shortest_side_counts_in_the_original_image(scale, is_there):
    """Boxes of 16x16 px in the resized image: the others have no score."""
    anchor = np.flatnonzero((GRID.anchors == [16, 16, 31, 31]).all(axis=1))[0]
    logits = np.full(COUNT, -np.inf)
    logits[anchor] = 1
    found = run(logits, np.zeros((COUNT, 4)), scale=scale)
    assert bool(found.present.any()) is is_there


def test_no_gradient_goes_through_proposals():
    propose = partial(lib.propose, grid=GRID, size_px=jnp.float32([100, 130]), scale=jnp.float32(1))
    deltas = jnp.zeros((COUNT, 4))
    grad = jax.jit(jax.grad(lambda deltas: propose(jnp.zeros(COUNT), deltas).boxes.sum()))(deltas)
    assert not grad.any()
