"""Random erasing (Zhong et al. 2017, arXiv 1708.04896), with the ranges of torchvision's RandomErasing."""

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
    chance_key, area_key, aspect_key, place_key = jax.random.split(jax.random.fold_in(key, ERASE), 4)
    height, width = image.shape[:2]
    areas = height * width * jax.random.uniform(area_key, (NUM_TRIES,), jnp.float32, *AREA_FRACTIONS)
    low, high = (jnp.log(jnp.float32(aspect)) for aspect in ASPECTS)
    aspects = jnp.exp(jax.random.uniform(aspect_key, (NUM_TRIES,), jnp.float32, low, high))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = heights[first], widths[first]
    size = jnp.stack([box_height, box_width])
    top, left = jax.random.randint(place_key, (2,), 0, jnp.array([height, width]) - size + 1)
    erased = jax.random.bernoulli(chance_key, probability) & fits[first]
    rows, columns = _within(height, top, box_height), _within(width, left, box_width)
    return jnp.where((rows[:, None] & columns[None] & erased)[..., None], 0.0, image)


def _within(size: int, start: Array, length: Array) -> Bool[Array, " size"]:
    places = jnp.arange(size)
    return (places >= start) & (places < start + length)
