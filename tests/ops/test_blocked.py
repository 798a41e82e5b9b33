"""1x1 convolutions into and out of blocks of channels against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from resnext_jax.ops import blocked

RNG = np.random.default_rng(0)
PLACES = (0, 1, 2), (0, 1, 2)  # summed over in a gradient of a kernel


def test_into_blocks_equals_numpy():
    x, kernel = RNG.normal(size=(2, 3, 5, 6)), RNG.normal(size=(1, 1, 6, 12))
    grad = RNG.normal(size=(2, 3, 5, 3, 4))
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, kernel, grad)]
    out, vjp = jax.vjp(lambda x, kernel: blocked.to_blocks(x, kernel, 3), *arrays[:2])
    grad_x, grad_kernel = vjp(arrays[2])
    flat = grad.reshape(2, 3, 5, 12)  # block 0 holds the channels 0..3, block 1 the next four
    np.testing.assert_allclose(out.reshape(flat.shape), x @ kernel[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_x, flat @ kernel[0, 0].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_kernel[0, 0], np.tensordot(x, flat, PLACES), rtol=1e-4, atol=1e-4)


def test_out_of_blocks_equals_numpy():
    x, kernel = RNG.normal(size=(2, 3, 5, 3, 4)), RNG.normal(size=(1, 1, 12, 7))
    grad = RNG.normal(size=(2, 3, 5, 7))
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, kernel, grad)]
    out, vjp = jax.vjp(blocked.from_blocks, *arrays[:2])
    grad_x, grad_kernel = vjp(arrays[2])
    flat = x.reshape(2, 3, 5, 12)
    np.testing.assert_allclose(out, flat @ kernel[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_x.reshape(flat.shape), grad @ kernel[0, 0].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_kernel[0, 0], np.tensordot(flat, grad, PLACES), rtol=1e-4, atol=1e-4)


def test_where_blocks_are_worth_it():
    assert blocked.num_blocks("blocked128", 32, 256) == 2
    assert [blocked.num_blocks("blocked128", *shape) for shape in ((32, 128), (8, 112), (1, 256))] == [1, 1, 1]
    assert blocked.num_blocks("merged128", 32, 256) == 1
