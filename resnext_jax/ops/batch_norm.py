"""Batch norm whose statistics are taken over groups of images, whatever the number of devices.

The paper trains 256 images as 8 GPUs x 32 with statistics per GPU (ICML 2015 batch norm; fb.resnet.torch). Here the
group is a property of the recipe: images [0, g), [g, 2g), ... of the global batch, found by a plain reshape. When g
divides the images per device no communication is needed; otherwise the partitioner adds it, and the numbers stay.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def group_statistics(
    x: Float[Array, "batch height width channel"], group_images: int
) -> tuple[Float[Array, "group channel"], Float[Array, "group channel"]]:
    """Mean and biased variance of each channel over each group of images, in float32, in one pass over `x`.

    Args:
      x: activations; `batch` must be a multiple of `group_images`.
      group_images: consecutive images per group; 0 takes the whole batch as one group.

    Raises:
      ValueError: the groups do not divide the batch.
    """
    batch, height, width, channel = x.shape
    images = group_images or batch
    if batch % images:
        raise ValueError(f"a batch of {batch} images does not divide into batch-norm groups of {images}")
    grouped = x.reshape(batch // images, images * height * width, channel).astype(jnp.float32)
    mean = grouped.mean(axis=1)
    # One pass: both sums are read off the same sweep. Clamped, because the difference may round below zero.
    variance = jnp.maximum(jnp.square(grouped).mean(axis=1) - jnp.square(mean), 0.0)
    return mean, variance


def normalize(
    x: Float[Array, "batch height width channel"],
    mean: Float[Array, "group channel"],
    variance: Float[Array, "group channel"],
    scale: Float[Array, " channel"],
    bias: Float[Array, " channel"],
    epsilon: float,
) -> Float[Array, "batch height width channel"]:
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias`, each group of images with its own row of statistics.

    The arithmetic is float32; the result has the dtype of `x`. One group (running statistics) covers the whole batch.
    """
    batch, height, width, channel = x.shape
    groups = mean.shape[0]
    factor = jax.lax.rsqrt(variance + epsilon) * scale[None]
    offset = bias[None] - mean * factor
    grouped = x.reshape(groups, batch // groups, height, width, channel).astype(jnp.float32)
    y = grouped * factor[:, None, None, None] + offset[:, None, None, None]
    return y.reshape(x.shape).astype(x.dtype)


def update_running(
    running: Float[Array, " channel"], groups: Float[Array, "group channel"], momentum: float
) -> Float[Array, " channel"]:
    """The exponential average moved towards the mean over the groups: `momentum * running + (1 - momentum) * mean`.

    The original code keeps the running statistics of its first GPU alone; the mean over the groups estimates the
    same quantity with less noise.
    """
    return momentum * running + (1.0 - momentum) * groups.mean(axis=0)
