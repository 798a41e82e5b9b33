"""Names of our layers in torchvision and timm. timm's ResNets and DenseNets have torchvision's names."""

import re
from collections.abc import Sequence

from resnext_jax.convert.layers import Layer
from resnext_jax.errors import UserError

RESNET = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
    "classifier": "fc",
    **{name: name for name in ("conv1", "conv2", "conv3", "bn1", "bn2", "bn3")},
}
DENSENET = dict(
    stem_conv="features.conv0", stem_bn="features.norm0", final_bn="features.norm5", classifier="classifier"
)
VGG = {
    "torchvision": {"hidden1": "classifier.0", "hidden2": "classifier.3", "classifier": "classifier.6"},
    "timm": {"hidden1": "pre_logits.fc1", "hidden2": "pre_logits.fc2", "classifier": "head.fc"},
}
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
POOLED_PX = 7  # kernel size of the first hidden layer of timm's VGG, a convolution


def their_names(their: str, model: str, layers: Sequence[Layer]) -> list[str]:
    """Return the name of every layer of a model in torchvision or timm: stage3/block2/conv2 is layer2.1.conv2.

    Raises:
      UserError: they have no such network.
    """
    inside = {part for layer in layers for part in layer.path}
    if "hidden1" in inside:
        names = _vgg(VGG[their], layers)
    elif "transition" in inside:
        names = [_densenet(layer.path) for layer in layers]
    else:
        names = [".".join(map(_resnet, layer.path)) for layer in layers]
    strange = [layer for layer, name in zip(layers, names, strict=True) if "?" in name]
    if strange or len(set(names)) != len(names):
        raise UserError(
            f"{model} is none of {their}'s networks{': ' + '/'.join(strange[0].path) if strange else ''} has no name "
            "there. ResNets, ResNeXts and wide ResNets with batch norm after the convolutions, DenseNets and VGGs have."
        )
    return names


def current_name(name: str) -> str:
    """Return the current name of an array: torchvision's DenseNet files still have norm.1 for norm1."""
    old = OLD_DENSENET.fullmatch(name)
    return f"{old[1]}{old[2]}" if old else name


def their_shape(their: str, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array in their file."""
    if len(shape) == 4:
        height, width, group_inputs, out = shape
        return (out, group_inputs, height, width)
    if len(shape) == 2:
        if their == "timm" and layer.path[-1].startswith("hidden"):
            size_px = POOLED_PX if layer.path[-1] == "hidden1" else 1
            return (shape[1], shape[0] // size_px**2, size_px, size_px)
        return shape[::-1]
    return shape


def _resnet(part: str) -> str:
    if numbered := re.fullmatch(r"(stage|block)(\d+)", part):
        return ("layer" if numbered[1] == "stage" else "") + str(int(numbered[2]) - 1)
    return RESNET.get(part, "?")


def _densenet(path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return DENSENET.get(path[0], "?")
    stage, part, layer = path
    number = int(stage.removeprefix("stage")) - 1
    if part == "transition":
        return f"features.transition{number - 1}.{layer.replace('bn', 'norm').removesuffix('1')}"
    return f"features.denseblock{number}.dense{part}.{layer.replace('bn', 'norm')}"


def _vgg(outside: dict[str, str], layers: Sequence[Layer]) -> list[str]:
    names, index, stage = [], 0, layers[0].path[0]
    for layer in layers:
        if len(layer.path) == 1:
            names.append(outside[layer.path[0]])
            continue
        if layer.kind == "conv" and names:
            index += 1 if layer.path[0] == stage else 2  # a ReLU, and between stages a max-pool, has a number too
        stage = layer.path[0]
        names.append(f"features.{index}")
        index += 1
    return names
