"""ops.augment against plain numpy: what was drawn is read off the result, then the whole image is computed anew."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.ops import augment as lib

DRAWS = 2000
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(1, 256, (4, 6, 3)).astype(np.float64)
LUMA = np.array([0.299, 0.587, 0.114])
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
IMAGENET: dict[str, Any] = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def draws(function, *arguments, image=IMAGE) -> np.ndarray:
    """(DRAWS, height, width, channel): the function with as many keys."""
    keys = jax.random.split(jax.random.key(1), DRAWS)
    one = jnp.asarray(image, jnp.float32)
    return np.asarray(jax.jit(jax.vmap(lambda key: function(key, one, *arguments)))(keys), np.float64)


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Within the bounds, close to both, and with the mean and the spread of a uniform draw (5 standard errors)."""
    width, slack = high - low, 1e-4
    assert low - slack <= values.min() < low + 0.02 * width
    assert high + slack >= values.max() > high - 0.02 * width
    assert abs(values.mean() - (low + high) / 2) < 5 * width / np.sqrt(12 * len(values))
    assert abs(values.std() - width / np.sqrt(12)) < 5 * width / np.sqrt(30 * len(values))


def numpy_jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float, order) -> np.ndarray:
    for number in order:
        grey = (image * LUMA).sum(-1, keepdims=True)
        other = (np.zeros_like(image), np.full_like(image, grey.mean()), grey)[number]
        alpha = (brightness, contrast, saturation)[number]
        image = alpha * image + (1 - alpha) * other
    return image


def jitter_alphas(images: np.ndarray) -> np.ndarray:
    """(draw, 3): what IMAGE was blended by.

    Only brightness moves the mean grey, saturation keeps every grey, and so each ratio isolates one blend.
    """

    def parts(x):
        grey = (x * LUMA).sum(-1, keepdims=True)
        mean = grey.mean((-3, -2, -1), keepdims=True)
        return mean[..., 0, 0, 0], (grey - mean)[..., 0, 0, 0], (x - grey)[..., 0, 0, 2]

    mean, contrast, chroma = (got / before for got, before in zip(parts(images), parts(IMAGE), strict=True))
    return np.stack([mean, contrast / mean, chroma / contrast], -1)


def test_color_jitter_blends_in_any_order():
    images = draws(lib.color_jitter, 0.4)
    alphas = jitter_alphas(images)
    for image, alpha in zip(images[:50], alphas[:50], strict=True):
        # Without clipping the three blends commute, so one image fits every order.
        for order in itertools.permutations(range(3)):
            np.testing.assert_allclose(image, numpy_jitter(IMAGE, *alpha, order=order), atol=0.02)


def test_color_jitter_strengths_are_uniform_and_independent():
    alphas = jitter_alphas(draws(lib.color_jitter, 0.4))
    for alpha in alphas.T:
        assert_uniform(alpha, 0.6, 1.4)
    correlation = np.corrcoef(alphas.T) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(DRAWS)


def test_lighting_shifts_along_the_eigenvectors():
    shifts = draws(lib.pca_lighting, 0.1) - IMAGE
    # One shift for all pixels of an image.
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-3)
    normal = np.linalg.solve(EIGENVECTORS, shifts[:, 0, 0].T / 255).T / EIGENVALUES
    assert np.abs(normal.mean(0)).max() < 5 * 0.1 / np.sqrt(DRAWS)
    assert np.abs(normal.std(0) - 0.1).max() < 5 * 0.1 / np.sqrt(2 * DRAWS)
    assert np.abs(np.corrcoef(normal.T) - np.eye(3)).max() < 5 / np.sqrt(DRAWS)


def test_lighting_is_normal_with_the_covariance_by_definition():
    """Kolmogorov-Smirnov against the normal distribution, and 255^2 * V diag(0.1 * lambda)^2 V^T."""
    shifts = (draws(lib.pca_lighting, 0.1) - IMAGE)[:, 0, 0]
    for draw in (np.linalg.solve(EIGENVECTORS, shifts.T / 255).T / EIGENVALUES / 0.1).T:
        cdf = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in np.sort(draw)])
        assert np.abs(cdf - (np.arange(DRAWS) + 0.5) / DRAWS).max() < 1.95 / np.sqrt(DRAWS)  # p = 0.001
    scaled = EIGENVECTORS * EIGENVALUES * 0.1 * 255
    want = scaled @ scaled.T
    found = shifts.T @ shifts / DRAWS
    # The variance of a product of two normal draws, over their number; five standard errors.
    error = np.sqrt((np.outer(np.diag(want), np.diag(want)) + want**2) / DRAWS)
    assert (np.abs(found - want) < 5 * error).all()


def test_flip_mirrors_every_second_image():
    images = draws(lib.flip)
    mirrored = (images == IMAGE[:, ::-1]).all((1, 2, 3))
    assert (mirrored != (images == IMAGE).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(DRAWS)


def test_pad_crop_takes_every_place_equally_often():
    # Pixels numbered from 1: where the crop was taken can be read off any pixel that is not padding.
    image = np.arange(1.0, 21.0).reshape(4, 5, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    counts = np.zeros((5, 5))
    for crop in draws(lib.pad_crop, 2, image=image):
        row, column = np.argwhere(crop[..., 0])[0]
        number = int(crop[row, column, 0]) - 1
        top, left = number // 5 + 2 - row, number % 5 + 2 - column
        np.testing.assert_array_equal(crop, padded[top : top + 4, left : left + 5])
        counts[top, left] += 1
    expected = DRAWS / 25
    # Chi-squared with 24 degrees of freedom: 68 is exceeded once in 300,000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 68


def test_normalize():
    got = lib.normalize(jnp.asarray(IMAGE[None], jnp.float32), (10.0, 20.0, 30.0), (1.0, 2.0, 4.0))
    want = np.stack([IMAGE[..., 0] - 10, (IMAGE[..., 1] - 20) / 2, (IMAGE[..., 2] - 30) / 4], -1)
    np.testing.assert_allclose(got[0], want, rtol=1e-6)


def batch_of(image: np.ndarray, count: int) -> jnp.ndarray:
    return jnp.asarray(np.broadcast_to(image.astype(np.uint8), (count, *image.shape)))


def test_without_parts_it_only_normalizes():
    got = lib.make_augment(**IMAGENET)(batch_of(IMAGE, 2), lib.image_keys(0, jnp.int32(0), 2))
    want = (IMAGE - IMAGENET["mean"]) / IMAGENET["std"]
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-5, atol=1e-6)
    assert got.dtype == jnp.float32


def test_cifar_pads_after_it_normalizes():
    black = np.zeros((4, 4, 1))
    augment = lib.make_augment(mean=(20.0,), std=(4.0,), flip_images=True, pad_px=1)
    got = np.asarray(augment(batch_of(black, 64), lib.image_keys(0, jnp.int32(0), 64)))
    # Black pixels are -5; the padding is 0, the mean image, not black.
    assert set(np.unique(got)) == {-5.0, 0.0}
    assert len(np.unique(got.reshape(64, -1), axis=0)) == 9


def fitted(images: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(5, image) scale, factor of the grey and three shifts that make the images of `source`; the largest errors.

    Jitter and lighting make `scale * pixel + by_grey * grey + shift`: five numbers explain all 72 values.
    """
    grey = np.broadcast_to((source * LUMA).sum(-1, keepdims=True), source.shape)
    shifts = np.broadcast_to(np.eye(3), (*source.shape[:2], 3, 3))
    columns = np.concatenate([source[..., None], grey[..., None], shifts], -1).reshape(-1, 5)
    values = images.reshape(len(images), -1).T
    solution = np.linalg.lstsq(columns, values)[0]
    return solution, np.abs(columns @ solution - values).max(0)


def test_imagenet_jitters_before_it_normalizes():
    augment = lib.make_augment(**IMAGENET, color_jitter_strength=0.4, lighting_std=0.1, flip_images=True)
    got = np.asarray(jax.jit(augment)(batch_of(IMAGE, 64), lib.image_keys(3, jnp.int32(5), 64)), np.float64)
    mean, std = np.array(IMAGENET["mean"]), np.array(IMAGENET["std"])
    errors = np.array([fitted(got * std + mean, source)[1] for source in (IMAGE, IMAGE[:, ::-1])])
    assert errors.min(axis=0).max() < 0.05
    assert errors.max(axis=0).min() > 1
    assert 12 < (errors[1] < errors[0]).sum() < 52


@pytest.fixture(scope="module")
def full_recipe():
    recipe: dict[str, Any] = dict(color_jitter_strength=0.4, lighting_std=0.1, flip_images=True, pad_px=2)
    return jax.jit(lib.make_augment(**IMAGENET, **recipe))


@pytest.mark.slow
def test_an_image_gets_its_draws_in_any_split_of_the_batch(full_recipe):
    keys = lib.image_keys(7, jnp.int32(11), 6)
    images = jnp.asarray(RNG.integers(0, 256, (6, 4, 6, 3)), jnp.uint8)
    parts = [full_recipe(images[rows], keys[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
    np.testing.assert_allclose(np.concatenate(parts), full_recipe(images, keys), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        jax.random.key_data(lib.image_keys(7, jnp.int32(11), 3)), jax.random.key_data(keys[:3])
    )


@pytest.mark.parametrize(("seed", "step", "position"), [(8, 11, 0), (7, 12, 0), (7, 11, 1)])
def test_draws_differ_by_seed_step_and_position(full_recipe, seed, step, position):
    first = full_recipe(batch_of(IMAGE, 2), lib.image_keys(7, jnp.int32(11), 2))[0]
    second = full_recipe(batch_of(IMAGE, 2), lib.image_keys(seed, jnp.int32(step), 2))[position]
    assert np.abs(first - second).max() > 0.01


def test_flip_and_place_of_the_crop_are_independent():
    image = np.arange(1, 21).reshape(4, 5, 1)
    augment = jax.jit(lib.make_augment(mean=(0.0,), std=(1.0,), flip_images=True, pad_px=2))
    counts = np.zeros((2, 5, 5))
    for crop in np.asarray(augment(batch_of(image, DRAWS), lib.image_keys(0, jnp.int32(0), DRAWS)))[..., 0]:
        row, column = np.argwhere(crop)[0]
        first, second = crop[row, column : column + 2].astype(int)
        flipped = int(second < first)
        place = (first - 1) % 5
        counts[flipped, (first - 1) // 5 + 2 - row, (4 - place if flipped else place) + 2 - column] += 1
    expected = DRAWS / 50
    # Chi-squared with 49 degrees of freedom: 107 is exceeded once in 300,000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 107


def test_jitter_lighting_and_flip_are_independent():
    recipe: dict[str, Any] = dict(color_jitter_strength=0.4, lighting_std=0.1, flip_images=True)
    augment = jax.jit(lib.make_augment(mean=(0.0,) * 3, std=(1.0,) * 3, **recipe))
    images = np.asarray(augment(batch_of(IMAGE, DRAWS), lib.image_keys(2, jnp.int32(9), DRAWS)), np.float64)
    fits, errors = zip(*(fitted(images, source) for source in (IMAGE, IMAGE[:, ::-1])), strict=True)
    flipped = errors[1] < errors[0]
    assert (np.where(flipped, errors[1], errors[0]) < 0.05).all()
    scale, _, red, green, blue = np.where(flipped, fits[1], fits[0])
    # The scale is jitter's alone, and the differences between the shifts are lighting's alone.
    correlation = np.corrcoef([scale, red - green, green - blue, flipped])
    assert max(abs(correlation[pair]) for pair in ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3))) < 5 / np.sqrt(DRAWS)


def test_neighbours_in_the_batch_and_in_time_draw_independently():
    def draw(key):
        return lib.pca_lighting(key, jnp.zeros((1, 1, 3)), 0.1)[0, 0, 0]

    one_step = jax.jit(lambda step: jax.vmap(draw)(lib.image_keys(4, step, 50)))
    table = np.stack([np.asarray(one_step(jnp.int32(step))) for step in range(100)])
    for first, second in ((table[:, :-1], table[:, 1:]), (table[:-1], table[1:]), (table[:-1, :-1], table[1:, 1:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(first.size)
    assert len(np.unique(table)) > 4990
