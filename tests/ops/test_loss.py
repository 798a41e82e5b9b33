"""loss.py: targets and losses by numpy, torch and timm."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.ops.loss import LOSSES, targets
from resnext_jax.ops.mix import Labels

CLASSES = 6
rng = np.random.default_rng(0)
LOGITS = (3 * rng.normal(size=(5, CLASSES))).astype(np.float32)
OWN, OTHER = np.array([0, 1, 2, 5, 3]), np.array([4, 1, 0, 2, 5])
WEIGHT = np.array([0.9, 0.3, 0.5, 1.0, 0.15], np.float32)
LABELS = Labels(jnp.asarray(OWN), jnp.asarray(OTHER), jnp.asarray(WEIGHT))


def shares(smoothing: float) -> np.ndarray:
    dense = WEIGHT[:, None] * np.eye(CLASSES)[OWN] + (1 - WEIGHT)[:, None] * np.eye(CLASSES)[OTHER]
    return (1 - smoothing) * dense + smoothing / CLASSES


def test_targets():
    np.testing.assert_allclose(targets(LABELS, CLASSES, 0.1), shares(0.1), rtol=1e-6)
    np.testing.assert_allclose(targets(LABELS, CLASSES, 0.0).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(targets(Labels(jnp.asarray(OWN)), CLASSES, 0.0), np.eye(CLASSES)[OWN])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_torchs(smoothing):
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    want = loss(torch.tensor(LOGITS), torch.tensor(shares(0.0), dtype=torch.float32))
    np.testing.assert_allclose(LOSSES["softmax"](jnp.asarray(LOGITS), LABELS, smoothing=smoothing), want, rtol=1e-5)
    want = loss(torch.tensor(LOGITS), torch.tensor(OWN))
    got = LOSSES["softmax"](jnp.asarray(LOGITS), Labels(jnp.asarray(OWN)), smoothing=smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def binary(wanted: np.ndarray) -> np.ndarray:
    probability = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    return -(wanted * np.log(probability) + (1 - wanted) * np.log(1 - probability)).mean(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid(torchvision, smoothing):
    BinaryCrossEntropy = importlib.import_module("timm.loss").BinaryCrossEntropy
    got = LOSSES["sigmoid"](jnp.asarray(LOGITS), LABELS, smoothing=smoothing)
    np.testing.assert_allclose(got, binary(shares(smoothing)), rtol=1e-5)
    single = LOSSES["sigmoid"](jnp.asarray(LOGITS), Labels(jnp.asarray(OWN)), smoothing=smoothing)
    want = BinaryCrossEntropy(smoothing)(torch.tensor(LOGITS), torch.tensor(OWN))
    np.testing.assert_allclose(single.mean(), want, rtol=1e-5)


def test_sigmoid_with_a_threshold(torchvision):
    BinaryCrossEntropy = importlib.import_module("timm.loss").BinaryCrossEntropy
    got = LOSSES["sigmoid"](jnp.asarray(LOGITS), LABELS, smoothing=0.0, threshold=0.2)
    # Above 0.2: 0 of (0, 4); 1 alone, twice; 2 and 0; 5 alone; 5 of (3, 5).
    yes = np.zeros((5, CLASSES))
    yes[[0, 1, 2, 2, 3, 4], [0, 1, 2, 0, 5, 5]] = 1
    np.testing.assert_allclose(got, binary(yes), rtol=1e-5)
    loss = BinaryCrossEntropy(0.0, target_threshold=0.2)
    want = loss(torch.tensor(LOGITS), torch.tensor(shares(0.0), dtype=torch.float32))
    np.testing.assert_allclose(got.mean(), want, rtol=1e-5)
