"""Losses and gradients of both stages against torchvision's, with all anchors and regions sampled."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.detection import anchors as grids
from resnext_jax.detection import losses as lib
from resnext_jax.detection.sampling import AnchorSample, RegionSample, sample_anchors, sample_regions

RNG = np.random.default_rng(0)
GRID = grids.grid(10, 12, 16, grids.cell_anchors(scales=(2, 4, 8)))
# The first has four best anchors, the second is like an anchor, the third is in the middle between two anchors.
BOXES = np.array(
    [[120, 72, 127, 79], [102, 57, 137, 86], [48, 24, 111, 87], [60, 70, 75, 81], [0, 0, 0, 0]], np.float32
)
LABEL = np.array([3, 1, 2, 3, 0], np.int32)
NUM_CLASSES = 3


def theirs(boxes: np.ndarray) -> torch.Tensor:
    """Boxes of torchvision end one pixel later: their widths are differences."""
    return torch.from_numpy(boxes + np.array([0, 0, 1, 1], np.float32))


def parameter(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).requires_grad_()


def test_rpn_losses_and_gradients_equal_torchvision(torchvision):
    rpn = importlib.import_module("torchvision.models.detection.rpn")
    count = len(GRID.anchors)
    network = rpn.RegionProposalNetwork(None, None, 0.7, 0.3, 2 * count, 1.0, {}, {}, 0.7)
    logits = RNG.normal(size=count).astype(np.float32)
    deltas = RNG.normal(size=(count, 4)).astype(np.float32)

    objects = {"boxes": theirs(BOXES[LABEL > 0])}
    labels, matched = network.assign_targets_to_anchors([theirs(GRID.anchors)], [objects])
    targets = network.box_coder.encode(matched, [theirs(GRID.anchors)])
    their_logits, their_deltas = parameter(logits), parameter(deltas)
    want = network.compute_loss(their_logits[:, None], their_deltas, labels, targets)
    (want[0] + 2 * want[1]).backward()

    def total(logits, deltas):
        sample = sample_anchors(
            *(jax.random.key(0), jnp.asarray(GRID.anchors), jnp.ones(count, bool)),
            *(jnp.asarray(BOXES), jnp.asarray(LABEL > 0), count, 1.0),
        )
        found = lib.rpn_losses(logits, deltas, sample)
        return found[0] + 2 * found[1], found

    arguments = jnp.asarray(logits), jnp.asarray(deltas)
    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*arguments)
    assert (labels[0] == 1).sum() > 4
    np.testing.assert_allclose(found, [loss.item() for loss in want], rtol=1e-4)
    for ours, parameter_ in zip(gradients, (their_logits, their_deltas), strict=True):
        grad = parameter_.grad.numpy()
        largest = np.abs(grad).max()
        np.testing.assert_allclose(ours, grad, rtol=1e-4, atol=1e-5 * largest)


def test_region_losses_and_gradients_equal_torchvision(torchvision):
    """The outputs are functions of the boxes, because both sides sort the regions in their own way."""
    heads = importlib.import_module("torchvision.models.detection.roi_heads")
    selector = heads.RoIHeads(None, None, None, 0.5, 0.5, 1000, 1.0, (10.0, 10.0, 5.0, 5.0), 0.05, 0.5, 100)
    corner = RNG.integers(0, 100, (150, 2))
    proposals = np.concatenate([corner, corner + RNG.integers(5, 90, (150, 2))], axis=1).astype(np.float32)
    proposals[:60] = BOXES[RNG.integers(0, 4, 60)] + RNG.integers(-6, 7, (60, 4))
    class_weight = RNG.normal(size=(4, NUM_CLASSES + 1)).astype(np.float32) / 100
    box_weight = RNG.normal(size=(4, NUM_CLASSES * 4)).astype(np.float32) / 100

    objects = {"boxes": theirs(BOXES[LABEL > 0]), "labels": torch.from_numpy(LABEL[LABEL > 0]).long()}
    regions, _, labels, targets = selector.select_training_samples([theirs(proposals)], [objects])
    their_class, their_box = parameter(class_weight), parameter(box_weight)
    boxes = regions[0] - torch.tensor([0.0, 0, 1, 1])
    of_background = torch.zeros(len(boxes), 4)  # torchvision predicts boxes of the background too
    want = heads.fastrcnn_loss(
        boxes @ their_class, torch.cat([of_background, boxes @ their_box], dim=1), labels, targets
    )
    (want[0] + 2 * want[1]).backward()

    def total(class_weight, box_weight):
        sample = sample_regions(
            *(jax.random.key(0), jnp.asarray(proposals), jnp.ones(150, bool)),
            *(jnp.asarray(BOXES), jnp.asarray(LABEL), jnp.zeros(5, bool), 1000, 1.0),
        )
        deltas = (sample.boxes @ box_weight).reshape(-1, NUM_CLASSES, 4)
        found = lib.region_losses(sample.boxes @ class_weight, deltas, sample, beta=1 / 9)  # torchvision's
        return found[0] + 2 * found[1], found

    arguments = jnp.asarray(class_weight), jnp.asarray(box_weight)
    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*arguments)
    assert (labels[0] > 0).sum() > 10
    np.testing.assert_allclose(found, [loss.item() for loss in want], rtol=1e-4)
    for ours, parameter_ in zip(gradients, (their_class, their_box), strict=True):
        grad = parameter_.grad.numpy()
        largest = np.abs(grad).max()
        np.testing.assert_allclose(ours, grad, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize(("beta", "want"), [(1 / 9, 0.5 * 9 * 0.01 + 3 * (1 - 0.5 / 9)), (1.0, 0.005 + 3 * 0.5)])
def test_smooth_l1_by_hand(beta, want):
    """Distances of 0.1, which is in the parabola, and of 1, three times, which is not (or just so)."""
    got = lib.smooth_l1(jnp.float32([[0.1, 1, -1, 1]]), jnp.zeros((1, 4)), beta)
    np.testing.assert_allclose(got, [want], rtol=1e-5)


def test_losses_are_over_the_number_of_samples():
    sample = RegionSample(
        jnp.zeros((4, 4)), jnp.int32([1, 0, 0, 1]), jnp.ones((4, 4)), jnp.array([True, True, True, False])
    )
    classes, boxes = lib.region_losses(jnp.zeros((4, 3)), jnp.zeros((4, 2, 4)), sample)
    np.testing.assert_allclose(classes, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(boxes, 4 * 0.5 / 3, rtol=1e-6)


def test_an_image_without_samples_has_no_loss_and_no_gradient():
    nothing = AnchorSample(jnp.zeros(3, jnp.int32), jnp.zeros(3), jnp.full((3, 4), jnp.nan), jnp.zeros(3, bool))
    losses = partial(lib.rpn_losses, sample=nothing)
    value, gradients = jax.value_and_grad(lambda *outputs: sum(losses(*outputs)), (0, 1))(jnp.ones(5), jnp.ones((5, 4)))
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)
