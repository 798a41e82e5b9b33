"""Small networks of every kind against PyTorch: torchvision's, or independent ones where torchvision has none."""

import contextlib
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import torch_neighbours
import torch_reference

from resnext_jax.models import zoo
from resnext_jax.models.arch import CIFAR_STEM, IMAGENET_STEM, Arch
from resnext_jax.models.densenet import DenseNetArch
from resnext_jax.models.vgg import VggArch
from resnext_jax.ops.augment import image_keys
from resnext_jax.ops.conv_choice import ConvShape, resolver
from resnext_jax.ops.dropout import dropout, layer_keys

VGG_CONVS, VGG_WIDTHS = (1, 2, 1), (4, 6, 8)


def stages_of(network, first: str) -> dict[str, str]:
    return {"stage1": first} | {f"stage{n + 1}": name for n, name in enumerate(network.stages, start=1)}


def resnet(torchvision, block: Literal["basic", "bottleneck"], blocks: list[int], **paths) -> parity.Theirs:
    kind = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}[block]
    network = torchvision.models.ResNet(getattr(torchvision.models.resnet, kind), blocks, num_classes=10, **paths)
    return parity.of_torchvision(Arch(block, tuple(blocks)), network)


def vgg(torchvision, batch_norm: bool) -> parity.Theirs:
    plan = [part for convs, width in zip(VGG_CONVS, VGG_WIDTHS, strict=True) for part in [*[width] * convs, "M"]]
    network = torchvision.models.VGG(torchvision.models.vgg.make_layers(plan, batch_norm))
    for place, shape in {0: (8 * 49, 12), 3: (12, 12), 6: (12, 10)}.items():
        network.classifier[place] = torch.nn.Linear(*shape)
    return parity.of_torchvision(VggArch(VGG_CONVS, batch_norm), network)


def densenet(torchvision) -> parity.Theirs:
    network = torchvision.models.DenseNet(8, (1, 2, 1), 16, num_classes=10)
    return parity.of_torchvision(DenseNetArch((1, 2, 1), 8, 16), network)


def preactivated(block: str, blocks: tuple[int, ...], *numbers: int) -> parity.Theirs:
    network = torch_neighbours.PreactivatedResNet(block, blocks, *numbers)
    return parity.Theirs(network, torch_reference.torch_name, stages_of(network, "relu"), "fc")


def wide(depth: int, widen: int, width: int) -> parity.Theirs:
    """The stem's batch norm of ours is the first block's of theirs; they have no module that puts out its ReLU."""
    network = torch_neighbours.WideResNet(depth, widen, width)

    def name_of(path: tuple) -> str:
        return (
            torch_reference.torch_name(path).replace("bn1.", "layer1.0.bn1.")
            if path[0].key == "stem_bn"
            else (torch_reference.torch_name(path))
        )

    return parity.Theirs(network, name_of, {f"stage{n}": f"layer{n - 1}" for n in (2, 3, 4)}, "fc")


def densenet_bc(depth: int, growth: int) -> parity.Theirs:
    stages = {"stage1": "features.conv0"} | {f"stage{n + 1}": f"features.denseblock{n}" for n in (1, 2, 3)}
    return parity.Theirs(torch_neighbours.DenseNetBC(depth, growth), parity.densenet_name, stages, "classifier")


# name -> ours, theirs (a function of torchvision), height and width of the images
CASES = {
    "resnet": (Arch("basic", (1, 2, 1, 1)), lambda tv: resnet(tv, "basic", [1, 2, 1, 1]), 97),
    "resnext 32x4d": (
        Arch("bottleneck", (2, 1, 1, 1), 32, 4),
        lambda tv: resnet(tv, "bottleneck", [2, 1, 1, 1], groups=32, width_per_group=4),
        33,
    ),
    "vgg": (VggArch(VGG_CONVS, False, VGG_WIDTHS, 12, 0.0), lambda tv: vgg(tv, False), 97),
    "vgg_bn": (VggArch(VGG_CONVS, True, VGG_WIDTHS, 12, 0.0), lambda tv: vgg(tv, True), 64),
    "densenet": (DenseNetArch((1, 2, 1), 8, 16), densenet, 65),
    "pre-activated bottlenecks": (
        Arch("bottleneck", (2, 2, 1), 4, 3, IMAGENET_STEM, width=6, preactivation=True),
        lambda tv: preactivated("bottleneck", (2, 2, 1), 6, 4, 3),
        97,
    ),
    "pre-activated basic blocks": (
        Arch("basic", (2, 2), stem=IMAGENET_STEM, width=6, preactivation=True),
        lambda tv: preactivated("basic", (2, 2), 6),
        33,
    ),
    "wide resnet for CIFAR": (
        Arch("basic", (2, 2, 2), stem=CIFAR_STEM, width=4, preactivation=True, widen=3),
        lambda tv: wide(16, 3, 4),
        17,
    ),
    "densenet_bc": (DenseNetArch((2, 2, 2), 4, 8, CIFAR_STEM), lambda tv: densenet_bc(16, 4), 17),
}


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_logits_features_gradients_and_statistics(torchvision, case, train):
    arch, make, image_px = CASES[case]
    torch.manual_seed(0)
    theirs = make(torchvision)
    parity.randomize(theirs.network)
    model = zoo.NETWORKS[type(arch)](arch, 10, resolver("native", "cpu"), 0)
    images = np.random.default_rng(1).normal(size=(4, image_px, image_px, 3)).astype(np.float32)
    with parity.smooth_relu() if train else contextlib.nullcontext():
        found = parity.errors(theirs, model, images, train=train)
    worst = max(found, key=found.__getitem__)
    assert found[worst] < 1e-4, f"{worst}: {found[worst]:.1e}"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("resnet200", lambda: preactivated("bottleneck", (3, 24, 36, 3), 64, 1, 64)),
        ("preresnet34", lambda: preactivated("basic", (3, 4, 6, 3), 64)),
        *(("wrn28_10", lambda: wide(28, 10, 16)), ("wrn40_8", lambda: wide(40, 8, 16))),
        ("densenet_bc100_12", lambda: densenet_bc(100, 12)),
    ],
)
@pytest.mark.slow
def test_whole_rows_have_the_arrays_of_the_independent_networks(name, make):
    """Name for name and shape for shape, none left over on either side: what `variables` asserts."""
    model = zoo.NETWORKS[type(zoo.ARCHS[name])](zoo.ARCHS[name], 10, resolver("native", "cpu"), 0)
    theirs = make()
    ours = theirs.variables(model, np.zeros((1, 32, 32, 3), np.float32))
    count = sum(array.numel() for array in theirs.network.parameters())
    assert sum(array.size for array in jax.tree.leaves(ours["params"])) == count


@pytest.mark.parametrize(
    ("arch", "algorithms"),
    [
        # Channels in blocks around the grouped convolution of stage 3, of which the last 1x1 has no batch norm.
        (Arch("bottleneck", (1, 2), 32, 4, preactivation=True), {"blocked128", "moments", "space_to_depth"}),
        (DenseNetArch((2, 1), 32, 64), {"moments", "space_to_depth"}),
    ],
)
@pytest.mark.slow
def test_the_algorithms_of_a_tpu_compute_the_same(arch, algorithms):
    seen, choose = set(), resolver("auto", "tpu", "v5e")
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 32, 32, 3)), jnp.float32)
    network = zoo.NETWORKS[type(arch)]
    init = partial(network(arch, 10, resolver("native", "cpu"), 0).init, train=False)
    variables = jax.jit(init)(jax.random.key(0), images)

    def note(shape: ConvShape) -> str:
        seen.add(choose(shape))
        return choose(shape)

    outputs = []
    for choice in (note, resolver("native", "cpu")):
        model = network(arch, 10, choice, 0)
        outputs.append(jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images))
    assert seen >= algorithms
    for got, want in zip(*map(jax.tree.leaves, outputs), strict=True):
        assert parity.relative(got, np.asarray(want)) < 1e-4


@pytest.mark.slow
def test_dropout_lies_between_the_two_convolutions(torchvision):
    """Torch's network with our masks, block for block."""
    arch = Arch("basic", (1, 2, 1), stem=CIFAR_STEM, width=4, preactivation=True, widen=3, dropout=0.4)
    network = torch_neighbours.WideResNet(10, 3, 4)
    network.get_submodule("layer2").add_module(
        "1", torch_neighbours.PreactivatedBlock([torch_neighbours.conv(24, 24, 3) for _ in "12"], 1, "plain")
    )
    theirs = parity.Theirs(parity.randomize(network), wide(10, 3, 4).name_of, {}, "fc")
    keys = image_keys(0, jnp.asarray(0), 4)
    model = zoo.NETWORKS[Arch](arch, 10, resolver("native", "cpu"), 0)
    images = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
    variables = theirs.variables(model, images)
    got, _ = jax.jit(
        lambda variables: model.apply(variables, jnp.asarray(images), train=True, keys=keys, mutable=["batch_stats"])
    )(variables)

    blocks = [module for module in network.modules() if isinstance(module, torch_neighbours.PreactivatedBlock)]
    for number, (block, (px, channels)) in enumerate(zip(blocks, [(8, 12), (4, 24), (4, 24), (2, 48)], strict=True)):
        mask = dropout(jnp.ones((4, px, px, channels)), layer_keys(keys, number), 0.4)
        block.drop = partial(torch.mul, torch.from_numpy(np.array(mask)).permute(0, 3, 1, 2))
    want = network.train()(torch.from_numpy(images).permute(0, 3, 1, 2)).detach().numpy()
    assert parity.relative(got, want) < 1e-4
