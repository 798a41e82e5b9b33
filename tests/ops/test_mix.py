"""mix.py: mixed images and their labels by numpy, torchvision's box, the odds, and what the groups are for."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnext_jax.ops.augment import image_keys
from resnext_jax.ops.mix import Labels, box, mix

GROUP, GROUPS = 4, 3
BATCH = GROUP * GROUPS
IMAGES = np.random.default_rng(0).normal(size=(BATCH, 10, 14, 2)).astype(np.float32)
LABELS = np.arange(BATCH) * 7 % 5
KEYS = image_keys(0, jnp.int32(3), BATCH)
# Within each group of four, the one before: the first takes the last.
BEFORE = np.array([3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10])


def mixed(group_images=GROUP, keys=KEYS, images=IMAGES, labels=LABELS, **alphas):
    arguments = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, **alphas}
    images, labels = mix(jnp.asarray(images), jnp.asarray(labels), keys, group_images=group_images, **arguments)
    return np.asarray(images), SimpleNamespace(**{name: np.asarray(label) for name, label in labels._asdict().items()})


@pytest.mark.slow
def test_mixup():
    images, labels = mixed(mixup_alpha=0.7)
    np.testing.assert_array_equal(labels.own, LABELS)
    np.testing.assert_array_equal(labels.other, LABELS[BEFORE])
    weight = labels.weight.reshape(GROUPS, GROUP)
    assert (weight == weight[:, :1]).all()
    assert len(set(weight[:, 0])) == GROUPS
    share = labels.weight[:, None, None, None]
    np.testing.assert_allclose(images, share * IMAGES + (1 - share) * IMAGES[BEFORE], rtol=1e-6, atol=1e-6)


def test_cutmix():
    images, labels = mixed(cutmix_alpha=1.0)
    own, before = images == IMAGES, images == IMAGES[BEFORE]
    assert (own ^ before).all()
    np.testing.assert_array_equal(labels.other, LABELS[BEFORE])
    np.testing.assert_allclose(own[..., 0].mean(axis=(1, 2)), labels.weight, rtol=1e-6)
    groups = before.reshape(GROUPS, GROUP, *before.shape[1:])
    assert (groups == groups[:, :1]).all()  # one box for a group
    for cut in groups[:, 0, :, :, 0]:
        np.testing.assert_array_equal(cut, cut.any(1)[:, None] & cut.any(0)[None])
    assert 0 < before.mean() < 1


def torchvision_box(share: float, row: int, column: int, height: int, width: int) -> np.ndarray:
    """CutMix of torchvision.transforms.v2, its box: in its own words."""
    r = 0.5 * np.sqrt(1.0 - share)
    r_w_half, r_h_half = int(r * width), int(r * height)
    x1, y1 = max(column - r_w_half, 0), max(row - r_h_half, 0)
    x2, y2 = min(column + r_w_half, width), min(row + r_h_half, height)
    inside = np.zeros((height, width), bool)
    inside[y1:y2, x1:x2] = True
    return inside


def test_box_is_torchvisions():
    for share in (0.0, 0.031, 0.2, 0.5, 0.77, 0.99, 1.0):
        for row, column in ((0, 0), (9, 13), (4, 7), (2, 12)):
            got = box(jnp.float32(share), jnp.array([row, column]), 10, 14)
            np.testing.assert_array_equal(got, torchvision_box(share, row, column, 10, 14), err_msg=f"{share}")


def pairs(count: int, seed: int, **alphas):
    """Many groups of two, mixed: an image of ones and one of zeros."""
    images = np.tile(np.array([1.0, 0.0], np.float32), count)[:, None, None, None] * np.ones((1, 8, 8, 1), np.float32)
    return mixed(2, image_keys(seed, jnp.int32(0), 2 * count), images, np.zeros(2 * count, int), **alphas)


def draws(count: int, **alphas) -> tuple[np.ndarray, np.ndarray]:
    """The weight of many groups of two, and whether they are blended."""
    images, labels = pairs(count, 1, **alphas)
    first = images[::2, :, :, 0]
    np.testing.assert_allclose(first.mean(axis=(1, 2)), labels.weight[::2], atol=1e-6)
    return labels.weight[::2], (first == first[:, :1, :1]).all(axis=(1, 2)) & (first[:, 0, 0] % 1 != 0)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
@pytest.mark.slow
def test_weights_of_mixup_are_of_the_beta_distribution(alpha):
    weight, _ = draws(2000, mixup_alpha=alpha)
    # 0.1 of the weights lie within float32's last digit of 0 or 1, where a continuous distribution has no steps.
    bound = 0.15 if alpha == 0.1 else 2 / np.sqrt(2000)
    assert stats.kstest(np.clip(weight, 1e-7, 1 - 1e-7), stats.beta(alpha, alpha).cdf).statistic < bound
    assert weight.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def shares_of_torchvisions_cutmix(count: int, alpha: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """By numpy: what is left of an image in `count` draws, and how often each pixel is cut."""
    rng = np.random.default_rng(4)
    draws = ((rng.beta(alpha, alpha), *rng.integers(0, size, 2)) for _ in range(count))
    boxes = np.stack([torchvision_box(*draw, height=size, width=size) for draw in draws])
    return 1 - boxes.mean(axis=(1, 2)), boxes.mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_boxes_of_cutmix_lie_as_often_where_they_should(alpha):
    count, size = 4000, 8
    found, labels = pairs(count, 2, cutmix_alpha=alpha)
    cut = 1 - found[::2, :, :, 0]
    want, covered = shares_of_torchvisions_cutmix(count, alpha, size)
    values = np.unique(np.concatenate([want, labels.weight[::2].round(6)]))
    ours, theirs = (np.searchsorted(np.sort(of), values + 1e-5) / count for of in (labels.weight[::2], want))
    # Two samples of 4000: a difference of 1.95 * sqrt(2 / n) comes once in a thousand times (Kolmogorov, Smirnov).
    assert np.abs(ours - theirs).max() < 1.95 * np.sqrt(2 / count)
    assert np.abs(cut.mean(axis=0) - covered).max() < 5 * 0.5 * np.sqrt(2 / count)
    assert covered.min() < 0.6 * covered.max()  # the corners are cut less often than the middle


@pytest.mark.slow
def test_one_of_the_two_for_each_group():
    _, blended = draws(2000, mixup_alpha=1.0, cutmix_alpha=1.0)
    assert abs(blended.mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)


@pytest.mark.slow
def test_a_group_is_mixed_by_itself():
    """So that any device may hold it, and any microbatch."""
    whole, labels = mixed(mixup_alpha=0.2, cutmix_alpha=1.0)
    for start in range(0, BATCH, GROUP):
        part = slice(start, start + GROUP)
        alone, own = mixed(keys=KEYS[part], images=IMAGES[part], labels=LABELS[part], mixup_alpha=0.2, cutmix_alpha=1.0)
        np.testing.assert_array_equal(alone, whole[part])
        for name, want in vars(labels).items():
            np.testing.assert_array_equal(getattr(own, name), want[part])


@pytest.mark.slow
def test_without_groups_the_batch_is_one():
    images, labels = mixed(0, mixup_alpha=0.7)
    np.testing.assert_array_equal(labels.other, np.roll(LABELS, 1))
    share = labels.weight[0]
    np.testing.assert_allclose(images, share * IMAGES + (1 - share) * np.roll(IMAGES, 1, 0), rtol=1e-6, atol=1e-6)


def test_the_label_with_the_larger_weight():
    labels = Labels(jnp.array([1, 2, 3]), jnp.array([4, 5, 6]), jnp.array([0.7, 0.5, 0.2]))
    np.testing.assert_array_equal(labels.largest(), [1, 2, 6])
    np.testing.assert_array_equal(Labels(jnp.array([1, 2])).largest(), [1, 2])
