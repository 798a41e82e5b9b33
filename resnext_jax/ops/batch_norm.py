"""Batch norm whose statistics are taken over groups of images, whatever the number of devices.

The paper trains 256 images as 8 GPUs x 32 with statistics per GPU (ICML 2015 batch norm; fb.resnet.torch). Here the
group is a property of the recipe: images [0, g), [g, 2g), ... of the global batch, found by a plain reshape. When g
divides the images per device no communication is needed; otherwise the partitioner adds it, and the numbers stay.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def group_statistics(
    x: Float[Array, "batch height width *channel"], group_images: int
) -> tuple[Float[Array, "group channels"], Float[Array, "group channels"]]:
    """Mean and biased variance of each channel over each group of images, in float32, in one pass over `x`.

    Args:
      x: activations; `batch` must be a multiple of `group_images`. Channels in blocks count through.
      group_images: consecutive images per group; 0 takes the whole batch as one group.

    Raises:
      ValueError: the groups do not divide the batch.
    """
    images = group_images or x.shape[0]
    if x.shape[0] % images:
        raise ValueError(f"a batch of {x.shape[0]} images does not divide into batch-norm groups of {images}")
    return _per_group(_statistics, x.shape[0] // images, x)


def _statistics(
    x: Float[Array, "images height width *channel"],
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    x = x.astype(jnp.float32)
    mean = x.mean(axis=(0, 1, 2))
    # One pass: both sums are read off the same sweep. Clamped, because the difference may round below zero.
    variance = jnp.maximum(jnp.square(x).mean(axis=(0, 1, 2)) - jnp.square(mean), 0.0)
    return mean.reshape(-1), variance.reshape(-1)


def normalize(
    x: Float[Array, "batch height width *channel"],
    mean: Float[Array, "group channels"],
    variance: Float[Array, "group channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float,
) -> Float[Array, "batch height width *channel"]:
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias`, each group of images with its own row of statistics.

    The arithmetic is float32; the result has the dtype of `x`. One group (running statistics) covers the whole batch.
    """
    factor = jax.lax.rsqrt(variance + epsilon) * scale[None]
    offset = bias[None] - mean * factor
    return _per_group(_scale_and_shift, mean.shape[0], x, factor, offset).reshape(x.shape)


def _scale_and_shift(
    x: Float[Array, "images height width *channel"],
    factor: Float[Array, " channels"],
    offset: Float[Array, " channels"],
) -> Float[Array, "images height width *channel"]:
    factor, offset = (row.reshape(1, 1, 1, *x.shape[3:]) for row in (factor, offset))
    return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)


def _per_group(function: Callable, groups: int, x: Float[Array, "batch height width *channel"], *rows: Array) -> Any:
    """`function` of every group of images and its rows, the results stacked.

    One group is not put through a reshape: it would keep a TPU's compiler from fusing across the batch norm.
    """
    if groups == 1:
        return jax.tree.map(lambda out: out[None], function(x, *(row[0] for row in rows)))
    return jax.vmap(function)(x.reshape(groups, x.shape[0] // groups, *x.shape[1:]), *rows)


def update_running(
    running: Float[Array, " channel"], groups: Float[Array, "group channel"], momentum: float
) -> Float[Array, " channel"]:
    """The exponential average moved towards the mean over the groups: `momentum * running + (1 - momentum) * mean`.

    The original code keeps the running statistics of its first GPU alone; the mean over the groups estimates the
    same quantity with less noise.
    """
    return momentum * running + (1.0 - momentum) * groups.mean(axis=0)
