"""zoo.py: the tables against published counts and sums by hand, and every mistake in choosing a network."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.models.arch import CIFAR_STEM, IMAGENET_STEM, Arch, Stem
from resnext_jax.models.densenet import DenseNetArch
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.models.vgg import VggArch


def resnext(name: str) -> Arch:
    arch = zoo.ARCHS[name]
    assert isinstance(arch, Arch)
    return arch


def shapes(arch: Arch, num_classes: int = 1000) -> dict:
    model = ResNeXt(arch, num_classes, lambda shape: "native")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


def size(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "millions"), [("resnext29_8x64d", 34.4), ("resnext29_16x64d", 68.1)])
def test_cifar_parameter_counts(name, millions):
    arch = resnext(name)
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


@pytest.mark.parametrize("name", [name for name, arch in zoo.ARCHS.items() if isinstance(arch, Arch)])
def test_a_name_says_what_it_is(name):
    arch = resnext(name)
    kind, depth, rest = re.fullmatch(r"(wide_resnet|preresnet|resnet|resnext|plain|wrn)(\d+)(.*)", name).groups()
    convs = {"basic": 2, "bottleneck": 3}[arch.block] * sum(arch.blocks)
    # The stem and the classifier count; Wide ResNets count three projections and not the classifier.
    assert convs + (4 if kind == "wrn" else 2) == int(depth)
    paths = re.fullmatch(r"_(\d+)x(\d+)d(_small|_tiny)?", rest)
    if paths:
        assert (arch.cardinality, arch.bottleneck_width) == (int(paths[1]), int(paths[2]))
    elif kind == "wide_resnet":
        assert (arch.cardinality, arch.bottleneck_width) == (1, 64 * int(rest.removeprefix("_")))
    elif kind != "wrn":
        assert (rest, arch.cardinality, arch.bottleneck_width) == ("", 1, 64)
    assert arch.widen == (int(rest.removeprefix("_")) if kind == "wrn" else 1)
    assert arch.width == (16 if kind == "wrn" or "small" in rest else 4 if "tiny" in rest else 64)
    assert arch.preactivation == (kind in ("preresnet", "wrn") or name == "resnet200")
    assert arch.shortcut == (kind != "plain")
    assert arch.dropout == 0
    stems = {4: IMAGENET_STEM, 3: CIFAR_STEM}
    assert "small" in rest or "tiny" in rest or arch.stem == stems[len(arch.blocks)]


@pytest.mark.parametrize("name", [name for name, arch in zoo.ARCHS.items() if not isinstance(arch, Arch)])
def test_the_depth_of_other_networks(name):
    arch = zoo.ARCHS[name]
    if isinstance(arch, VggArch):
        assert f"vgg{sum(arch.convs) + 3}" == name.removesuffix("_bn")  # and three fully connected layers
        assert arch.batch_norm == name.endswith("_bn")
    else:
        assert isinstance(arch, DenseNetArch)
        depth = int(re.fullmatch(r"densenet_?(?:bc)?(\d+)(_12)?", name)[1])
        # Two convolutions in a layer, one in a transition; the stem and the classifier.
        assert 2 * sum(arch.layers) + len(arch.layers) - 1 + 2 == depth
        assert arch.width == 2 * arch.growth


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((51,), r"model\.depth=51: the ImageNet depths are \[18, 34, 50, 101, 152, 200\]"),
        ((30, 8, 64, "cifar"), r"model\.depth=30: .* 9n \+ 2 layers \(11, 20, 29"),
        ((2, 8, 64, "cifar"), r"model\.depth=2: "),
        ((50, 1, 32, "small"), r"model\.depth=50: a small network has 9n \+ 2 layers \(11, 20, 29"),
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
    assert zoo.select("resnext50_32x4d") == zoo.select("", depth=50, cardinality=32, bottleneck_width=4)
    assert zoo.select("resnet50", shortcut=False) == dataclasses.replace(zoo.ARCHS["resnet50"], shortcut=False)
    assert zoo.select(family="cifar", depth=29, cardinality=8, bottleneck_width=64) == zoo.ARCHS["resnext29_8x64d"]
    small = zoo.select(family="small", depth=20, cardinality=32, bottleneck_width=2)
    assert small == Arch("bottleneck", (2, 2, 2), 32, 2, stem=Stem(kernel_px=3, stride=2, pool=False), width=32)


def test_what_is_asked_of_a_row_is_added_to_what_it_has():
    assert zoo.select("plain34", shortcut=True) == zoo.ARCHS["plain34"]
    assert zoo.select("resnet200", preactivation=False) == zoo.ARCHS["resnet200"]
    assert zoo.select("resnext50_32x4d", preactivation=True) == zoo.by_depth(50, 32, 4, preactivation=True)
    assert zoo.select(depth=101, preactivation=True) == zoo.by_depth(101, 32, 4, preactivation=True)
    assert zoo.select("wrn28_10", dropout=0.3) == dataclasses.replace(zoo.ARCHS["wrn28_10"], dropout=0.3)
    assert zoo.select("vgg16") == zoo.ARCHS["vgg16"]
    assert zoo.select("vgg16", dropout=0.0) == dataclasses.replace(zoo.ARCHS["vgg16"], dropout=0.0)


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (dict(name="vgg16", shortcut=False), [r"model\.shortcut=False: vgg16 has no residual blocks"]),
        (
            dict(name="densenet121", preactivation=True, dropout=0.2),
            [r"model\.preactivation=True: densenet121 has no residual", r"model\.dropout=0\.2: only basic blocks"],
        ),
        (dict(name="resnet50", dropout=0.2), [r"model\.dropout=0\.2: only basic blocks"]),
        (dict(name="wrn28_10", dropout=1.0), [r"model\.dropout=1\.0 must be in \[0, 1\)"]),
    ],
)
def test_what_a_row_cannot_have(arguments, problems):
    with pytest.raises(UserError) as caught:
        zoo.select(**arguments)
    assert len(caught.value.problems) == len(problems)
    for found, wanted in zip(caught.value.problems, problems, strict=True):
        assert re.match(wanted, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg11", "vgg11_bn", "densenet_bc100_12", "preresnet18", "wrn16_8", "resnext50_32x4d"]
)
def test_bfloat16_is_for_activations_only(name):
    arch = zoo.select(name, dropout=0.3) if name in ("vgg11", "wrn16_8") else zoo.select(name)
    arch = dataclasses.replace(arch, dropout=0.0) if name == "vgg11_bn" else arch
    model = zoo.NETWORKS[type(arch)](arch, 10, lambda shape: "native", 2, jnp.bfloat16)
    images, keys = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), jax.random.split(jax.random.key(0))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    run = partial(model.apply, train=True, features=True, keys=keys, mutable=["batch_stats"])
    (logits, features), _ = jax.eval_shape(run, variables, images)
    assert logits.dtype == features.pop("pooled").dtype == jnp.float32
    assert {feature.dtype for feature in features.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("name", "smallest_px"),
    [
        # The stride of the last stage; VGG's pools and DenseNet's transitions round down (torchvision: 32 and 29).
        *(("resnet18", 32), ("resnet200", 32), ("resnext29_8x64d", 4), ("wrn16_8", 4), ("resnext20_8x4d_small", 8)),
        *(("vgg11", 32), ("densenet121", 29), ("densenet_bc100_12", 4)),
    ],
)
@pytest.mark.slow
def test_images_that_are_too_small(name, smallest_px):
    model = zoo.NETWORKS[type(zoo.ARCHS[name])](zoo.ARCHS[name], 10, lambda shape: "native")
    init = partial(jax.eval_shape, partial(model.init, train=False), jax.random.key(0))
    init(jax.ShapeDtypeStruct((1, smallest_px, smallest_px + 9, 3), jnp.float32))
    sizes = f"images of {smallest_px + 9}x{smallest_px - 1} px are too small .* it takes {smallest_px} px"
    with pytest.raises(UserError, match=sizes):
        init(jax.ShapeDtypeStruct((1, smallest_px + 9, smallest_px - 1, 3), jnp.float32))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown model\.name 'resnext50_32x4'. Did you mean 'resnext50_32x4d'"):
        zoo.select("resnext50_32x4")
    build = partial(zoo.build_model, zoo.ARCHS["resnet18"], 10, platform="cpu", bn_group_images=32)
    with pytest.raises(UserError, match=r"unknown compute_dtype 'bfloat'. Did you mean 'bfloat16'"):
        build(conv_impl="auto", compute_dtype="bfloat")
    with pytest.raises(UserError, match=r"unknown conv_impl 'nativ'. Did you mean 'native'"):
        build(conv_impl="nativ", compute_dtype="float32")
