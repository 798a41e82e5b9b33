"""policies.py and image_ops.py: the drawn operations against torchvision and timm pixel for pixel, and their odds."""

import dataclasses
import random
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from resnext_jax.data import policies
from resnext_jax.data.crops import Crop
from resnext_jax.data.image_ops import OPS
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.readers import ArraySource

PHOTO = np.ascontiguousarray(load_sample_image("flower.jpg")[180:244, 260:350])
MEAN = (123.675, 116.28, 103.53)
BLACK = (0, 0, 0)
GREY = PHOTO[..., 1:2]


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


@pytest.mark.parametrize("name", policies.WIDE)
def test_trivial_augment_is_torchvisions(torchvision, name):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import TrivialAugmentWide

    theirs = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    magnitudes, signed = theirs._AUGMENTATION_SPACE[camel(name)]
    values = magnitudes(31, *PHOTO.shape[:2])
    assert signed == policies.WIDE[name][2]
    for strength in range(31):
        for negative in (False, True):
            magnitude = 0.0 if values is None else float(values[strength]) * (-1 if signed and negative else 1)
            want = theirs._apply_image_or_video_transform(
                Image.fromarray(PHOTO), camel(name), magnitude, theirs.interpolation, theirs._fill
            )
            drawn = [(name, policies.wide_argument(name, strength, negative=negative))]
            got = policies.apply(PHOTO, drawn, Image.Resampling.BILINEAR, BLACK)
            np.testing.assert_array_equal(got, np.asarray(want), err_msg=f"{strength} {negative}")


def test_trivial_augment_has_torchvisions_operations(torchvision):
    from torchvision.transforms.v2 import TrivialAugmentWide

    assert [camel(name) for name in policies.WIDE] == list(TrivialAugmentWide._AUGMENTATION_SPACE)


@pytest.mark.parametrize("name", policies.INCREASING)
def test_rand_augment_is_timms(torchvision, name):
    from timm.data import auto_augment

    theirs = {
        "posterize": "PosterizeIncreasing",
        "solarize": "SolarizeIncreasing",
        "translate_x": "TranslateXRel",
        "translate_y": "TranslateYRel",
        **{which: f"{camel(which)}Increasing" for which in ("color", "contrast", "brightness", "sharpness")},
    }.get(name, camel(name))
    colour = tuple(round(channel) for channel in MEAN)
    to_argument = auto_augment.LEVEL_TO_ARG[theirs]
    for level in (0.0, 0.37, 2.5, 6.0, 6.61, 7.25, 9.9, 9.99 if name == "posterize" else 10.0):
        for sign, above_half in ((1, 0.2), (-1, 0.8)):
            with mock.patch.object(random, "random", lambda drawn=above_half: drawn):
                arguments = to_argument(level, {}) if to_argument else ()
            want = auto_augment.NAME_TO_OP[theirs](
                Image.fromarray(PHOTO), *arguments, fillcolor=colour, resample=Image.Resampling.BICUBIC
            )
            drawn = [(name, policies.INCREASING[name](level / 10, sign, *PHOTO.shape[:2]))]
            got = policies.apply(PHOTO, drawn, Image.Resampling.BICUBIC, colour)
            np.testing.assert_array_equal(got, np.asarray(want), err_msg=f"{level} {sign}")


def test_rand_augment_has_timms_operations(torchvision):
    from timm.data.auto_augment import rand_augment_transform

    theirs = rand_augment_transform("rand-m7-mstd0.5-inc1", {})
    names = [op.name.removesuffix("Increasing").removesuffix("Rel") for op in theirs.ops]
    assert [camel(name) for name in policies.INCREASING] == names
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in theirs.ops} == {
        (policies.LAYER_PROBABILITY, 7, policies.MAGNITUDE_STD)
    }
    assert theirs.num_layers == policies.NUM_LAYERS


def assert_uniform(counts: np.ndarray) -> None:
    """Chi-square with n - 1 degrees of freedom: mean n - 1, standard deviation sqrt(2 (n - 1))."""
    freedom, expected = len(counts) - 1, counts.sum() / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_odds_of_trivial_augment():
    rng = np.random.default_rng(0)
    drawn = [policies.trivial_augment(rng, 224, 224, 0) for _ in range(14_000)]
    assert {len(ops) for ops in drawn} == {1}
    names = [ops[0][0] for ops in drawn]
    assert_uniform(np.array([names.count(name) for name in policies.WIDE]))
    degrees = np.array([argument for ((name, argument),) in drawn if name == "rotate"])
    strengths = np.round(np.abs(degrees) / 4.5).astype(int)
    np.testing.assert_allclose(np.abs(degrees), 4.5 * strengths, rtol=1e-6)
    assert_uniform(np.bincount(strengths, minlength=31))
    assert abs((degrees[strengths > 0] < 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(degrees))


def test_odds_of_rand_augment():
    rng = np.random.default_rng(1)
    drawn = [policies.rand_augment(rng, 200, 100, 7) for _ in range(20_000)]
    lengths = np.bincount([len(ops) for ops in drawn]) / len(drawn)
    np.testing.assert_allclose(lengths, [0.25, 0.5, 0.25], atol=5 * 0.5 / np.sqrt(len(drawn)))
    flat = [op for ops in drawn for op in ops]
    assert_uniform(np.array([sum(name == op for op, _ in flat) for name in policies.INCREASING]))
    levels = np.array([abs(argument) / 3.0 for name, argument in flat if name == "rotate"])
    assert abs(levels.mean() - 7) < 5 * 0.5 / np.sqrt(len(levels))
    assert abs(levels.std() - 0.5) < 0.06
    # 0.45 of the width, which is half the height.
    moved = {name: np.mean([abs(a) for op, a in flat if op == name]) for name in ("translate_x", "translate_y")}
    assert moved["translate_x"] == pytest.approx(31.5, rel=0.02)
    assert moved["translate_y"] == pytest.approx(63.0, rel=0.02)


def altered_by(policy: str, magnitude: float, draw) -> np.ndarray:
    """The photograph, which is no square, by a row of the table that draws `draw`(height, width, magnitude)."""
    row = dataclasses.replace(
        policies.POLICIES[policy], draw=lambda _, height, width, magnitude: [draw(height, width, magnitude)]
    )
    with mock.patch.dict(policies.POLICIES, {policy: row}):
        alter = policies.make_alter(policy, magnitude=magnitude, flip=False, mean=MEAN)
    return alter(PHOTO, np.random.default_rng(0))


@pytest.mark.parametrize("name", policies.WIDE)
def test_the_row_of_trivial_augment_is_torchvisions_default(torchvision, name):
    """What moves pixels, and what comes in from outside, as torchvision has them where nothing is asked for."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import TrivialAugmentWide

    theirs = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)  # as its recipe sets it
    magnitudes, _ = theirs._AUGMENTATION_SPACE[camel(name)]
    values = magnitudes(31, *PHOTO.shape[:2])
    magnitude = 0.0 if values is None else float(values[11])
    how = (camel(name), magnitude, theirs.interpolation, theirs._fill)
    want = theirs._apply_image_or_video_transform(Image.fromarray(PHOTO), *how)
    drawn = (name, policies.wide_argument(name, 11, negative=False))
    np.testing.assert_array_equal(altered_by("trivial_augment", 0, lambda *_: drawn), np.asarray(want))


@pytest.mark.parametrize("name", policies.INCREASING)
def test_the_row_of_rand_augment_is_what_timm_makes_of_its_words(torchvision, name):
    """`rand-m6-inc1` with timm's own defaults of training: bicubic where it is asked for, the mean colour."""
    from timm.data.auto_augment import rand_augment_transform

    hparams = {"img_mean": tuple(round(channel) for channel in MEAN), "interpolation": Image.Resampling.BICUBIC}
    ops = rand_augment_transform("rand-m6-inc1", hparams).ops
    (op,) = [op for op in ops if camel(name) == op.name.removesuffix("Increasing").removesuffix("Rel")]
    op.prob = 1.0
    with mock.patch.object(random, "random", return_value=0.2):  # of the sign: positive
        want = op(Image.fromarray(PHOTO))
    draw = lambda height, width, magnitude: (name, policies.INCREASING[name](magnitude / 10, 1, height, width))  # noqa: E731
    np.testing.assert_array_equal(altered_by("rand_augment", 6, draw), np.asarray(want))


@pytest.mark.parametrize("name", ["trivial_augment", "rand_augment"])
@pytest.mark.parametrize("image", [PHOTO, GREY], ids=["colour", "grey"])
def test_every_operation_takes_every_image(name, image):
    policy = policies.POLICIES[name]
    alter = policies.make_alter(name, magnitude=10, flip=True, mean=MEAN[: image.shape[2]])
    seen, rng = set(), np.random.default_rng(2)
    with mock.patch.dict(OPS, {op: lambda *a, op=op, was=was: seen.add(op) or was(*a) for op, was in OPS.items()}):
        for _ in range(300):
            altered = alter(image, rng)
            assert (altered.shape, altered.dtype) == (image.shape, np.uint8)
    assert seen == set(policies.WIDE if policy.draw is policies.trivial_augment else policies.INCREASING)


def test_the_flip_comes_first():
    with mock.patch.object(policies, "apply", lambda image, *_: image):
        alter = policies.make_alter("trivial_augment", magnitude=0, flip=True, mean=MEAN)
        mirrored = [np.array_equal(alter(PHOTO, np.random.default_rng(seed)), PHOTO[:, ::-1]) for seed in range(400)]
    assert abs(np.mean(mirrored) - 0.5) < 5 * 0.5 / 20
    assert policies.make_alter("none", magnitude=7, flip=True, mean=MEAN) is None


def batches(alter=None, **changes) -> list:
    images = np.random.default_rng(0).integers(0, 256, (96, 12, 12, 1)).astype(np.uint8)
    source = ArraySource("numbered", images, np.arange(96), [str(n) for n in range(96)], "x")
    arguments: dict[str, Any] = dict(batch_size=24, seed=3, steps=range(8)) | changes
    return list(train_batches(source, Crop("none", 12, alter=alter), **arguments))


def images_of(found: list) -> np.ndarray:
    return np.concatenate([batch.image for batch in found])


def test_altered_batches_depend_on_seed_and_step_alone():
    alter = policies.make_alter("trivial_augment", magnitude=0, flip=True, mean=(50.0,))
    want = images_of(batches(alter=alter))
    plain = images_of(batches())
    assert (want != plain).any(axis=(1, 2, 3)).mean() > 0.7
    np.testing.assert_array_equal(images_of(batches(alter=alter, num_threads=0)), want)
    np.testing.assert_array_equal(images_of(batches(alter=alter, steps=range(3, 8))), want[72:])
    parts = [images_of(batches(alter=alter, process=(p, 2))).reshape(8, 12, 12, 12, 1) for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(want.shape), want)
    assert (images_of(batches(alter=alter, seed=4)) != want).any()


def test_copies_of_an_image_stand_in_different_groups():
    found = np.stack([batch.label for batch in batches(repeats=3, group_images=8)])
    assert found.shape == (8, 24)
    for labels in found:
        groups = labels.reshape(3, 8)
        assert all(len(set(group)) == 8 for group in groups.tolist())
        np.testing.assert_array_equal(np.sort(groups[0]), np.sort(groups[2]))
    # In eight batches of 24, three times each, are 64 of the 96 images; in twelve every one.
    assert len(set(found.ravel().tolist())) == 64
    twelve = np.concatenate([batch.label for batch in batches(repeats=3, group_images=8, steps=range(12))])
    assert np.bincount(twelve).tolist() == [3] * 96
    # Two copies in three groups, as dealt in turn: a a b | b c c | ...
    order = np.concatenate([batch.label for batch in batches(steps=range(1))])
    pairs = batches(repeats=2, group_images=8, steps=range(1))[0].label
    np.testing.assert_array_equal(pairs.reshape(3, 8).T.ravel(), np.repeat(order[:12], 2))
