"""layers.py: the original's initialisation, and batch norm's running statistics by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.errors import UserError
from resnext_jax.models.layers import BatchNorm, Classifier, Conv, ConvBN, Numerics


def kernel_of(module, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(module.init(jax.random.key(0), jnp.ones(shape))["params"]["kernel"], np.float64)


def conv(features: int, kernel_px: int, groups: int = 1) -> Conv:
    return Conv(features, kernel_px, Numerics(lambda shape: "native"), groups=groups)


@pytest.mark.parametrize(
    ("kernel_px", "groups", "in_channels", "features"), [(3, 32, 128, 128), (1, 1, 64, 256), (7, 1, 3, 64)]
)
def test_convolutions_are_drawn_by_fan_out(kernel_px, groups, in_channels, features):
    kernel = kernel_of(conv(features, kernel_px, groups), (1, 2, 2, in_channels))
    assert kernel.shape == (kernel_px, kernel_px, in_channels // groups, features)
    # Not divided by the groups: 0.0417 for a 3x3 of 128 channels, whatever its cardinality.
    std = np.sqrt(2 / (kernel_px**2 * features))
    assert abs(kernel.mean()) < 5 * std / np.sqrt(kernel.size)
    assert abs(kernel.std() - std) < 5 * std / np.sqrt(2 * kernel.size)
    assert np.abs(kernel).max() > 3 * std  # normal, neither uniform nor cut off at two


def test_classifier_is_drawn_by_fan_in():
    params = Classifier(50).init(jax.random.key(0), jnp.ones((1, 256)))["params"]
    kernel, bound = np.asarray(params["kernel"]), 1 / 16
    assert kernel.shape == (256, 50)
    assert 0.999 * bound < np.abs(kernel).max() <= bound
    assert abs(kernel.std() - bound / np.sqrt(3)) < 5 * bound / np.sqrt(30 / 4 * kernel.size)
    np.testing.assert_array_equal(params["bias"], np.zeros(50))


def test_cardinality_that_does_not_divide():
    with pytest.raises(UserError, match=r"cardinality 5 does not divide the width: .* from 10 to 12 channels"):
        conv(12, 3, groups=5).init(jax.random.key(0), jnp.ones((1, 4, 4, 10)))


X = np.random.default_rng(0).normal(2.0, 3.0, (4, 3, 2, 5))
START = {
    "params": {"scale": jnp.full(5, 2.0), "bias": jnp.full(5, -1.0)},
    "batch_stats": {"mean": jnp.arange(5.0), "var": jnp.arange(1.0, 6.0)},
}


def test_batch_norm_starts_as_the_identity():
    variables = BatchNorm(2).init(jax.random.key(0), jnp.asarray(X, jnp.float32), train=True)
    want = {"params": {"scale": 1.0, "bias": 0.0}, "batch_stats": {"mean": 0.0, "var": 1.0}}
    for part, arrays in want.items():
        for name, value in arrays.items():
            np.testing.assert_array_equal(variables[part][name], np.full(5, value, np.float32))


def test_training_normalizes_by_group_and_moves_the_running_statistics():
    y, updated = BatchNorm(2).apply(START, jnp.asarray(X, jnp.float32), train=True, mutable=["batch_stats"])
    groups = [X[:2].reshape(-1, 5), X[2:].reshape(-1, 5)]  # 12 values of each channel
    want = [2 * (group - group.mean(0)) / np.sqrt(group.var(0) + 1e-5) - 1 for group in groups]
    np.testing.assert_allclose(np.asarray(y).reshape(2, 12, 5), want, rtol=1e-4, atol=1e-5)
    mean = np.mean([group.mean(0) for group in groups], 0)
    variance = np.mean([group.var(0, ddof=1) for group in groups], 0)
    running = dict(updated)["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.9 * np.arange(5) + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 * np.arange(1, 6) + 0.1 * variance, rtol=1e-5)


def test_sums_of_bfloat16_are_shifted_by_the_running_mean():
    x = jnp.asarray(1000 + 4 * np.random.default_rng(1).integers(-3, 4, (8, 9, 9, 5)), jnp.bfloat16)
    variables = {**START, "batch_stats": {"mean": jnp.full(5, 1001.0), "var": jnp.ones(5)}}
    _, updated = BatchNorm(0).apply(variables, x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64).reshape(-1, 5)
    variance = (dict(updated)["batch_stats"]["var"] - 0.9) / 0.1
    np.testing.assert_allclose(variance, exact.var(0, ddof=1), rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    y, updated = BatchNorm(3).apply(START, jnp.asarray(X, jnp.float32), train=False, mutable=["batch_stats"])
    want = 2 * (X - np.arange(5)) / np.sqrt(np.arange(1, 6) + 1e-5) - 1
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    for name, array in START["batch_stats"].items():
        np.testing.assert_array_equal(updated["batch_stats"][name], array)


def test_a_single_value_has_no_unbiased_variance():
    x = jnp.array([3.0, 4.0]).reshape(2, 1, 1, 1)
    variables = BatchNorm(1).init(jax.random.key(0), x, train=True)
    _, updated = BatchNorm(1).apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(dict(updated)["batch_stats"]["var"], [0.9])


@pytest.mark.parametrize("train", [True, False])
def test_the_max_pool_may_come_before_the_batch_norm(train):
    """Against the definition, the normalised values pooled; with a negative scale the smallest of a window wins."""
    scale = np.array([2.0, -2.0, 0.0, -0.5, 1.0])
    variables = {**START, "params": {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.full(5, -1.0)}}
    x = X.transpose(0, 2, 1, 3)  # (4, 2, 3, 5): pooled over the two rows
    y, updated = BatchNorm(2).apply(
        *(variables, jnp.asarray(x, jnp.float32)),
        train=train,
        pool=lambda x: jnp.maximum(x[:, 0::2], x[:, 1::2]),
        mutable=["batch_stats"],
    )
    grouped = x.reshape(2, 12, 5)  # 12 values of each channel in each group
    mean = grouped.mean(1) if train else np.arange(5.0)[None].repeat(2, 0)
    variance = grouped.var(1) if train else np.arange(1.0, 6.0)[None].repeat(2, 0)
    normalized = scale * (grouped - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5) - 1
    want = normalized.reshape(x.shape).max(axis=1, keepdims=True)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    running = dict(updated)["batch_stats"]
    new_mean = 0.9 * np.arange(5) + 0.1 * mean.mean(0) if train else np.arange(5)
    new_var = 0.9 * np.arange(1, 6) + 0.1 * grouped.var(1, ddof=1).mean(0) if train else np.arange(1, 6)
    np.testing.assert_allclose(running["mean"], new_mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], new_var, rtol=1e-5)


class Pair(nn.Module):
    """A 1x1 and the grouped 3x3 that reads it, as in a block."""

    impl: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        numerics = Numerics(lambda shape: self.impl, bn_group_images=0)
        conv1 = ConvBN(256, 1, numerics, name="conv1")
        conv2 = ConvBN(256, 3, numerics, groups=2, name="conv2", bn="after")
        y = conv1(x, reader=conv2, train=train)
        return y, conv2(y, train=train)


@pytest.mark.parametrize(("impl", "dims"), [("native", (256,)), ("moments", (256,)), ("blocked128", (2, 128))])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.slow
def test_conv_bn_equals_conv_and_then_batch_norm(impl, dims, train):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 8)), jnp.float32)
    shapes = jax.eval_shape(partial(Pair(impl).init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), shapes)
    assert variables["params"].keys() == {"conv1", "bn1", "conv2", "after"}  # side by side
    outputs, updated = jax.jit(partial(Pair(impl).apply, train=train, mutable=["batch_stats"]))(variables, x)
    assert [y.shape for y in outputs] == [(2, 4, 4, *dims)] * 2

    y, statistics = x, {}
    layers = [("conv1", "bn1", 1, 1), ("conv2", "after", 3, 2)]
    for (name, norm, kernel_px, groups), got in zip(layers, outputs, strict=True):
        own = {kind: arrays[norm] for kind, arrays in variables.items()}
        y = conv(256, kernel_px, groups).apply({"params": variables["params"][name]}, y)
        y, changed = BatchNorm(0).apply(own, y, train=train, mutable=["batch_stats"])
        statistics[norm] = changed["batch_stats"]
        np.testing.assert_allclose(np.reshape(got, y.shape), y, rtol=1e-3, atol=1e-4 * np.abs(y).max())
    for got, want in zip(*map(jax.tree.leaves, (updated["batch_stats"], statistics)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
