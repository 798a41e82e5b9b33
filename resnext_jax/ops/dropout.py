"""Dropout and stochastic depth, keyed per image as all draws are: the same on any number of devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Folded into an image's key before the number of a layer: augmentation splits the same key.
LAYERS = 0x64726F70


def layer_keys(keys: Key[Array, " batch"] | None, number: int) -> Key[Array, " batch"]:
    """Return the key of every image (`ops.augment.image_keys`) for the layer of this number.

    Raises:
      ValueError: there are no keys.
    """
    if keys is None:
        raise ValueError("dropout and stochastic depth draw from the keys of the images: call the network with keys")
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, LAYERS), number))(keys)


def dropout(x: Float[Array, "batch *dims"], keys: Key[Array, " batch"], rate: float) -> Float[Array, "batch *dims"]:
    """Return x, each value 0 with probability `rate`, and otherwise divided by `1 - rate`; see `layer_keys`."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(1.0 - rate), x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def stochastic_depth(
    x: Float[Array, "batch *dims"], keys: Key[Array, " batch"], rate: float
) -> Float[Array, "batch *dims"]:
    """Return x, all of an image 0 with probability `rate`, and otherwise divided by `1 - rate`.

    Source: Huang et al. 2016 (arXiv 1603.09382). The scale is for training, as in timm; inference needs none.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(1.0 - rate)))(keys)
    factor = jnp.where(kept, jnp.float32(1.0 / (1.0 - rate)), 0.0).astype(x.dtype)
    return x * factor.reshape(-1, *[1] * (x.ndim - 1))
