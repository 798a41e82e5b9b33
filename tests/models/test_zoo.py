"""zoo.py: the tables against published counts and sums by hand, and every mistake in choosing a network."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.models.template import Arch, ResNeXt


def shapes(arch: Arch, num_classes: int = 1000) -> dict:
    model = ResNeXt(arch, num_classes, lambda shape: "native")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


def size(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # torchvision's num_params
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
        # timm's
        ("resnext101_32x4d", 44_177_704),
    ],
)
def test_parameter_counts_to_the_last_digit(name, count):
    assert size(shapes(zoo.ARCHS[name])) == count


@pytest.mark.parametrize(("name", "millions"), [("resnext29_8x64d", 34.4), ("resnext29_16x64d", 68.1)])
def test_cifar_parameter_counts(name, millions):
    arch = zoo.ARCHS[name]
    # By hand: a conv and its two batch-norm vectors; three stages of three blocks; the classifier.
    total, channels = 3 * 9 * 64 + 2 * 64, 64
    for stage in range(3):
        inner, out = arch.cardinality * 64 * 2**stage, 256 * 2**stage
        for block in range(3):
            grouped = 9 * inner * inner // arch.cardinality
            total += channels * inner + 2 * inner + grouped + 2 * inner + inner * out + 2 * out
            total += channels * out + 2 * out if block == 0 else 0
            channels = out
    total += 1024 * 10 + 10
    count = size(shapes(arch, 10))
    assert count == total
    assert count / 1e6 == pytest.approx(millions, abs=0.06)  # the paper's digits, rounded or cut


@pytest.mark.parametrize(
    ("name", "width", "weights"),
    [
        # Table 2; weights of a block of stage 2 after the first: 256 D + 9 D D / C + 256 D.
        ("resnet50", 64, 16_384 + 36_864 + 16_384),
        ("resnext50_2x40d", 80, 20_480 + 28_800 + 20_480),
        ("resnext50_4x24d", 96, 24_576 + 20_736 + 24_576),
        ("resnext50_8x14d", 112, 28_672 + 14_112 + 28_672),
        ("resnext50_32x4d", 128, 32_768 + 4_608 + 32_768),
    ],
)
def test_equal_complexity(name, width, weights):
    block = shapes(zoo.ARCHS[name])["stage2"]["block2"]
    assert block["conv2"]["kernel"].shape[-1] == width
    assert sum(size(block[conv]) for conv in ("conv1", "conv2", "conv3")) == weights
    assert weights == pytest.approx(70_000, rel=0.025)


@pytest.mark.parametrize("name", zoo.ARCHS)
def test_a_name_says_what_it_is(name):
    arch = zoo.ARCHS[name]
    kind, *rest = name.split("_")
    depth = int(kind.removeprefix("resnet").removeprefix("resnext"))
    convs = {"basic": 2, "bottleneck": 3}[arch.block] * sum(arch.blocks)
    assert convs + 2 == depth  # the stem and the classifier
    if rest:
        cardinality, width = rest[0].removesuffix("d").split("x")
        assert (arch.cardinality, arch.bottleneck_width) == (int(cardinality), int(width))
    else:
        assert (arch.cardinality, arch.bottleneck_width) == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((51,), r"model\.depth=51: the ImageNet depths are \[18, 34, 50, 101, 152\]"),
        ((30, 8, 64, "cifar"), r"model\.depth=30: .* 9n \+ 2 layers \(11, 20, 29"),
        ((2, 8, 64, "cifar"), r"model\.depth=2: "),
        ((18, 32, 4), r"model\.depth=18 is made of basic blocks"),
        ((50, 0, 4), r"model\.cardinality=0 and model\.bottleneck_width=4: both must be 1 or more"),
        ((50, 1, 64, "imagnet"), r"unknown model\.family 'imagnet'. Did you mean 'imagenet'\?"),
    ],
)
def test_by_depth_mistakes(arguments, problem):
    with pytest.raises(UserError, match=problem):
        zoo.by_depth(*arguments)


def test_all_mistakes_are_raised_together():
    with pytest.raises(UserError) as caught:
        zoo.by_depth(51, 0)
    assert len(caught.value.problems) == 2


def test_select():
    assert zoo.select("resnext50_32x4d") == zoo.select(None, depth=50, cardinality=32, bottleneck_width=4)
    assert zoo.select("resnet50", shortcut=False) == dataclasses.replace(zoo.ARCHS["resnet50"], shortcut=False)
    assert zoo.select(family="cifar", depth=29, cardinality=8, bottleneck_width=64) == zoo.ARCHS["resnext29_8x64d"]


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown model\.name 'resnext50_32x4'. Did you mean 'resnext50_32x4d'"):
        zoo.select("resnext50_32x4")
    build = partial(zoo.build_model, zoo.ARCHS["resnet18"], 10, platform="cpu", bn_group_images=32)
    with pytest.raises(UserError, match=r"unknown compute_dtype 'bfloat'. Did you mean 'bfloat16'"):
        build(conv_impl="auto", compute_dtype="bfloat")
    with pytest.raises(UserError, match=r"unknown conv_impl 'nativ'. Did you mean 'native'"):
        build(conv_impl="nativ", compute_dtype="float32")
