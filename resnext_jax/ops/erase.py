"""Random erasing (Zhong et al. 2017, arXiv 1708.04896), with the ranges of torchvision's RandomErasing."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

AREA_FRACTIONS = (0.02, 0.33)
ASPECTS = (0.3, 3.3)  # height over width; uniform in its logarithm
NUM_TRIES = 10
# A word between an image's key and these draws: augmentation splits the same key, which gives its first few.
ERASE = 0x65726173


def erase(
    key: Key[Array, ""], image: Float[Array, "height width channel"], probability: float
) -> Float[Array, "height width channel"]:
    """With this probability one rectangle of a normalised image becomes 0, the mean of the pixels.

    Of ten rectangles, each of another area and aspect, the first is taken that is smaller than the image both ways; it
    lies anywhere in it. Where none is, nothing happens.
    """
    height, width = image.shape[:2]
    drawn = jax.random.uniform(jax.random.fold_in(key, ERASE), (2 * NUM_TRIES + 3,))
    chance, place, areas, aspects = drawn[0], drawn[1:3], drawn[3 : 3 + NUM_TRIES], drawn[3 + NUM_TRIES :]
    areas = height * width * _between(areas, *AREA_FRACTIONS)
    aspects = jnp.exp(_between(aspects, *map(math.log, ASPECTS)))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = heights[first], widths[first]
    room = jnp.stack([height - box_height + 1, width - box_width + 1])
    top, left = jnp.floor(place * room.astype(jnp.float32)).astype(jnp.int32)
    erased = (chance < probability) & fits[first]
    rows, columns = _within(height, top, box_height), _within(width, left, box_width)
    return jnp.where((rows[:, None] & columns[None] & erased)[..., None], 0.0, image)


def _between(share: Array, low: float, high: float) -> Array:
    return low + (high - low) * share


def _within(size: int, start: Array, length: Array) -> Bool[Array, " size"]:
    places = jnp.arange(size)
    return (places >= start) & (places < start + length)
