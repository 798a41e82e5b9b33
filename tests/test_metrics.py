"""metrics.py on cases small enough to count by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax import metrics


def counted(logits, labels, mask=None) -> tuple[int, int, int]:
    """(top1, top5, images)."""
    mask = np.ones(len(labels)) if mask is None else mask
    sums = metrics.count(*(jnp.asarray(a, t) for a, t in ((logits, "float32"), (labels, "int32"), (mask, "float32"))))
    return int(sums.top1), int(sums.top5), int(sums.images)


@pytest.mark.slow
def test_ranks():
    # Classes 0..6 in falling order of their logits: the label is the rank.
    logits = np.tile(np.arange(7.0)[::-1], (7, 1))
    assert counted(logits, range(7)) == (1, 5, 7)
    assert counted(logits[:1], [4]) == (0, 1, 1)
    assert counted(logits[:1], [5]) == (0, 0, 1)


def test_a_tie_counts_against_the_label():
    assert counted(np.zeros((7, 7)), range(7)) == (0, 0, 7)
    # Label 2 ties with one class and is below three: fifth at worst. Below four: sixth at worst.
    assert counted([[9, 9, 1, 1, 9, 0, 0]], [2]) == (0, 1, 1)
    assert counted([[9, 9, 1, 1, 9, 9, 0]], [2]) == (0, 0, 1)


def test_five_classes_or_fewer_are_all_among_the_top5():
    assert counted(np.zeros((3, 3)), [0, 1, 2]) == (0, 3, 3)


def test_padding_is_not_counted_whatever_it_holds():
    logits = [[1, 0], [0, 1], [np.nan, np.nan], [1e38, -1e38]]
    sums = metrics.count(jnp.array(logits, "float32"), jnp.array([0, 0, 0, 1]), jnp.array([1.0, 1, 0, 0]))
    assert (int(sums.top1), int(sums.top5), int(sums.images)) == (1, 2, 2)
    # log(1 + 1/e) + log(1 + e)
    assert float(sums.loss) == pytest.approx(math.log1p(math.exp(-1)) + math.log1p(math.e), rel=1e-6)


def test_nan_is_wrong():
    logits = np.tile(np.arange(7.0), (3, 1))
    logits[0] = np.nan
    logits[1, 6] = np.nan  # the label's own
    logits[2, 0] = np.nan  # another's
    assert counted(logits, [6, 6, 6]) == (0, 1, 3)
    assert math.isnan(float(metrics.count(jnp.asarray(logits, "float32"), jnp.array([6, 6, 6]), jnp.ones(3)).loss))


def test_cross_entropy_equals_torch():
    rng = np.random.default_rng(0)
    logits, labels = 5 * rng.normal(size=(8, 6)), rng.integers(0, 6, 8)
    want = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none")
    got = metrics.cross_entropy(jnp.asarray(logits, "float32"), jnp.asarray(labels, "int32"))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_among_the_present_classes_the_others_are_no_errors():
    """1K-way: the rank among the classes that the images have. By numpy; the last image is padding."""
    rng = np.random.default_rng(3)
    logits, present = rng.normal(size=(40, 30)).astype(np.float32), np.arange(30) % 3 == 1
    labels = rng.choice(np.flatnonzero(present), 40)
    mask = np.arange(40) < 39
    sums = metrics.count_present(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask, "float32"), present)
    subset = np.flatnonzero(present)[np.argsort(-logits[:, present], axis=1)]
    assert sums.top1_present == (subset[:39, 0] == labels[:39]).sum()
    assert sums.top5_present == (subset[:39, :5] == labels[:39, None]).any(axis=1).sum()
    every = metrics.count(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask, "float32"))
    assert (sums.top1, sums.top5, sums.loss, sums.images) == (every.top1, every.top5, every.loss, 39)
    assert sums.top1_present > sums.top1
    assert sums.top5_present > sums.top5
    assert metrics.means(sums) == {
        **metrics.means(every),
        "top1_present": int(sums.top1_present) / 39,
        "top5_present": int(sums.top5_present) / 39,
    }


def test_sums_add_and_the_mean_is_taken_once():
    first = metrics.Sums(loss=np.float64(6), top1=np.int64(1), top5=np.int64(2), images=np.int64(3))
    second = metrics.Sums(loss=np.float64(1), top1=np.int64(1), top5=np.int64(1), images=np.int64(1))
    total = metrics.add(metrics.add(metrics.zeros(), first), second)
    # The mean over images, not over batches: 7/4, not (2 + 1)/2.
    assert metrics.means(total) == {"loss": 7 / 4, "top1": 2 / 4, "top5": 3 / 4}
    with pytest.raises(ValueError, match="no images"):
        metrics.means(metrics.zeros())


def test_host_sums_do_not_round():
    many = metrics.zeros().replace(images=np.int64(2**53), loss=np.float64(2**30))
    one = metrics.Sums(loss=np.float64(2**-20), top1=np.int64(1), top5=np.int64(1), images=np.int64(1))
    total = metrics.add(many, one)
    assert int(total.images) == 2**53 + 1
    assert float(total.loss) == 2**30 + 2**-20
