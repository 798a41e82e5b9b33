"""erase.py: rectangles of zeros, with the sizes and places of torchvision's RandomErasing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.ops.augment import image_keys, make_augment
from resnext_jax.ops.erase import erase

NUM, HEIGHT, WIDTH = 4000, 40, 24


def erased_boxes(probability: float) -> np.ndarray:
    """(top, left, height, width) of each box, of many images; zeros where there is none."""
    keys = image_keys(0, jnp.int32(5), NUM)
    images = jax.vmap(lambda key: erase(key, jnp.ones((HEIGHT, WIDTH, 2)), probability))(keys)
    erased = np.asarray(images) == 0
    np.testing.assert_array_equal(np.asarray(images)[~erased], 1)
    np.testing.assert_array_equal(erased[..., 0], erased[..., 1])
    rows, columns = erased[..., 0].any(axis=2), erased[..., 0].any(axis=1)
    np.testing.assert_array_equal(erased[..., 0], rows[:, :, None] & columns[:, None])
    for line in (rows, columns):  # each in one piece
        assert (np.abs(np.diff(line.astype(int), prepend=0, append=0, axis=1)).sum(axis=1) <= 2).all()
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], axis=1)


@pytest.mark.slow
def test_boxes_are_distributed_as_torchvisions(torchvision):
    from torchvision.transforms import RandomErasing

    ours = erased_boxes(1.0)
    torch.manual_seed(0)
    image = torch.ones(1, HEIGHT, WIDTH)
    theirs = np.array([RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(NUM)])
    for name, got, want in zip(("top", "left", "height", "width"), ours.T, theirs.T, strict=True):
        error = np.sqrt((got.var() + want.var()) / NUM)
        assert abs(got.mean() - want.mean()) < 5 * error, name
        # Both cumulated distributions, whose largest distance has an error of about sqrt(2 / NUM) * 0.87.
        edges = np.arange(HEIGHT + 1)
        distance = np.abs((got[:, None] <= edges).mean(0) - (want[:, None] <= edges).mean(0)).max()
        assert distance < 2 * np.sqrt(2 / NUM), name
    area = (ours[:, 2] * ours[:, 3]) / (HEIGHT * WIDTH)
    assert 0.01 < area.min() < 0.03
    assert 0.31 < area.max() < 0.35


@pytest.mark.slow
def test_so_many_images_are_erased():
    share = (erased_boxes(0.1)[:, 2] > 0).mean()
    assert abs(share - 0.1) < 5 * np.sqrt(0.1 * 0.9 / NUM)


@pytest.mark.slow
def test_erasing_changes_no_other_draw():
    recipe: dict[str, Any] = dict(
        mean=(100.0,) * 3, std=(50.0,) * 3, color_jitter_strength=0.4, lighting_std=0.1, flip_images=True
    )
    images = jnp.asarray(np.random.default_rng(0).integers(1, 256, (64, 16, 16, 3), np.uint8))
    keys = image_keys(1, jnp.int32(2), 64)
    plain = np.asarray(make_augment(**recipe)(images, keys))
    erased = np.asarray(make_augment(**recipe, erase_probability=0.5)(images, keys))
    changed = plain != erased
    np.testing.assert_array_equal(erased[changed], 0)
    assert 0.25 < changed.any(axis=(1, 2, 3)).mean() < 0.75
