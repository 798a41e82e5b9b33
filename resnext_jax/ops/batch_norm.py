"""Batch norm whose statistics are taken over groups of images, whatever the number of devices.

The paper trains 256 images as 8 GPUs x 32 with statistics per GPU (ICML 2015 batch norm; fb.resnet.torch). Here the
recipe sets the groups: images [0, g), [g, 2g), ... of the global batch, by a plain reshape. If g divides the images per
device, no communication is needed. Otherwise the partitioner adds it, and the numbers do not change.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def group_statistics(
    x: Float[Array, "batch height width *channel"], group_images: int, shift: Float[Array, " channels"] | None = None
) -> tuple[Float[Array, "group channels"], Float[Array, "group channels"]]:
    """Return mean and biased variance of each channel over groups of `group_images` images, in one float32 pass.

    A group is consecutive images; 0 makes the whole batch one group. Channels in blocks are flattened.

    The sums are those of `x - shift`: the difference of the mean square and the squared mean has few correct digits
    where the mean is much larger than the standard deviation.

    Args:
      shift: a guess of the mean; by default the mean of the values in the middle of the images of each group. These
        must be known before the pass begins, so that a TPU cannot compute the sums while it computes x.

    Raises:
      ValueError: the groups do not divide the batch.
    """
    images = group_images or x.shape[0]
    if x.shape[0] % images:
        raise ValueError(f"a batch of {x.shape[0]} images does not divide into batch-norm groups of {images}")
    return _per_group(functools.partial(_statistics, shift=shift), x.shape[0] // images, x)


def _statistics(
    x: Float[Array, "images height width *channel"], shift: Float[Array, " channels"] | None
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    if shift is None:
        shift = jax.lax.stop_gradient(x[:, x.shape[1] // 2, x.shape[2] // 2].astype(jnp.float32).mean(axis=0))
    shift = shift.reshape(x.shape[3:])
    x = x.astype(jnp.float32) - shift[None, None, None]
    mean = x.mean(axis=(0, 1, 2))
    # Clamped, because the difference may round below zero.
    variance = jnp.maximum(jnp.square(x).mean(axis=(0, 1, 2)) - jnp.square(mean), 0.0)
    return (shift + mean).reshape(-1), variance.reshape(-1)


def normalize(
    x: Float[Array, "batch height width *channel"],
    mean: Float[Array, "group channels"],
    variance: Float[Array, "group channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float,
) -> Float[Array, "batch height width *channel"]:
    """Return `(x - mean) / sqrt(variance + epsilon) * scale + bias`, with a row of statistics for each group of images.

    The arithmetic is float32; the result has the dtype of `x`. One row (running statistics) is for the whole batch.
    """
    factor = jax.lax.rsqrt(variance + epsilon) * scale[None]
    return _per_group(functools.partial(_scale_and_shift, bias=bias), mean.shape[0], x, mean, factor).reshape(x.shape)


def _scale_and_shift(
    x: Float[Array, "images height width *channel"],
    mean: Float[Array, " channels"],
    factor: Float[Array, " channels"],
    bias: Float[Array, " channels"],
) -> Float[Array, "images height width *channel"]:
    mean, factor, bias = (row.reshape(1, 1, 1, *x.shape[3:]) for row in (mean, factor, bias))
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


def _per_group(function: Callable, groups: int, x: Float[Array, "batch height width *channel"], *rows: Array) -> Any:
    """Return the stacked results of `function` for every group of images and its rows."""
    if groups == 1:  # without a reshape, which would keep a TPU's compiler from fusing across the batch norm
        return jax.tree.map(lambda out: out[None], function(x, *(row[0] for row in rows)))
    return jax.vmap(function)(x.reshape(groups, x.shape[0] // groups, *x.shape[1:]), *rows)


def update_running(
    running: Float[Array, " channel"], groups: Float[Array, "group channel"], momentum: float
) -> Float[Array, " channel"]:
    """Return `momentum * running + (1 - momentum) * mean over the groups`.

    The original code keeps the statistics of its first GPU only; the mean over the groups has less noise.
    """
    return momentum * running + (1.0 - momentum) * groups.mean(axis=0)
