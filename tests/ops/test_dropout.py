"""Dropout: its definition, and whose draws are whose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.ops.augment import image_keys
from resnext_jax.ops.dropout import dropout, layer_keys, stochastic_depth

KEYS = image_keys(0, jnp.asarray(3), 64)


def zeros_of(keys, rate: float = 0.25) -> np.ndarray:
    return np.asarray(dropout(jnp.ones((len(keys), 20, 30)), keys, rate)) == 0


def test_values_are_dropped_or_scaled():
    x = np.random.default_rng(0).normal(size=(64, 20, 30)).astype(np.float32)
    y = np.asarray(dropout(jnp.asarray(x), KEYS, 0.25))
    dropped = y == 0
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.75, rtol=1e-6)
    # Of 38,400 values a quarter, within five standard deviations; and in every image about as many.
    assert abs(dropped.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / dropped.size)
    assert np.abs(dropped.mean(axis=(1, 2)) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 600)
    assert dropout(jnp.ones((64, 2), jnp.bfloat16), KEYS, 0.5).dtype == jnp.bfloat16
    np.testing.assert_array_equal(dropout(jnp.asarray(x), KEYS, 0.0), x)


def test_an_image_is_dropped_from_alike_in_any_split_of_the_batch():
    np.testing.assert_array_equal(np.concatenate([zeros_of(KEYS[:24]), zeros_of(KEYS[24:])]), zeros_of(KEYS))


def test_layers_images_and_steps_draw_independently():
    masks = [zeros_of(layer_keys(KEYS, number)) for number in (0, 1)]
    masks += [np.roll(masks[0], 1, axis=0), zeros_of(layer_keys(image_keys(0, jnp.asarray(4), 64), 0))]
    masks.append(zeros_of(KEYS))
    for i, one in enumerate(masks):
        for other in masks[:i]:
            # Both at once: 1/16 of them, within five standard deviations.
            assert abs((one & other).mean() - 1 / 16) < 5 * np.sqrt(1 / 16 * 15 / 16 / one.size)


def test_no_key_is_one_of_those_that_augmentation_splits_off():
    split = jax.vmap(lambda key: jax.random.split(key, 4))(KEYS).ravel()
    taken = {tuple(row) for row in np.asarray(jax.random.key_data(split))}
    ours = {tuple(row) for n in range(40) for row in np.asarray(jax.random.key_data(layer_keys(KEYS, n)))}
    assert len(ours) == 40 * 64
    assert not taken & ours


@pytest.mark.slow
def test_stochastic_depth_drops_whole_images():
    keys = layer_keys(image_keys(0, jnp.int32(1), 2000), 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 2, 3)), jnp.float32)
    got = np.asarray(stochastic_depth(x, keys, 0.2))
    dropped = (got == 0).all(axis=(1, 2))
    np.testing.assert_allclose(got[~dropped], np.asarray(x)[~dropped] / 0.8, rtol=1e-6)
    assert abs(dropped.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 2000)
    assert stochastic_depth(x.astype(jnp.bfloat16), keys, 0.2).dtype == jnp.bfloat16
    # An image is dropped wherever it stands in the batch.
    np.testing.assert_array_equal(stochastic_depth(x[7:9], keys[7:9], 0.2), got[7:9])
