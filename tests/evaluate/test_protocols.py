"""Protocols beside PyTorch and numpy, on real photographs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import torch_reference
from PIL import Image
from sklearn.datasets import load_sample_images

from resnext_jax import metrics
from resnext_jax.data.views import multi_scale, ten_crop
from resnext_jax.errors import UserError
from resnext_jax.evaluate.protocols import PROTOCOLS, Classes, Member, score_step, view_scores
from resnext_jax.models import zoo
from resnext_jax.models.arch import Arch
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.ops.pool import dense_average
from resnext_jax.types import Batch

PHOTOS = load_sample_images().images
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NUM_CLASSES = 7
SMALL: dict[str, Any] = dict(block="bottleneck", blocks=(1, 1), cardinality=2, bottleneck_width=4, width=8)


@functools.cache
def networks():
    """A small network with running statistics, ours and PyTorch's; the last activations have stride 8."""
    torch.manual_seed(0)
    theirs = torch_reference.Network(**SMALL, num_classes=NUM_CLASSES)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    ours = tiny.cpu_model(Arch(**SMALL), NUM_CLASSES)
    shapes = jax.eval_shape(functools.partial(ours.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = torch_reference.from_torch(theirs.state_dict(), shapes)
    return ours, jax.tree.map(jnp.asarray, variables), theirs.double().eval()


def torch_images(pixels: np.ndarray) -> torch.Tensor:
    images = np.ascontiguousarray((pixels - np.array(MEAN)) / np.array(STD))
    return torch.from_numpy(images).permute(2, 0, 1)[None]


def close(ours, theirs) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def resized(photo: np.ndarray, short: int) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).resize((640 * short // 427, short), Image.Resampling.BICUBIC))


@pytest.mark.slow
def test_ten_crop_logits():
    ours, variables, theirs = networks()
    views = [np.stack(cuts) for cuts in zip(*(ten_crop(32, 40, "bicubic").cut(p, (0, 0)) for p in PHOTOS), strict=True)]
    got = view_scores(variables, [jnp.asarray(view) for view in views], member=Member(ours, MEAN, STD), mirrored=False)
    for photo, logits in zip(PHOTOS, got, strict=True):
        whole = resized(photo, 40)  # 59 wide: 27 beside a crop
        assert whole.shape == (40, 59, 3)
        places = [(side, at) for side in (whole, whole[:, ::-1]) for at in ((4, 14), (0, 0), (0, 27), (8, 0), (8, 27))]
        with torch.no_grad():
            both = [theirs(torch_images(side[top : top + 32, left : left + 32])) for side, (top, left) in places]
        close(logits, torch.cat(both).mean(0).numpy())


@pytest.mark.slow
def test_dense_logits_at_five_scales():
    """The fully connected layer as a 1x1 convolution over every window of what the network saw in training."""
    ours, variables, theirs = networks()
    member = Member(ours, MEAN, STD).dense(56)  # 56 px at stride 8: windows of 7
    views = [
        np.stack(cuts) for cuts in zip(*(multi_scale(56, 56, "bicubic").cut(p, (7, 10)) for p in PHOTOS), strict=True)
    ]
    got = view_scores(variables, [jnp.asarray(view) for view in views], member=member, mirrored=True)
    kernel, bias = theirs.fc.weight[:, :, None, None], theirs.fc.bias

    def score(view: np.ndarray) -> torch.Tensor:
        x = torch.relu(theirs.bn1(theirs.conv1(torch_images(view))))
        x = theirs.get_submodule("layer1")(torch.nn.functional.max_pool2d(x, 3, 2, 1))
        x = theirs.get_submodule("layer2")(x)
        maps = torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(x, 7, stride=1), kernel, bias)
        assert maps.shape[2] == -(-view.shape[0] // 8) - 6
        return maps.mean((2, 3))

    for photo, logits in zip(PHOTOS, got, strict=True):
        scores = []
        for short in (56, 64, 96, 120, 160):
            whole = resized(photo, short)
            left = -(-(whole.shape[1] - short * 10 // 7) // 2)
            view = whole[:, left : left + short * 10 // 7]
            with torch.no_grad():
                scores += [score(view), score(view[:, ::-1])]
        close(logits, torch.cat(scores).mean(0).numpy())


def test_one_window_is_the_global_average():
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(dense_average(jnp.asarray(x), 7), x.mean(axis=(1, 2)), atol=1e-6)
    # Three windows of 5 rows among 7: the rows are in 1, 2, 3, 3, 3, 2, 1 of them.
    rows = np.array([1, 2, 3, 3, 3, 2, 1]) / 15
    want = (x.mean(axis=2) * rows[:, None]).sum(axis=1)
    np.testing.assert_allclose(dense_average(jnp.asarray(x), 5), want, atol=1e-6)


def fixed(logits: np.ndarray, **classes):
    """The sums of images whose network gives these logits: images that only carry their number."""

    class Net(ResNeXt):
        def apply(self, variables, images, **_):
            return variables[images[:, 0, 0, 0].astype(jnp.int32)]

    def sums(labels, mask=None, scores=(logits,)):
        number = np.arange(len(labels))
        images = jnp.asarray(number[:, None, None, None].astype(np.uint8))
        batch = Batch(images, jnp.asarray(labels), jnp.asarray(mask or [1.0] * len(labels)))
        members = [Member(Net(Arch("basic", (1,)), 1, lambda shape: "native"), (0.0,), (1.0,))] * len(scores)
        given = [jnp.asarray(one, jnp.float32) for one in scores]
        return score_step(given, batch, members=members, mirrored=False, classes=Classes(**classes))

    return sums


LOGITS = np.random.default_rng(1).normal(size=(6, 20)).astype(np.float32)


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.slow
def test_1k_way_is_a_softmax_over_the_subset():
    """The data's classes 0 to 3 are the network's 17, 4, 9 and 2; answers are among these."""
    label_of, labels = np.array([17, 4, 9, 2]), np.array([0, 1, 2, 3, 0, 1])
    got = fixed(LOGITS, label_of=label_of, candidates=np.array([2, 4, 9, 17]))(labels)
    subset = softmax(LOGITS[:, [17, 4, 9, 2]])
    assert got.loss == pytest.approx(-np.log(subset[np.arange(6), labels]).sum(), rel=1e-5)
    assert got.top1 == (subset.argmax(axis=1) == labels).sum()
    assert got.top5 == got.images == 6


def test_5k_way_counts_every_other_class_as_an_error():
    label_of, labels = np.array([17, 4, 9, 2]), np.array([0, 1, 2, 3, 0, 1])
    got = fixed(LOGITS, label_of=label_of)(labels)
    ranks = np.argsort(-LOGITS, axis=1)
    own = label_of[labels]
    assert got.loss == pytest.approx(-np.log(softmax(LOGITS)[np.arange(6), own]).sum(), rel=1e-5)
    assert got.top1 == (ranks[:, 0] == own).sum()
    assert got.top5 == (ranks[:, :5] == own[:, None]).any(axis=1).sum()


def test_an_ensemble_averages_probabilities():
    other = np.random.default_rng(2).normal(scale=5, size=(6, 20)).astype(np.float32)
    labels = np.arange(6)
    got = fixed(LOGITS, label_of=np.arange(20))(labels, scores=(LOGITS, other))
    mean = (softmax(LOGITS) + softmax(other)) / 2
    assert got.loss == pytest.approx(-np.log(mean[np.arange(6), labels]).sum(), rel=1e-5)
    assert got.top1 == (mean.argmax(axis=1) == labels).sum()
    assert got.top5 == (np.argsort(-mean, axis=1)[:, :5] == labels[:, None]).any(axis=1).sum()


@pytest.mark.slow
def test_several_right_answers():
    """By hand: the best is class 3, then 2, 0, 1; of four images one has no right answer, one is padding."""
    logits = np.array([[1.0, 0.0, 2.0, 3.0]] * 5, np.float32)
    accepted = np.array([[3, 0, -1], [2, 1, -1], [-1, -1, -1], [0, 2, 3], [1, -1, -1]])
    got = fixed(logits, label_of=np.arange(4), accepted=accepted)(np.arange(5), mask=[1.0, 1.0, 1.0, 0.0, 1.0])
    probability = softmax(logits)[0]
    assert (got.images, got.top1, got.top5) == (3, 1, 3)
    right = [probability[[3, 0]].sum(), probability[[2, 1]].sum(), probability[1]]
    assert got.loss == pytest.approx(-np.log(right).sum(), rel=1e-5)


@pytest.mark.slow
def test_the_fifth_guess_among_several_right_answers():
    """Class 5 is the sixth: wrong. Class 6 behind it as well is no more right; with class 4 the fifth guess is."""
    logits = -np.arange(8, dtype=np.float32)[None]
    for accepted, top5 in (([5, 6], 0), ([6, 4], 1), ([5, -1], 0), ([4, -1], 1)):
        got = fixed(logits, label_of=np.arange(8), accepted=np.array([accepted]))(np.array([0]))
        assert (got.top1, got.top5) == (0, top5)


def test_interval_of_confidence():
    """Wilson's for 8 of 10, from the tables: 0.490 to 0.943; a share of 1 ends at 1."""
    assert metrics.interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    low, high = metrics.interval(50_000, 50_000)
    assert 0.9999 < low < high == pytest.approx(1.0)


def test_vgg_is_not_tested_densely():
    with pytest.raises(UserError, match="fully connected layers"):
        Member(tiny.cpu_model(zoo.select("vgg11"), 10), MEAN, STD).dense(224)


def test_rows():
    assert list(PROTOCOLS) == ["center", "center_320", "ten_crop", "multi_scale"]
    assert (PROTOCOLS["center_320"].image_size_px, PROTOCOLS["center_320"].resize_px) == (320, 365)
