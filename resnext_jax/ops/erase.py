"""Random erasing (Zhong et al. 2017, arXiv 1708.04896), with the ranges of torchvision's RandomErasing."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

AREA_FRACTIONS = (0.02, 0.33)
ASPECTS = (0.3, 3.3)  # height over width; uniform in its logarithm
NUM_TRIES = 10
# Folded into an image's key for these draws: augmentation splits the same key.
ERASE = 0x65726173


def erase(
    key: Key[Array, ""], image: Float[Array, "height width channel"], probability: float
) -> Float[Array, "height width channel"]:
    """Set one rectangle of a normalized image to 0, the mean of the pixels, with this probability.

    Ten areas and aspects are drawn. The first rectangle that is smaller than the image both ways is erased, at a random
    place; if there is none, the image is unchanged.
    """
    height, width = image.shape[:2]
    drawn = jax.random.uniform(jax.random.fold_in(key, ERASE), (2 * NUM_TRIES + 3,), jnp.float32)
    chance, place, areas, aspects = drawn[0], drawn[1:3], drawn[3 : 3 + NUM_TRIES], drawn[3 + NUM_TRIES :]
    areas = height * width * _between(areas, *AREA_FRACTIONS)
    aspects = jnp.exp(_between(aspects, *map(math.log, ASPECTS)))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = heights[first], widths[first]
    places = jnp.stack([height - box_height + 1, width - box_width + 1])
    top, left = jnp.floor(place * places.astype(jnp.float32)).astype(jnp.int32)
    erased = (chance < probability) & fits[first]
    rows, columns = _within(height, top, box_height), _within(width, left, box_width)
    return jnp.where((rows[:, None] & columns[None] & erased)[..., None], 0.0, image)


def _between(share: Array, low: float, high: float) -> Array:
    return low + (high - low) * share


def _within(size: int, start: Array, length: Array) -> Bool[Array, " size"]:
    places = jnp.arange(size, dtype=jnp.int32)
    return (places >= start) & (places < start + length)
