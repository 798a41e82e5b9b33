"""ops.batch_norm against numpy and PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.ops import batch_norm

RNG = np.random.default_rng(0)
# (batch, height, width, channel); each image and channel has its own mean and spread.
X = RNG.normal(size=(6, 3, 5, 4)) * RNG.uniform(0.5, 2, (6, 1, 1, 4)) + RNG.normal(size=(6, 1, 1, 4))


def x(dtype=jnp.float32):
    return jnp.asarray(X, dtype)


@pytest.mark.parametrize("group_images", [1, 2, 3, 6])
def test_statistics_of_each_group(group_images):
    mean, variance = batch_norm.group_statistics(x(), group_images)
    groups = [X[start : start + group_images].reshape(-1, 4) for start in range(0, 6, group_images)]
    np.testing.assert_allclose(mean, [group.mean(0) for group in groups], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, [group.var(0) for group in groups], rtol=1e-5)


def test_zero_is_the_whole_batch():
    mean, variance = batch_norm.group_statistics(x(), 0)
    np.testing.assert_allclose(mean, X.mean((0, 1, 2))[None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, X.var((0, 1, 2))[None], rtol=1e-5)


def test_groups_do_not_see_each_other():
    other = x().at[2:].multiply(100.0)
    for got, want in zip(batch_norm.group_statistics(other, 2), batch_norm.group_statistics(x(), 2), strict=True):
        np.testing.assert_array_equal(got[0], want[0])
        assert (np.abs(got[1:]) > 10 * np.abs(want[1:])).all()


def test_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="a batch of 6 images does not divide into batch-norm groups of 4"):
        batch_norm.group_statistics(x(), 4)


def test_statistics_of_bfloat16_are_float32():
    # The mean of 90 bfloat16 values near 1 needs more than bfloat16's 8 bits.
    rounded = x(jnp.bfloat16)
    mean, variance = batch_norm.group_statistics(rounded, 0)
    assert mean.dtype == variance.dtype == jnp.float32
    exact = np.asarray(rounded, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2))[None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2))[None], rtol=1e-5)


def test_a_constant_channel_has_no_negative_variance():
    # 1000.1^2 in float32 is good to 0.06: a difference of squares may come out at -0.06.
    _, variance = batch_norm.group_statistics(jnp.full((4, 7, 7, 3), 1000.1), 2)
    assert (np.asarray(variance) >= 0).all()


def narrow(kind: str) -> np.ndarray:
    """Return values whose mean is much larger than their standard deviation, (image, height, width, channel)."""
    rng = np.random.default_rng(1)
    if kind == "stem":  # inside images of 200 +- 0.3 levels, where no padding widens the values
        images = (rng.normal(200, 0.3, (8, 3, 32, 32)) - 120) / 58
        filters = torch.tensor(rng.normal(0, 0.03, (6, 3, 7, 7)))
        return torch.nn.functional.conv2d(torch.tensor(images), filters, stride=2).permute(0, 2, 3, 1).numpy()
    std = {"std 1": 1, "std 0.1": 0.1, "first image black": 0.1, "first value off": 0.1}[kind]
    x = rng.normal(1000, std, (8, 14, 15, 3))
    if kind == "first image black":
        x[0] = 0
    if kind == "first value off":
        x[0, 7, 7] = 1100
    return x


NARROW = ["std 1", "std 0.1", "stem", "first image black", "first value off"]


@pytest.mark.parametrize("group_images", [2, 8])
@pytest.mark.parametrize(("kind", "guess"), [(kind, False) for kind in NARROW] + [(kind, True) for kind in NARROW[:3]])
def test_a_large_mean_takes_no_digits(kind, group_images, guess):
    """The guess, as a running mean is one, is off by two standard deviations."""
    x = narrow(kind).astype(np.float32)
    exact = x.astype(np.float64).reshape(-1, group_images, *x.shape[1:])
    shift = jnp.asarray(x.mean((0, 1, 2)) + 2 * x[1].std((0, 1)), jnp.float32) if guess else None
    mean, variance = jax.jit(lambda x: batch_norm.group_statistics(x, group_images, shift))(x)
    np.testing.assert_allclose(mean, exact.mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((1, 2, 3)), rtol=1e-4 if kind == "first value off" else 1e-5)


@pytest.mark.parametrize("kind", NARROW[:3])
def test_results_and_gradients_at_a_large_mean_equal_torch(kind):
    x, rng = narrow(kind).astype(np.float32), np.random.default_rng(2)
    grad, scale, bias = rng.normal(size=x.shape), *rng.normal(size=(2, x.shape[3]))
    tensors = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in (x, scale, bias)]
    want = torch.nn.functional.batch_norm(tensors[0].movedim(3, 1), None, None, *tensors[1:], training=True, eps=1e-9)
    want.backward(torch.tensor(grad).movedim(3, 1))

    def ours(x, scale, bias):
        return batch_norm.normalize(x, *batch_norm.group_statistics(x, 0), scale, bias, 1e-9)

    y, vjp = jax.vjp(jax.jit(ours), *(jnp.asarray(array, jnp.float32) for array in (x, scale, bias)))
    pairs = [
        (y, want.detach().movedim(1, 3)),
        *zip(vjp(grad.astype(np.float32)), [t.grad for t in tensors], strict=True),
    ]
    for got, true in pairs:
        # Of a mean of 1000 float32 holds 3e-5, which is 3e-4 of the smaller standard deviation.
        relative = 1e-3 if kind == "std 0.1" else 1e-4
        assert np.abs(np.asarray(got, np.float64) - true.numpy()).max() < relative * np.abs(true.numpy()).max()


def test_normalize_uses_the_statistics_of_its_group():
    mean, variance = RNG.normal(size=(3, 4)), RNG.uniform(0.1, 2, (3, 4))
    scale, bias = RNG.normal(size=4), RNG.normal(size=4)
    arrays = (jnp.asarray(array, jnp.float32) for array in (mean, variance, scale, bias))
    got = batch_norm.normalize(x(), *arrays, epsilon=0.01)
    for image in range(6):
        group = image // 2
        want = (X[image] - mean[group]) / np.sqrt(variance[group] + 0.01) * scale + bias
        np.testing.assert_allclose(got[image], want, rtol=1e-4, atol=1e-5)


def test_normalize_keeps_the_dtype():
    ones = jnp.ones(4)
    got = batch_norm.normalize(x(jnp.bfloat16), ones[None], ones[None], ones, ones, 1e-5)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), X, rtol=2**-6, atol=2**-6)


def test_running_statistics_move_by_a_tenth():
    groups = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    got = batch_norm.update_running(jnp.array([10.0, -1.0]), groups, 0.9)
    np.testing.assert_allclose(got, [0.9 * 10 + 0.1 * 2, 0.9 * -1 + 0.1 * 4], rtol=1e-6)
