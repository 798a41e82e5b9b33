"""Mixup and cutmix: every image mixed with the one before it in its batch-norm group.

Sources: Zhang et al. 2017 (arXiv 1710.09412); Yun et al. 2019 (arXiv 1905.04899). The originals mix the batch of one
GPU with one weight and one box. Here a batch-norm group takes the place of that batch: it does not depend on the number
of devices, and devices that hold whole groups exchange nothing. Its draws are keyed by (seed, step, position of its
first image). Because the images come shuffled, a roll by one is as random as any permutation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Folded into an image's key for these draws: augmentation splits the same key.
MIX = 0x6D6978


class Labels(NamedTuple):
    """The labels of a batch; `other` and `weight` are None where nothing is mixed."""

    own: Int[Array, " batch"]
    other: Int[Array, " batch"] | None = None  # label of the image that is mixed in
    weight: Float[Array, " batch"] | None = None  # weight of `own`, in [0, 1]; `other` has the rest

    def largest(self) -> Int[Array, " batch"]:
        """Return the label with the larger weight."""
        if self.other is None or self.weight is None:
            return self.own
        return jnp.where(self.weight >= 0.5, self.own, self.other)


def mix(
    images: Float[Array, "batch height width channel"],
    labels: Int[Array, " batch"],
    keys: Key[Array, " batch"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    group_images: int,
) -> tuple[Float[Array, "batch height width channel"], Labels]:
    """Return the mixed images and their labels.

    Args:
      keys: keys of the images (`ops.augment.image_keys`).
      mixup_alpha: the weight of mixup is drawn from Beta(alpha, alpha); 0 for no mixup.
      cutmix_alpha: likewise the share of the image that cutmix keeps. With both, each group takes one, 1:1.
      group_images: images per batch-norm group, 2 or more; 0 for the whole batch.
    """
    size = group_images or images.shape[0]
    groups = images.shape[0] // size
    kept, weight = jax.vmap(lambda key: _draw(key, images.shape[1], images.shape[2], mixup_alpha, cutmix_alpha))(
        keys[::size]
    )

    grouped = images.reshape(groups, size, *images.shape[1:])
    mixed = jax.vmap(lambda x, share: share * x + (1.0 - share) * jnp.roll(x, 1, axis=0))(grouped, kept)
    other = jnp.roll(labels.reshape(groups, size), 1, axis=1).reshape(-1)
    return mixed.reshape(images.shape), Labels(labels, other, jnp.repeat(weight, size))


def _draw(
    key: Key[Array, ""], height: int, width: int, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Float[Array, "1 height width 1"], Float[Array, ""]]:
    """Return how much of its own value each pixel of a group keeps, and the weight of its own label."""
    share_key, key = jax.random.split(jax.random.fold_in(key, MIX))
    choice, *place = jax.random.uniform(key, (3,), jnp.float32)
    both = mixup_alpha > 0 and cutmix_alpha > 0
    blends = choice < 0.5 if both else jnp.bool_(mixup_alpha > 0)
    alpha = jnp.where(blends, jnp.float32(mixup_alpha), jnp.float32(cutmix_alpha))
    share = jax.random.beta(share_key, alpha, alpha, (), jnp.float32)
    center = jnp.floor(jnp.stack(place) * jnp.array([height, width], jnp.float32)).astype(jnp.int32)
    outside = jnp.where(box(share, center, height, width), jnp.float32(0.0), 1.0)
    kept = jnp.where(blends, share, outside)[None, :, :, None]
    return kept, jnp.where(blends, share, outside.mean())  # of what the borders left of the box


def box(share: Float[Array, ""], center: Int[Array, "2"], height: int, width: int) -> Bool[Array, "height width"]:
    """Return cutmix's box around `center`: 1 - share of the image's area, its aspect, cut at the borders.

    Half the height and half the width are rounded down, as in torchvision.
    """
    half = 0.5 * jnp.sqrt(1.0 - share)

    def within(size: int, middle: Array) -> Array:
        places, reach = jnp.arange(size, dtype=jnp.int32), jnp.floor(half * size).astype(jnp.int32)
        return (places >= middle - reach) & (places < middle + reach)

    return within(height, center[0])[:, None] & within(width, center[1])[None]
