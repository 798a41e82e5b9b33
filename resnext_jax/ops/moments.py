"""A 1x1 convolution and its batch norm as one: the statistics of the outputs, from the moments of the inputs.

The outputs y = W'x are linear in the inputs x. Over all positions, mean(y) = W' mean(x) and var(y) = diag(W' Cov(x) W).
They are known before y, so convolution, batch norm and what follows (addition, ReLU) can be a single pass over memory.
The backward pass needs no y either: batch norm's gradient needs the sum of g * y, which is the diagonal of
W' (sum of x g'), and the filter gradient computes that sum anyway.

This is exactly batch norm (Ioffe & Szegedy 2015, Algorithm 1); only the order of sums differs. It is faster where x has
few channels, because the size of Cov(x) is their square.

The difference of E[x x'] and mean(x) mean(x)' loses digits where means are large. Batch norm does not see a constant in
its inputs, so float32 inputs are shifted first. Rounding inputs to bfloat16 alters a variance more than the sums do.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resnext_jax.ops import blocked
from resnext_jax.ops.conv_products import conv, precision

Inputs = Float[Array, "batch height width *in_channels"]
Outputs = Float[Array, "batch height width out_channels"]
Kernel = Float[Array, "1 1 in_channels out_channels"]
Row = Float[Array, " _"]
Matrix = Float[Array, "_ _"]


def _conv_norm(x: Inputs, kernel: Kernel, scale: Row, bias: Row, epsilon: float) -> tuple[Outputs, Row, Row]:
    """Return the batch norm over all images of the 1x1 convolution of x, whose channels may come in blocks.

    Returns:
      The normalized outputs in the dtype of x and the kernel; the mean and the biased variance of the convolution's
      outputs, float32, for running statistics: no gradient flows through these two.
    """
    return _forward(x, kernel, scale, bias, epsilon)[0]


def _forward(x: Inputs, kernel: Kernel, scale: Row, bias: Row, epsilon: float) -> tuple[tuple, tuple]:
    weights, shift = _weights(kernel), _shift(x)
    shifted = _shifted(x, shift)
    x_mean, covariance = _moments(shifted)
    spread = _exact(covariance, weights)
    mean = _exact(x_mean[None], weights)[0]
    variance = jnp.maximum((weights * spread).sum(axis=0), 0.0)  # the sum may round below zero
    inverse_std = lax.rsqrt(variance + epsilon)
    factor = scale * inverse_std
    y = _conv(shifted, kernel).astype(jnp.float32) * factor[None, None, None] + (bias - mean * factor)[None, None, None]
    saved = x, shift, kernel, scale, x_mean, spread, mean, inverse_std
    if shift is not None:
        mean = mean + _exact(shift.reshape(1, -1), weights)[0]
    return (y.astype(x.dtype), mean, variance), saved


def _backward(epsilon: float, saved: tuple, grads: tuple[Outputs, Row, Row]) -> tuple[Inputs, Kernel, Row, Row]:
    """Apply the chain rule to y = conv * factor + bias - mean * factor, factor = scale / sqrt(variance + epsilon).

    All of it is about the shifted inputs, with the same gradients: y does not depend on the shift.
    """
    x, shift, kernel, scale, x_mean, spread, mean, inverse_std = saved
    x = _shifted(x, shift)
    grad, _, _ = grads
    weights, positions = _weights(kernel), _num_positions(x)
    factor = scale * inverse_std

    products = _products(x, grad)
    grad_bias = grad.astype(jnp.float32).sum(axis=(0, 1, 2))
    grad_factor = (weights * products).sum(axis=0) - mean * grad_bias
    grad_scale = inverse_std * grad_factor
    grad_variance = -0.5 * scale * grad_factor * inverse_std**3
    grad_mean = -factor * grad_bias

    grad_weights = products * factor[None] + x_mean[:, None] * grad_mean[None] + 2 * spread * grad_variance[None]

    # x reaches the outputs directly, and every output through the covariance and the mean.
    grad_covariance = _exact(weights * grad_variance[None], weights.T)
    through_covariance = 2.0 / positions * grad_covariance
    constant = _exact(weights, grad_mean[:, None])[:, 0] / positions - _exact(through_covariance, x_mean[:, None])[:, 0]
    grad_x = _mix(grad, x, (weights * factor[None]).T.astype(x.dtype), through_covariance.astype(x.dtype))
    grad_x = grad_x + constant.reshape(1, 1, 1, *x.shape[3:])
    return grad_x.astype(x.dtype), grad_weights[None, None].astype(kernel.dtype), grad_scale, grad_bias


conv_norm = jax.custom_vjp(_conv_norm, nondiff_argnums=(4,))
conv_norm.defvjp(_forward, _backward)


def _shift(x: Inputs) -> Float[Array, " *in_channels"] | None:
    """Return the mean of the inputs in the middle of the images; None for inputs that are not shifted."""
    return x[:, x.shape[1] // 2, x.shape[2] // 2].mean(axis=0) if x.dtype == jnp.float32 else None


def _shifted(x: Inputs, shift: Float[Array, " *in_channels"] | None) -> Inputs:
    return x if shift is None else x - shift[None, None, None]


def _moments(x: Inputs) -> tuple[Row, Matrix]:
    """Return mean and covariance of the channels over all positions, float32."""
    # The sum as a product with ones: a TPU's matrix unit computes the ReLU before it on the fly; a reduction would be
    # a pass of its own. Eight columns and a barrier keep the compiler from turning it into a reduction.
    ones = lax.optimization_barrier(jnp.ones((*x.shape[:3], 8), x.dtype))
    mean = _products(x, ones)[:, 0] / _num_positions(x)
    return mean, _products(x, x) / _num_positions(x) - mean[:, None] * mean[None]


def _products(x: Inputs, y: Float[Array, "batch height width *other_channels"]) -> Matrix:
    """Return the sum over positions of x y', float32."""
    return blocked.sum_of_products(x, y).reshape(-1, y[0, 0, 0].size)


def _conv(x: Inputs, kernel: Kernel) -> Outputs:
    return _plain(x, kernel, x.dtype) if x.ndim == 4 else blocked.from_blocks(x, kernel)


def _mix(grad: Outputs, x: Inputs, to_grad: Matrix, to_x: Matrix) -> Inputs:
    """Return `grad to_grad + x to_x` at every position, float32."""
    if x.ndim == 4:
        # One product of both side by side is cheaper than the sum of two.
        both = jnp.concatenate([grad, x], axis=3)
        return _plain(both, jnp.concatenate([to_grad, to_x])[None, None], jnp.float32)
    product = functools.partial(jnp.einsum, precision=precision(x), preferred_element_type=jnp.float32)
    block, channel = x.shape[3:]
    first = product("bhwo,ogi->bhwgi", grad, to_grad.reshape(-1, block, channel))
    return first + product("bhwkj,kjgi->bhwgi", x, to_x.reshape(block, channel, block, channel))


def _plain(x: Float[Array, "batch height width in_channels"], kernel: Kernel, dtype: DTypeLike) -> Outputs:
    return conv(x, kernel, (1, 1), "VALID", precision=precision(x), preferred_element_type=dtype)


def _weights(kernel: Kernel) -> Matrix:
    return kernel[0, 0].astype(jnp.float32)


def _exact(a: Matrix, b: Matrix) -> Matrix:
    """Return the product of small float32 matrices, computed in float32 on every platform."""
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def _num_positions(x: Inputs) -> int:
    return math.prod(x.shape[:3])
