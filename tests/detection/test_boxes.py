"""Boxes by hand, and box coding and IoU against torchvision, whose boxes end where ours have their last pixel + 1."""

import importlib

import jax.numpy as jnp
import numpy as np
import torch

from resnext_jax.detection import boxes as lib

RNG = np.random.default_rng(0)


def random_boxes(count: int) -> np.ndarray:
    corner, side = RNG.uniform(0, 80, (count, 2)), RNG.uniform(1, 60, (count, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def their_boxes(boxes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(boxes + np.array([0, 0, 1, 1], np.float32))


def test_areas_and_iou_count_both_corners():
    boxes = jnp.float32([[0, 0, 9, 9], [5, 0, 14, 9], [20, 20, 20, 20], [9, 9, 3, 3]])
    np.testing.assert_array_equal(lib.areas(boxes), [100, 100, 1, 0])
    want = np.diag(np.array([1, 1, 1, 0], np.float32))
    want[0, 1] = want[1, 0] = np.float32(50) / np.float32(150)
    np.testing.assert_array_equal(lib.iou(boxes, boxes), want)


def test_the_share_inside_a_box_is_of_its_own_area():
    inner, outer = jnp.float32([[0, 0, 9, 9]]), jnp.float32([[5, 0, 104, 99], [0, 0, 99, 99]])
    np.testing.assert_allclose(lib.share_inside(inner, outer), [[0.5, 1]])
    np.testing.assert_allclose(lib.share_inside(outer, inner), [[0.005], [0.01]])


def test_iou_equals_torchvision(torchvision):
    a, b = random_boxes(50), random_boxes(70)
    want = torchvision.ops.box_iou(their_boxes(a), their_boxes(b))
    np.testing.assert_allclose(lib.iou(jnp.asarray(a), jnp.asarray(b)), want, atol=1e-6)


def test_box_codes_equal_torchvision(torchvision):
    coder = importlib.import_module("torchvision.models.detection._utils").BoxCoder((1.0, 1.0, 1.0, 1.0))
    boxes, anchors = random_boxes(50), random_boxes(50)
    codes = lib.encode(jnp.asarray(boxes), jnp.asarray(anchors))
    np.testing.assert_allclose(codes, coder.encode_single(their_boxes(boxes), their_boxes(anchors)), atol=1e-5)

    deltas = RNG.normal(size=(50, 4)).astype(np.float32) * np.array([1, 1, 3, 3], np.float32)  # some beyond the clip
    want = coder.decode_single(torch.from_numpy(deltas), their_boxes(anchors)) - torch.tensor([0, 0, 1, 1])
    np.testing.assert_allclose(lib.decode(jnp.asarray(deltas), jnp.asarray(anchors)), want, rtol=1e-4, atol=1e-3)


def test_decoding_takes_back_what_was_encoded():
    boxes, anchors = jnp.asarray(random_boxes(50)), jnp.asarray(random_boxes(50))
    np.testing.assert_allclose(lib.decode(lib.encode(boxes, anchors), anchors), boxes, atol=1e-3)


def test_sizes_stop_growing_at_a_thousand_to_sixteen():
    got = lib.decode(jnp.float32([[0, 0, 50, 50]]), jnp.float32([[0, 0, 15, 15]]))
    np.testing.assert_allclose(got, [[8 - 500, 8 - 500, 507, 507]], rtol=1e-5)


def test_clipped_boxes_lie_inside_the_image():
    got = lib.clip(jnp.float32([[-5, -5, 500, 500], [3, 4, 5, 6], [200, 200, 210, 210]]), jnp.float32([60, 80]))
    np.testing.assert_array_equal(got, [[0, 0, 79, 59], [3, 4, 5, 6], [79, 59, 79, 59]])
