"""The max-pool against PyTorch's, gradient included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.ops import pool


def _torch(x, grad):
    """Output and input gradient."""
    images = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    out = torch.nn.functional.max_pool2d(images, 3, 2, 1)
    out.backward(torch.tensor(grad).permute(0, 3, 1, 2))
    return out.detach().permute(0, 2, 3, 1).numpy(), images.grad.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("run", [pool.max_pool, pool._by_windows])
@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 9), (1, 2)])
def test_output_and_gradient_equal_torch(run, height, width):
    rng = np.random.default_rng(0)
    # Few distinct values, as after a ReLU: equals within a window, and windows of one value.
    x = np.maximum(rng.integers(-3, 4, (2, height, width, 3)), 0).astype(np.float32)
    grad = rng.integers(1, 9, (2, -(-height // 2), -(-width // 2), 3)).astype(np.float32)
    out, vjp = jax.vjp(jax.jit(run), jnp.asarray(x))
    want_out, want_grad = _torch(x, grad)
    np.testing.assert_array_equal(out, want_out)
    np.testing.assert_array_equal(vjp(jnp.asarray(grad))[0], want_grad)


def test_dtype_stays():
    out, vjp = jax.vjp(pool.max_pool, jnp.ones((1, 4, 4, 2), jnp.bfloat16))
    assert out.dtype == vjp(out)[0].dtype == jnp.bfloat16


def test_a_tpu_keeps_its_own_gradient():
    """What runs is decided by the platform that it is compiled for, not by the one that compiles."""
    gradient = jax.jit(jax.grad(lambda x: pool.max_pool(x).sum()))
    texts = {
        platform: gradient.trace(jnp.ones((1, 4, 4, 2))).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert "select_and_scatter" in texts["tpu"]
    assert "select_and_scatter" not in texts["cpu"]
