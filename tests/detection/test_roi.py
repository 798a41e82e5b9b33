"""RoI pooling against loops by its definition, RoIAlign against torchvision's Python code and by hand.

The compiled operators of torchvision may be missing. Its `roi_pool` has no other code, so nothing compares with it.
"""

import importlib
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.detection import roi as lib

RNG = np.random.default_rng(0)


def random_boxes(count: int, height_px: int, width_px: int) -> np.ndarray:
    """Regions of all lengths, from less than a cell to the whole image, clipped to it."""
    corner = RNG.uniform(0, 1, (count, 2)) * (width_px, height_px)
    side = RNG.uniform(0, 1, (count, 2)) ** 3 * (width_px, height_px)
    boxes = np.concatenate([corner, corner + side], axis=1)
    boxes[0] = 0, 0, width_px - 1, height_px - 1
    boxes[1] = width_px - 1, height_px - 1, width_px - 1, height_px - 1
    return np.clip(boxes, 0, (width_px - 1, height_px - 1) * 2).astype(np.float32)


def numpy_pool(features: np.ndarray, box: np.ndarray, stride_px: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition, bin by bin in float32: values, and the flat place of each (-1: a bin without cells)."""
    height, width, channels = features.shape
    x1, y1, x2, y2 = (math.floor(corner / stride_px + 0.5) for corner in box.tolist())
    lengths = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    bin_height, bin_width = (np.float32(length) / np.float32(bins) for length in lengths)
    pooled, winner = np.zeros((bins, bins, channels), np.float32), np.full((bins, bins, channels), -1)
    for row in range(bins):
        top, bottom = int(np.floor(np.float32(row) * bin_height)), int(np.ceil(np.float32(row + 1) * bin_height))
        top, bottom = (min(max(edge + y1, 0), height) for edge in (top, bottom))
        for column in range(bins):
            left, right = np.float32(column) * bin_width, np.float32(column + 1) * bin_width
            left, right = (min(max(int(edge) + x1, 0), width) for edge in (np.floor(left), np.ceil(right)))
            if bottom <= top or right <= left:
                continue
            window = features[top:bottom, left:right].reshape(-1, channels)
            best = window.argmax(axis=0)
            pooled[row, column] = window.max(axis=0)
            winner[row, column] = (top + best // (right - left)) * width + left + best % (right - left)
    return pooled, winner


def check_pool(size_px: tuple[int, int], channels: int, count: int, padding: int = 3, bins: int = 14, stride: int = 16):
    height, width = (math.ceil(size / stride) for size in size_px)
    boxes = random_boxes(count, *size_px)
    features = RNG.normal(size=(height, width, channels)).astype(np.float32)
    features[RNG.uniform(size=features.shape) < 0.5] = 0  # as after a ReLU: many equals
    weight = RNG.normal(size=(count, bins, bins, channels)).astype(np.float32)
    want, want_grad = np.zeros_like(weight), np.zeros((height * width, channels), np.float64)
    for number, box in enumerate(boxes):
        want[number], winner = numpy_pool(features, box, stride, bins)
        for channel in range(channels):
            index = winner[..., channel].ravel()
            np.add.at(want_grad[:, channel], index[index >= 0], weight[number, ..., channel].ravel()[index >= 0])

    padded = np.pad(features, ((0, padding), (0, padding), (0, 0)), constant_values=9)
    size_cells = jnp.int32([height, width])

    @jax.jit
    def pool(padded, boxes, weight):
        pooled, pullback = jax.vjp(lambda x: lib.roi_max_pool(x, boxes, size_cells, stride, bins), padded)
        return pooled, pullback(weight)[0]

    pooled, grad = pool(jnp.asarray(padded), jnp.asarray(boxes), jnp.asarray(weight))
    np.testing.assert_array_equal(pooled, want)
    np.testing.assert_allclose(grad[:height, :width], want_grad.reshape(features.shape), atol=2e-4)
    assert not grad[height:].any()
    assert not grad[:, width:].any()


@pytest.mark.parametrize(("size_px", "padding"), [((100, 140), 0), ((201, 328), 2), ((17, 600), 3)])
def test_pooling_and_its_gradient_are_those_of_the_loop(size_px, padding):
    check_pool(size_px, channels=3, count=12, padding=padding)


def test_pooling_of_few_bins_and_small_strides():
    check_pool((61, 47), channels=2, count=12, bins=5, stride=4)


@pytest.mark.slow
def test_pooling_of_coco_sizes_is_that_of_the_loop():
    check_pool((600, 1000), channels=16, count=64, padding=0)


def test_every_length_of_region_has_the_bins_of_the_loop():
    """Also where a bound lies on a cell, such as lengths that 14 divides."""
    lengths = np.arange(1, 64)
    boxes = np.stack([0 * lengths, 0 * lengths, lengths * 16 - 16, 0 * lengths], axis=1).astype(np.float32)
    features = np.arange(63, dtype=np.float32)[None, :, None]  # the largest value is the last column of the bin
    pool = jax.jit(partial(lib.roi_max_pool, stride_px=16))
    pooled = pool(jnp.asarray(features), jnp.asarray(boxes), jnp.int32([1, 63]))
    want = [numpy_pool(features, box, 16, 14)[0] for box in boxes]
    np.testing.assert_array_equal(pooled, want)
    pooled = pool(-jnp.asarray(features), jnp.asarray(boxes), jnp.int32([1, 63]))  # and now the first
    np.testing.assert_array_equal(pooled, [numpy_pool(-features, box, 16, 14)[0] for box in boxes])


def test_pooling_by_hand():
    """A region of 3x2 cells in 2x2 bins: columns 1, 2 and 2, 3; rows 0 and 1."""
    features = jnp.arange(20, dtype=jnp.float32).reshape(4, 5, 1)
    box = jnp.float32([[16, 0, 48, 16]])
    pooled = lib.roi_max_pool(features, box, jnp.int32([4, 5]), 16, 2)
    np.testing.assert_array_equal(pooled[0, ..., 0], [[2, 3], [7, 8]])
    pooled = lib.roi_max_pool(features, box, jnp.int32([1, 3]), 16, 2)  # the rest is padding
    np.testing.assert_array_equal(pooled[0, ..., 0], [[2, 2], [0, 0]])


def test_pooling_keeps_bfloat16():
    features = jnp.asarray(RNG.normal(size=(6, 7, 2)), jnp.bfloat16)
    boxes, size_cells = jnp.asarray(random_boxes(3, 96, 112)), jnp.int32([6, 7])
    pooled, pullback = jax.vjp(lambda x: lib.roi_max_pool(x, boxes, size_cells, 16), features)
    want = lib.roi_max_pool(features.astype(jnp.float32), boxes, size_cells, 16)
    np.testing.assert_array_equal(pooled.astype(jnp.float32), want)
    assert pooled.dtype == pullback(pooled)[0].dtype == jnp.bfloat16


@pytest.fixture
def their_roi_align(torchvision):
    """The Python code of torchvision for the operator, which needs no compiled one."""
    function = importlib.import_module("torchvision.ops.roi_align")._roi_align
    return getattr(function, "__wrapped__", function)


@pytest.mark.parametrize("padding", [0, 3])
def test_align_and_its_gradient_equal_torchvision(their_roi_align, padding):
    boxes = random_boxes(12, 130, 201)
    features = RNG.normal(size=(9, 13, 3)).astype(np.float32)
    weight = RNG.normal(size=(12, 14, 14, 3)).astype(np.float32)
    theirs = torch.from_numpy(features).permute(2, 0, 1)[None].requires_grad_()
    rois = np.concatenate([np.zeros((12, 1)), boxes + np.array([0, 0, 1, 1], np.float32)], axis=1).astype(np.float32)
    want = their_roi_align(theirs, torch.from_numpy(rois), 1 / 16, 14, 14, 2, True).permute(0, 2, 3, 1)
    (want * torch.from_numpy(weight)).sum().backward()

    padded = jnp.asarray(np.pad(features, ((0, padding), (0, padding), (0, 0)), constant_values=9))
    align = partial(lib.roi_align, boxes=jnp.asarray(boxes), size_cells=jnp.int32([9, 13]), stride_px=16)
    pooled, pullback = jax.vjp(jax.jit(align), padded)
    np.testing.assert_allclose(pooled, want.detach(), atol=2e-5)
    grad = np.asarray(pullback(jnp.asarray(weight))[0])
    np.testing.assert_allclose(grad[:9, :13], theirs.grad[0].permute(1, 2, 0), atol=1e-4)
    assert not grad[9:].any()
    assert not grad[:, 13:].any()


def test_align_of_a_plane_is_the_plane():
    """Interpolation is exact for a linear map: each bin has the value at its center."""
    y, x = np.meshgrid(np.arange(10.0), np.arange(12.0), indexing="ij")
    features = jnp.asarray((2 * y - x)[..., None], jnp.float32)
    pooled = lib.roi_align(features, jnp.float32([[40, 24, 103, 87]]), jnp.int32([10, 12]), 16, 4)
    # 64 px are 4 cells: bins of one cell, from pixel 40 and 24 on; a cell's center is at its pixel 8.
    want = 2 * (1.5 + np.arange(4.0))[:, None] - (2.5 + np.arange(4.0))[None]
    np.testing.assert_allclose(pooled[0, ..., 0], want, atol=1e-5)
