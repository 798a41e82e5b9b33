"""The networks: names and shapes for the whole zoo, exact padding, frozen layers, and the classification network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.detection import network as lib
from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.models.arch import IMAGENET_STEM, Arch
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.ops.conv_choice import resolver

RNG = np.random.default_rng(0)
ARCHS = {name: arch for name, arch in zoo.ARCHS.items() if isinstance(arch, Arch)}
# As ResNet and ResNeXt of ImageNet, small: stem with pool, four stages.
SMALL = Arch("bottleneck", (1, 2, 1, 1), 4, 2, IMAGENET_STEM, width=8)
PREACTIVATED = Arch("bottleneck", (1, 2, 1, 1), 4, 2, IMAGENET_STEM, width=8, preactivation=True)
BASIC = Arch("basic", (2, 1, 1, 1), stem=IMAGENET_STEM, width=8)


def native(shape) -> str:
    return "native"


def rpn(arch: Arch, **options) -> lib.RpnNetwork:
    return lib.RpnNetwork(arch, options.pop("choose_conv", native), channels=16, **options)


def fast(arch: Arch, **options) -> lib.FastNetwork:
    return lib.FastNetwork(arch, 3, options.pop("choose_conv", native), **options)


def random_variables(shapes: dict) -> dict:
    """All positive, so that a ReLU leaves something, and different, also the statistics."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(RNG.uniform(0.1, 1, leaf.shape) ** 2 / leaf.shape[0], jnp.float32), shapes
    )


def init_shapes(model, *arguments) -> dict:
    return jax.eval_shape(model.init, jax.random.key(0), *arguments)


def class_shapes(arch: Arch) -> dict:
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(partial(ResNeXt(arch, 4, native).init, train=False), jax.random.key(0), images)


FEW = {"resnet18", "preresnet50", "resnext50_32x4d", "plain50", "wrn16_8", "resnext20_8x4d_small"}


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in ARCHS]
)
def test_every_resnet_and_resnext_is_trunk_and_head(name):
    """Both networks have the layers of the classification network: names, shapes and all but the classifier."""
    arch = lib.require_trunk(name, ARCHS[name])
    height, width = (64, 96)
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    size_px, regions = jax.ShapeDtypeStruct((2, 2), jnp.float32), jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)
    theirs = class_shapes(arch)
    last = f"stage{len(arch.blocks) + 1}"
    for model, arguments, new, absent in (
        (rpn(arch), (images, size_px), {"rpn_conv", "rpn_score", "rpn_box"}, {"classifier", last, "final_bn"}),
        (fast(arch), (images, size_px, regions), {"class_score", "class_box"}, {"classifier"}),
    ):
        outputs, ours = jax.eval_shape(model.init_with_output, jax.random.key(0), *arguments)
        for part in ("params", "batch_stats"):
            old = {layer: tree for layer, tree in ours[part].items() if layer not in new}
            assert old == {layer: tree for layer, tree in theirs[part].items() if layer not in absent}
        stride = lib.stride_px(arch)
        anchors = height // stride * (width // stride) * 12
        want = ((2, anchors), (2, anchors, 4)) if len(arguments) == 2 else ((2, 5, 4), (2, 5, 3, 4))
        assert tuple(output.shape for output in outputs) == want


def test_padding_is_masked_where_channels_come_in_blocks():
    """As a TPU computes it: between two 1x1 convolutions the activations have a dimension more."""
    model = rpn(ARCHS["resnext50_32x4d"], choose_conv=resolver("auto", "tpu", "v5e"))
    images, size_px = jax.ShapeDtypeStruct((1, 608, 1008, 3), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.float32)
    (logits, deltas), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images, size_px)
    assert (logits.shape, deltas.shape) == ((1, 38 * 63 * 12), (1, 38 * 63 * 12, 4))
    x = jnp.ones((1, 2, 4, 3, 5))
    masked = lib.mask_padding(x, jnp.float32([[17, 33]]), (32, 64))
    np.testing.assert_array_equal(masked, x.at[:, :, 3:].set(0))


def test_networks_without_stages_are_refused():
    with pytest.raises(UserError, match=r"model.name='vgg16' cannot detect objects.*resnext50_32x4d"):
        lib.require_trunk("vgg16", zoo.ARCHS["vgg16"])


@pytest.mark.parametrize(
    ("name", "stride"), [("resnext50_32x4d", 16), ("resnet18", 16), ("resnext29_8x64d", 2), ("resnext11_4x2d_tiny", 4)]
)
def test_the_stride_is_that_of_all_stages_but_the_last(name, stride):
    assert lib.stride_px(ARCHS[name]) == stride


def test_outputs_are_those_of_the_classification_network():
    """One region is the whole image of 14x14 cells: then pooling does nothing, and conv5 sees what it sees there."""
    images = jnp.asarray(RNG.normal(size=(1, 224, 224, 3)), jnp.float32)
    classifier = ResNeXt(SMALL, 4, native)
    theirs = random_variables(class_shapes(SMALL))
    weights = {"class_score": theirs["params"]["classifier"], "class_box": {"kernel": jnp.zeros((256, 12))}}
    weights["class_box"]["bias"] = jnp.zeros(12)
    params = {name: tree for name, tree in theirs["params"].items() if name != "classifier"} | weights
    arguments = images, jnp.float32([[224, 224]]), jnp.float32([[[0, 0, 215, 215]]])
    logits, _ = jax.jit(fast(SMALL).apply)({**theirs, "params": params}, *arguments)
    want = jax.jit(partial(classifier.apply, train=False))(theirs, images)
    np.testing.assert_allclose(logits[0], want, rtol=1e-5)


def outputs_alone(apply, variables, images, size_px, regions) -> list:
    """The outputs for the first image, cut to its size."""
    height, width = (int(side) for side in size_px[0])
    return apply(variables, images[:1, :height, :width], size_px[:1], *(array[:1] for array in regions))


@pytest.mark.parametrize(
    ("arch", "conv_impl"),
    [
        (ARCHS["resnext11_4x2d_tiny"], "native"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in ((SMALL, "native"), (SMALL, "auto"), (PREACTIVATED, "native"), (BASIC, "native"))
        ),
    ],
)
def test_padding_changes_nothing(arch, conv_impl):
    """Noise is where the padding is. The first image has a size that 16 does not divide, the second has no padding."""
    images = jnp.asarray(RNG.normal(size=(2, 64, 96, 3)), jnp.float32)
    size_px = jnp.float32([[45, 70], [64, 96]])
    regions = jnp.float32([[[0, 0, 60, 20], [10, 5, 69, 32], [50, 20, 69, 44]]] * 2)
    choose_conv, stride = resolver(conv_impl, "cpu"), lib.stride_px(arch)

    model = rpn(arch, choose_conv=choose_conv)
    variables, apply = random_variables(init_shapes(model, images, size_px)), jax.jit(model.apply)
    padded, alone = apply(variables, images, size_px), outputs_alone(apply, variables, images, size_px, ())
    for of_canvas, want in zip(padded, alone, strict=True):
        cells = of_canvas[0].reshape(64 // stride, 96 // stride, 12, -1)
        cells = cells[: -(-45 // stride), : -(-70 // stride)].reshape(want[0].shape)
        np.testing.assert_allclose(cells, want[0], rtol=1e-5, atol=1e-6)
        assert np.abs(want[0]).max() > 1e-3

    for pool in ("max", "align") if arch is SMALL else ("max",):
        model = fast(arch, choose_conv=choose_conv, pool=pool)
        variables, apply = random_variables(init_shapes(model, images, size_px, regions)), jax.jit(model.apply)
        padded = apply(variables, images, size_px, regions)
        alone = outputs_alone(apply, variables, images, size_px, (regions,))
        for of_canvas, want in zip(padded, alone, strict=True):
            np.testing.assert_allclose(of_canvas[0], want[0], rtol=1e-5, atol=1e-6)
            assert np.abs(want[0]).max() > 1e-3


def test_frozen_are_the_first_stages_and_all_batch_norms():
    images, size_px, regions = jnp.zeros((1, 64, 64, 3)), jnp.float32([[64, 64]]), jnp.float32([[[0, 0, 40, 40]]])
    variables = random_variables(init_shapes(fast(SMALL), images, size_px, regions))

    def loss(params, num_stages=2):
        outputs = fast(SMALL).apply(
            {**variables, "params": lib.freeze(params, num_stages)}, images + 1, size_px, regions
        )
        return sum(jnp.square(output).sum() for output in jax.tree.leaves(outputs))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    trained = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree.leaves_with_path(gradients)
        if np.abs(leaf).max() > 0
    }
    convs = ("conv1", "conv2", "conv3", "shortcut_conv")
    want = {f"stage{stage}/block1/{conv}/kernel" for stage in (3, 4, 5) for conv in convs}
    want |= {f"stage3/block2/{conv}/kernel" for conv in convs[:3]}
    want |= {f"{layer}/{name}" for layer in ("class_score", "class_box") for name in ("kernel", "bias")}
    assert trained == want

    none_frozen = lib.frozen(variables["params"], 0)
    assert not none_frozen["stem_conv"]["kernel"]
    assert not none_frozen["stage2"]["block1"]["conv1"]["kernel"]
    assert none_frozen["stage2"]["block1"]["bn1"]["scale"]
    assert lib.frozen(variables["params"])["stem_bn"]["bias"]


@pytest.mark.slow
def test_new_layers_start_as_in_py_faster_rcnn():
    images, size_px, regions = jnp.zeros((1, 64, 64, 3)), jnp.float32([[64, 64]]), jnp.float32([[[0, 0, 40, 40]]])
    tiny = ARCHS["resnext11_4x2d_tiny"]
    params = jax.jit(fast(tiny).init)(jax.random.key(0), images, size_px, regions)["params"]
    params |= jax.jit(lib.RpnNetwork(tiny, native).init)(jax.random.key(0), images, size_px)["params"]
    for layer in ("rpn_conv", "rpn_score", "rpn_box", "class_score", "class_box"):
        std = 0.001 if layer == "class_box" else 0.01
        np.testing.assert_allclose(params[layer]["kernel"].std(), std, rtol=0.15)
        assert not params[layer]["bias"].any()
