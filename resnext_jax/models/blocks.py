"""The two residual blocks (paper, Table 1; He et al. 2015, Figure 5). `conv` and `norm` come from the template."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float


class Basic(nn.Module):
    """3x3, 3x3 (ResNet-18 and -34). The stride sits in the first 3x3."""

    features: int
    stride: int
    shortcut: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Array:
        y = self.conv(self.features, 3, stride=self.stride, name="conv1")(x, norm=self.norm(name="bn1"), train=train)
        y = self.conv(self.features, 3, name="conv2")(nn.relu(y), norm=self.norm(name="bn2"), train=train)
        return nn.relu(_add_shortcut(self, x, y, train=train))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1: Figure 3(c) of the paper; ResNet's bottleneck when `cardinality` is 1.

    The stride sits in the 3x3, the last ReLU after the addition.

    Attributes:
      features: channels of the output.
      inner: channels of the grouped convolution, cardinality * width of a path.
      cardinality: the number of paths C, the groups of the 3x3.
      stride: 2 in the first block of a stage that halves the resolution.
      shortcut: False removes it (the paper's ablation, section 5.1).
    """

    features: int
    inner: int
    cardinality: int
    stride: int
    shortcut: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Array:
        conv2 = self.conv(self.inner, 3, stride=self.stride, groups=self.cardinality, name="conv2")
        blocks = conv2.input_blocks(*x.shape[1:3], self.inner)
        y = self.conv(self.inner, 1, name="conv1")(x, norm=self.norm(name="bn1"), blocks=blocks, train=train)
        y = conv2(nn.relu(y), norm=self.norm(name="bn2"), train=train)
        y = self.conv(self.features, 1, name="conv3")(nn.relu(y), norm=self.norm(name="bn3"), train=train)
        return nn.relu(_add_shortcut(self, x, y, train=train))


def _add_shortcut(block: Basic | Bottleneck, x: Array, y: Array, *, train: bool) -> Array:
    """`x + y`, with a projection of `x` (1x1 conv and batch norm) only where the shape changes."""
    if not block.shortcut:
        return y
    if x.shape != y.shape:
        shortcut = block.conv(block.features, 1, stride=block.stride, name="shortcut_conv")
        x = shortcut(x, norm=block.norm(name="shortcut_bn"), train=train)
    return x + y
