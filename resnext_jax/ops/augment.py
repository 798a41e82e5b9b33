"""Augmentation on the device: uint8 in, normalized float32 out, every draw keyed per image.

The order is the original code's (recipe of fb.resnet.torch): color jitter, PCA lighting, normalize, flip; on CIFAR
normalize, flip, zero-pad and crop. Random erasing, which it does not have, comes last. Keys come from (seed, step,
position in the global batch), so that an image gets the same draws on any number of devices.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from resnext_jax.ops.erase import erase
from resnext_jax.ops.keys import seed_key

Image = Float[Array, "height width channel"]

# PCA of ImageNet's RGB values (Krizhevsky et al. 2012), as in the original code: eigenvectors are the columns.
LIGHTING_EIGENVALUES = (0.2175, 0.0188, 0.0045)
LIGHTING_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
LUMA = (0.299, 0.587, 0.114)


def image_keys(seed: int, step: Int[Array, ""], batch_size: int) -> Key[Array, " batch"]:
    """Return one key per image, a function of (seed, step, position in the global batch)."""
    step_key = jax.random.fold_in(seed_key(seed), step)
    return jax.vmap(partial(jax.random.fold_in, step_key))(jnp.arange(batch_size, dtype=jnp.int32))


def normalize(
    images: Float[Array, "*dims channel"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*dims channel"]:
    """Return `(images - mean) / std` per channel; all three on the scale 0..255."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    return (images - jnp.asarray(mean, jnp.float32).reshape(shape)) / jnp.asarray(std, jnp.float32).reshape(shape)


def color_jitter(key: Key[Array, ""], image: Image, strength: float) -> Image:
    """Change brightness, contrast and saturation by blends `alpha * x + (1 - alpha) * other`, alpha = 1 + U(-s, s).

    `other` is black, the mean gray of the image, and the gray image. Values are not clipped, as in the original. The
    original's random order makes no difference: the blends are linear and the weights of gray sum to 1, so all six
    orders are the same function.
    """
    brightness, contrast, saturation = 1.0 + jax.random.uniform(key, (3,), jnp.float32, -strength, strength)

    def gray(x: Image) -> Float[Array, "height width 1"]:
        return (x * jnp.asarray(LUMA, jnp.float32)[None, None]).sum(axis=-1, keepdims=True)

    image = brightness * image
    image = contrast * image + (1.0 - contrast) * gray(image).mean(keepdims=True)
    return saturation * image + (1.0 - saturation) * gray(image)


def pca_lighting(key: Key[Array, ""], image: Image, std: float) -> Image:
    """Add `255 * V @ (a * lambda)` to every pixel, a ~ N(0, std) each (Krizhevsky et al. 2012, section 4.1)."""
    alpha = std * jax.random.normal(key, (3,), jnp.float32) * jnp.asarray(LIGHTING_EIGENVALUES, jnp.float32)
    shift = jnp.matmul(jnp.asarray(LIGHTING_EIGENVECTORS, jnp.float32), alpha, precision="highest")
    return image + 255.0 * shift[None, None]


def flip(key: Key[Array, ""], image: Image) -> Image:
    """Mirror left and right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5)), image[:, ::-1], image)


def pad_crop(key: Key[Array, ""], image: Image, pad_px: int) -> Image:
    """Pad with zeros on every side and crop the original size at a uniformly drawn place."""
    top_left = jax.random.randint(key, (2,), 0, 2 * pad_px + 1, jnp.int32)
    padded = jnp.pad(image, ((pad_px, pad_px), (pad_px, pad_px), (0, 0)))
    return jax.lax.dynamic_slice(padded, (top_left[0], top_left[1], jnp.int32(0)), image.shape)


def make_augment(
    *,
    mean: Sequence[float],
    std: Sequence[float],
    color_jitter_strength: float = 0.0,
    lighting_std: float = 0.0,
    flip_images: bool = False,
    pad_px: int = 0,
    erase_probability: float = 0.0,
) -> Callable[[UInt8[Array, "batch height width channel"], Key[Array, " batch"]], Array]:
    """Return the training augmentation of a recipe: `augment(images, keys) -> normalized float32 images`.

    A part whose strength is 0 (or False) is left out of the program. Color jitter and lighting need three channels.
    """

    def one(image: UInt8[Array, "height width channel"], key: Key[Array, ""]) -> Image:
        jitter_key, lighting_key, flip_key, crop_key = jax.random.split(key, 4)
        x = image.astype(jnp.float32)
        if color_jitter_strength:
            x = color_jitter(jitter_key, x, color_jitter_strength)
        if lighting_std:
            x = pca_lighting(lighting_key, x, lighting_std)
        x = normalize(x, mean, std)
        if flip_images:
            x = flip(flip_key, x)
        if pad_px:
            x = pad_crop(crop_key, x, pad_px)
        if erase_probability:
            x = erase(key, x, erase_probability)
        return x

    return jax.vmap(one)
