"""What the configs of the newer recipes say reaches the images and the loss; the values stand here, by the recipes."""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from sklearn.datasets import load_sample_image

from resnext_jax import builders as dataset
from resnext_jax.builders import build_augment, build_mix
from resnext_jax.config import command_line
from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.policies import make_alter
from resnext_jax.data.readers import ArraySource
from resnext_jax.ops.augment import image_keys
from resnext_jax.ops.mix import Labels, mix
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train.classification import Classification
from resnext_jax.types import DatasetInfo

PHOTO = load_sample_image("china.jpg")
PHOTOS = np.stack([PHOTO[top : top + 48, left : left + 56] for top in range(0, 360, 60) for left in range(0, 560, 70)])
SOURCE = ArraySource("photos", PHOTOS, np.arange(len(PHOTOS)), [str(index) for index in range(len(PHOTOS))], "")
PLACE = Place(make_mesh(jax.devices()[:1]), "cpu")
GROUP, BATCH = 8, 24


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A column of docs/recipes.md."""

    policy: str
    magnitude: int
    repeats: int
    erase: float
    mixup: float
    smoothing: float
    threshold: float | None = None


RECIPES = {
    "v2": Recipe("trivial_augment", 0, 1, 0.1, 0.2, 0.1),
    "a1": Recipe("rand_augment", 7, 3, 0.0, 0.2, 0.1),
    "a2": Recipe("rand_augment", 7, 3, 0.0, 0.1, 0.0, 0.2),
    "a3": Recipe("rand_augment", 6, 1, 0.0, 0.1, 0.0, 0.2),
}
each_recipe = pytest.mark.parametrize("name", RECIPES)


def config_of(name: str):
    """The recipe with small batches of small images."""
    config = command_line.load(str(tiny.ROOT / "configs" / f"resnext50_32x4d_{name}.py"))
    config.batch_size, config.bn_group_images, config.seed = BATCH, GROUP, 5
    config.data.train_size_px, config.data.num_threads = 24, 0
    return config


@each_recipe
def test_batches_are_cropped_altered_and_repeated(name):
    recipe = RECIPES[name]
    got = next(dataset.training_batches(config_of(name), SOURCE, PLACE, 0, 1))
    alter = make_alter(recipe.policy, magnitude=recipe.magnitude, flip=True, mean=(123.675, 116.28, 103.53))
    crop = Crop("random_sized", 24, alter=alter)
    how: dict[str, Any] = dict(batch_size=BATCH, seed=5, steps=range(1), repeats=recipe.repeats, group_images=GROUP)
    want = next(train_batches(SOURCE, crop, **how))
    np.testing.assert_array_equal(got.label, want.label)
    np.testing.assert_array_equal(got.image, want.image)
    assert len(set(got.label.tolist())) == BATCH // recipe.repeats


@pytest.mark.slow
@each_recipe
def test_images_are_erased_as_often_as_it_says(name):
    """White ones: what is erased becomes 0, their mean colour, and nothing else changes them on the device."""
    count, probability = 3000, RECIPES[name].erase
    images = np.full((count, 16, 16, 3), 255, np.uint8)
    augmented = np.asarray(build_augment(config_of(name))(images, image_keys(5, jnp.int32(0), count)))
    erased = (augmented == 0).all(axis=-1).any(axis=(1, 2))
    assert abs(erased.mean() - probability) <= 5 * np.sqrt(probability * (1 - probability) / count)
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    kept = augmented[~erased]
    np.testing.assert_allclose(kept, np.broadcast_to(white, kept.shape), rtol=1e-5)


@pytest.mark.slow
@each_recipe
def test_images_are_mixed_with_its_alphas(name):
    images = np.random.default_rng(0).normal(size=(BATCH, 10, 12, 3)).astype(np.float32)
    own = np.arange(BATCH)
    for step in range(3):  # mixup and cutmix come 1:1
        args = jnp.asarray(images), jnp.asarray(own), image_keys(5, jnp.int32(step), BATCH)
        got, want = (
            how(*args)
            for how in (
                build_mix(config_of(name)),
                lambda *args: mix(*args, mixup_alpha=RECIPES[name].mixup, cutmix_alpha=1.0, group_images=GROUP),
            )
        )
        jax.tree.map(np.testing.assert_array_equal, got, want)


@each_recipe
@pytest.mark.slow
def test_the_loss_is_the_recipes(name, torchvision):
    """PyTorch's for V2, timm's for the others, of images that are mixed."""
    bce = importlib.import_module("timm.loss").BinaryCrossEntropy

    recipe = RECIPES[name]
    rng = np.random.default_rng(1)
    logits, own, other = (3 * rng.normal(size=(6, 5))).astype(np.float32), np.arange(6) % 5, (np.arange(6) + 2) % 5
    weight = np.array([0.95, 0.7, 0.5, 0.85, 0.1, 1.0], np.float32)
    shares = weight[:, None] * np.eye(5)[own] + (1 - weight)[:, None] * np.eye(5)[other]
    # As torchvision and timm smooth them.
    shares = torch.tensor((1 - recipe.smoothing) * shares + recipe.smoothing / 5, dtype=torch.float32)
    if name == "v2":
        want = torch.nn.CrossEntropyLoss()(torch.tensor(logits), shares)
    else:
        want = bce(smoothing=0.0, target_threshold=recipe.threshold)(torch.tensor(logits), shares)
    run = Classification(config_of(name), PLACE, DatasetInfo("photos", 10_000, tuple("abcde"), None))
    loss = run.plain_step.keywords["loss_fn"].keywords["loss"]
    got = loss(jnp.asarray(logits), Labels(jnp.asarray(own), jnp.asarray(other), jnp.asarray(weight)))
    np.testing.assert_allclose(np.mean(got), want, rtol=1e-5)
