"""ResNeXt against torchvision's networks, and its structure where torchvision has none to compare with."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_reference

from resnext_jax.models import zoo
from resnext_jax.models.arch import SMALL_STEM, Arch
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.ops.conv_choice import ConvShape, resolver

RNG = np.random.default_rng(0)


def init_shapes(model: ResNeXt, image_px: int = 64) -> dict:
    images = jax.ShapeDtypeStruct((1, image_px, image_px, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def output_shapes(model: ResNeXt, image_px: int = 64) -> tuple:
    images = jax.ShapeDtypeStruct((2, image_px, image_px, 3), jnp.float32)
    return jax.eval_shape(partial(model.apply, train=False, features=True), init_shapes(model, image_px), images)


def native(arch: zoo.Row, num_classes: int = 10, **options) -> ResNeXt:
    assert isinstance(arch, Arch)
    return ResNeXt(arch, num_classes, lambda shape: "native", **options)


@pytest.mark.parametrize(("name", "conv_impl"), [("resnext50_32x4d", "native"), ("resnet18", "auto")])
@pytest.mark.slow
def test_logits_and_features_equal_torchvision(torchvision, name, conv_impl):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for array, low, high in (
                *((module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2)),
                *((module.weight.data, 0.5, 1.5), (module.bias.data, -0.5, 0.5)),
            ):
                array.uniform_(low, high)
    model = native(zoo.ARCHS[name], 1000).clone(choose_conv=resolver(conv_impl, "cpu"))
    variables = torch_reference.from_torch(theirs.state_dict(), init_shapes(model))

    images = RNG.normal(size=(2, 64, 64, 3)).astype(np.float32)
    logits, features = jax.jit(partial(model.apply, train=False, features=True))(variables, images)

    outputs = {}
    for ours, layer in {"stage1": "relu", **{f"stage{n + 1}": f"layer{n}" for n in (1, 2, 3, 4)}}.items():
        theirs.get_submodule(layer).register_forward_hook(
            lambda module, args, out, ours=ours: outputs.update({ours: out})
        )
    with torch.no_grad():
        want = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    outputs["pooled"] = outputs["stage5"].mean((2, 3))
    assert features.keys() == outputs.keys()
    for key, feature in features.items():
        expected = outputs[key].movedim(1, -1).numpy()
        np.testing.assert_allclose(feature, expected, atol=2e-5 * np.abs(expected).max(), err_msg=key)
    np.testing.assert_allclose(logits, want, atol=2e-5 * np.abs(want.numpy()).max())


def paths_with(word: str, tree: dict) -> set[str]:
    return {
        f"{stage}/{block}"
        for stage, blocks in tree.items()
        if stage.startswith("stage")
        for block, parts in blocks.items()
        if any(word in name for name in parts)
    }


@pytest.mark.parametrize(
    ("arch", "projections"),
    [
        # 64 to 64 channels at full resolution: no projection in the first stage of basic blocks.
        (zoo.ARCHS["resnet18"], {"stage3/block1", "stage4/block1", "stage5/block1"}),
        (zoo.ARCHS["resnext50_32x4d"], {"stage2/block1", "stage3/block1", "stage4/block1", "stage5/block1"}),
        (zoo.ARCHS["resnext29_8x64d"], {"stage2/block1", "stage3/block1", "stage4/block1"}),
    ],
)
def test_projection_only_where_the_shape_changes(arch, projections):
    variables = init_shapes(native(arch))
    for part in ("params", "batch_stats"):
        assert paths_with("shortcut", variables[part]) == projections


@pytest.mark.slow
def test_no_shortcuts_at_all():
    arch = zoo.select("resnext50_32x4d", shortcut=False)
    assert paths_with("shortcut", init_shapes(native(arch))["params"]) == set()
    # A block whose last batch norm gives 0 puts out 0: nothing goes round it.
    model = native(Arch("bottleneck", (2,), 2, 2, SMALL_STEM, width=4, shortcut=False))
    images = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = jax.tree.map(lambda leaf: RNG.uniform(0.5, 1, leaf.shape).astype(np.float32), init_shapes(model))
    zeros = np.zeros(16, np.float32)
    variables["params"]["stage2"]["block2"]["bn3"] = {"scale": zeros, "bias": zeros}
    _, features = jax.jit(partial(model.apply, train=False, features=True))(variables, images)
    np.testing.assert_array_equal(features["stage2"], 0)


@pytest.mark.slow
def test_every_batch_norm_of_a_network_starts_at_one():
    """The last of a block too, which newer recipes start at 0. Of the stem, of two blocks and of their shortcuts."""
    model = native(Arch("bottleneck", (1, 1), 2, 2, SMALL_STEM, width=4))
    images = jnp.zeros((1, 8, 8, 3))
    params = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)["params"]
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    scales = {name: leaf for name, leaf in leaves.items() if name.endswith("['scale']")}
    assert len(scales) == 1 + 2 * 3 + 2
    assert "['stage3']['block1']['bn3']['scale']" in scales
    assert all((leaf == 1).all() for leaf in scales.values())


def test_every_convolution_of_a_small_network():
    seen = []

    def choose(shape: ConvShape) -> str:
        seen.append(shape)
        return "native"

    init_shapes(ResNeXt(Arch("bottleneck", (1, 2), 4, 3, width=8), 10, choose), image_px=32)
    # (kernel_px, stride, groups, in_channels, out_channels, height, width); the pool halves 16 to 8 px.
    # A grouped one of stride 1 is asked for twice: how it likes its input comes before the 1x1 that makes it.
    assert sorted((*vars(shape).values(),) for shape in seen) == sorted(
        [
            (7, 2, 1, 3, 8, 32, 32),
            *(
                (3, 1, 4, 12, 12, 8, 8),
                (1, 1, 1, 8, 12, 8, 8),
                (3, 1, 4, 12, 12, 8, 8),
                (1, 1, 1, 12, 32, 8, 8),
                (1, 1, 1, 8, 32, 8, 8),
            ),
            # The stride sits in the 3x3, and in the projection beside it.
            *((1, 1, 1, 32, 24, 8, 8), (3, 2, 4, 24, 24, 8, 8), (1, 1, 1, 24, 64, 4, 4), (1, 2, 1, 32, 64, 8, 8)),
            *((3, 1, 4, 24, 24, 4, 4), (1, 1, 1, 64, 24, 4, 4), (3, 1, 4, 24, 24, 4, 4), (1, 1, 1, 24, 64, 4, 4)),
        ]
    )


@pytest.mark.parametrize(
    ("arch", "strides", "channels"),
    [
        (zoo.ARCHS["resnet34"], (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)),
        (zoo.ARCHS["resnext50_32x4d"], (2, 4, 8, 16, 32), (64, 256, 512, 1024, 2048)),
        (zoo.ARCHS["resnext29_8x64d"], (1, 1, 2, 4), (64, 256, 512, 1024)),
        (zoo.ARCHS["resnext20_8x4d_small"], (2, 2, 4, 8), (16, 64, 128, 256)),
    ],
)
@pytest.mark.slow
def test_strides_and_channels_of_the_features(arch, strides, channels):
    logits, features = output_shapes(native(arch, num_classes=7))
    assert logits.shape == (2, 7)
    want = {
        f"stage{number}": (2, 64 // stride, 64 // stride, channel)
        for number, (stride, channel) in enumerate(zip(strides, channels, strict=True), start=1)
    }
    assert {key: feature.shape for key, feature in features.items()} == want | {"pooled": (2, channels[-1])}


@pytest.mark.parametrize("image_px", [28, 33])
@pytest.mark.slow
def test_odd_sizes_round_up(image_px):
    _, features = output_shapes(native(zoo.ARCHS["resnext20_8x4d_small"]), image_px)
    half = (image_px + 1) // 2
    sizes = [feature.shape[1] for key, feature in features.items() if key != "pooled"]
    assert sizes == [half, half, (half + 1) // 2, ((half + 1) // 2 + 1) // 2]
