"""A 1x1 convolution with its batch norm against PyTorch in float64, which computes the one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.ops.moments import conv_norm

RNG = np.random.default_rng(0)
EPSILON = 0.1


def inputs(dtype=np.float32) -> dict[str, np.ndarray]:
    """Inputs that correlate and lie off zero, as after a ReLU; scales of both signs."""
    mixing = RNG.normal(size=(6, 6))
    arrays = {
        "x": np.maximum(RNG.normal(size=(3, 4, 5, 6)) @ mixing + 1, 0),
        "kernel": RNG.normal(size=(1, 1, 6, 8)),
        "scale": RNG.normal(size=8),
        "bias": RNG.normal(size=8),
        "grad": RNG.normal(size=(3, 4, 5, 8)),
    }
    return {name: array.astype(dtype) for name, array in arrays.items()}


def torch_reference(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}
    running_mean, running_var = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    y = torch.nn.functional.conv2d(tensors["x"].movedim(3, 1), tensors["kernel"][0, 0].T[:, :, None, None])
    out = torch.nn.functional.batch_norm(
        *(y, running_mean, running_var, tensors["scale"], tensors["bias"]), training=True, momentum=1.0, eps=EPSILON
    )
    out.backward(tensors["grad"].detach().movedim(3, 1))
    return {
        "y": out.detach().movedim(1, 3).numpy(),
        "mean": running_mean.numpy(),
        "variance": running_var.numpy() * 59 / 60,  # the unbiased one of 3 * 4 * 5 positions made biased
        **{name: tensors[name].grad.numpy() for name in ("x", "kernel", "scale", "bias")},
    }


def ours(arrays: dict[str, np.ndarray], shape: tuple[int, ...], dtype=jnp.float32) -> dict[str, np.ndarray]:
    x, kernel, grad = (jnp.asarray(arrays[name], dtype) for name in ("x", "kernel", "grad"))
    scale, bias = (jnp.asarray(arrays[name], jnp.float32) for name in ("scale", "bias"))

    @jax.jit
    def run(x, kernel, scale, bias, grad):
        def compute(*args):
            y, *statistics = conv_norm(*args, epsilon=EPSILON)
            return y, statistics

        y, vjp, statistics = jax.vjp(compute, x, kernel, scale, bias, has_aux=True)
        return y, statistics, vjp(grad)

    y, (mean, variance), grads = run(x.reshape(shape), kernel, scale, bias, grad)
    gradients = dict(zip(("x", "kernel", "scale", "bias"), grads, strict=True))
    assert gradients["x"].shape == shape
    assert y.dtype == gradients["x"].dtype == gradients["kernel"].dtype == dtype
    return {"y": y, "mean": mean, "variance": variance} | gradients | {"x": gradients["x"].reshape(3, 4, 5, 6)}


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 5, 2, 3)], ids=["plain", "in blocks"])
def test_everything_equals_torch(shape, offset):
    """A large mean takes no digits."""
    arrays = inputs()
    arrays["x"] += np.float32(offset)
    got, want = ours(arrays, shape), torch_reference(arrays)
    for name, true in want.items():
        error = np.abs(np.asarray(got[name], np.float64) - true).max() / np.abs(true).max()
        assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 5, 2, 3)], ids=["plain", "in blocks"])
def test_bfloat16_rounds_and_no_more(shape):
    """Inputs that bfloat16 holds exactly: what differs is the rounding of results and of the gradient's matrices."""
    arrays = {name: np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64) for name, array in inputs().items()}
    got, want = ours(arrays, shape, jnp.bfloat16), torch_reference(arrays)
    for name, relative in {"mean": 1e-5, "variance": 1e-5, "y": 2**-7, "scale": 1e-5, "bias": 1e-5}.items():
        error = np.abs(np.asarray(got[name], np.float64) - want[name]).max() / np.abs(want[name]).max()
        assert error < relative, f"{name}: {error:.1e}"
    for name in ("x", "kernel"):
        error = np.linalg.norm(np.asarray(got[name], np.float64) - want[name]) / np.linalg.norm(want[name])
        assert error < 2**-7, f"{name}: {error:.1e}"


@pytest.mark.slow
def test_a_constant_output_has_no_negative_variance():
    x = jnp.full((4, 7, 7, 3), 1000.1)
    _, _, variance = conv_norm(x, jnp.ones((1, 1, 3, 2)), jnp.ones(2), jnp.zeros(2), EPSILON)
    assert (np.asarray(variance) >= 0).all()
