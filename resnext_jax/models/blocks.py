"""The two residual blocks (paper, Table 1; He et al. 2015, Figure 5). `conv` and `norm` come from the template.

Pre-activated (He et al. 2016, "Identity Mappings", as in fb.resnet.torch) a block has its batch norms and ReLUs before
its convolutions, and nothing after the addition. A projection then reads what the first convolution reads, and has no
batch norm. The very first block of a network reads the stem's ReLU: its input is `activated` already.
"""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float, Key

from resnext_jax.ops.dropout import dropout, stochastic_depth


class Basic(nn.Module):
    """3x3, 3x3 (ResNet-18 and -34, Wide ResNet). The stride sits in the first 3x3, dropout between the two."""

    features: int
    stride: int
    shortcut: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    preactivation: bool = False
    activated: bool = False
    dropout: float = 0.0
    drop_block: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in"],
        *,
        train: bool,
        keys: Key[Array, " batch"] | None = None,
        block_keys: Key[Array, " batch"] | None = None,
    ) -> Array:
        opened, norms = _open(self, x, train=train), _norms(self, 2)
        y = self.conv(self.features, 3, stride=self.stride, name="conv1")(opened, norm=norms[0], train=train)
        y = nn.relu(y)
        if self.dropout and train:
            if keys is None:
                raise ValueError("dropout draws from the keys of the images: call the network with keys")
            y = dropout(y, keys, self.dropout)
        y = self.conv(self.features, 3, name="conv2")(y, norm=norms[1], train=train)
        return _close(self, x, opened, y, train=train, keys=block_keys)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1: Figure 3(c) of the paper; ResNet's bottleneck when `cardinality` is 1.

    The stride sits in the 3x3, the last ReLU after the addition.

    Attributes:
      features: channels of the output.
      inner: channels of the grouped convolution, cardinality * width of a path.
      cardinality: the number of paths C, the groups of the 3x3.
      stride: 2 in the first block of a stage that halves the resolution.
      shortcut: False removes it (the paper's ablation, section 5.1).
      preactivation: batch norm and ReLU before the convolutions.
      activated: the input of a pre-activated block comes from a ReLU already.
      drop_block: how often an image goes by the shortcut alone, in training.
    """

    features: int
    inner: int
    cardinality: int
    stride: int
    shortcut: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    preactivation: bool = False
    activated: bool = False
    drop_block: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in"],
        *,
        train: bool,
        block_keys: Key[Array, " batch"] | None = None,
    ) -> Array:
        opened, norms = _open(self, x, train=train), _norms(self, 3)
        conv2 = self.conv(self.inner, 3, stride=self.stride, groups=self.cardinality, name="conv2")
        blocks = conv2.input_blocks(*x.shape[1:3], self.inner)
        y = self.conv(self.inner, 1, name="conv1")(opened, norm=norms[0], blocks=blocks, train=train)
        y = conv2(nn.relu(y), norm=norms[1], train=train)
        y = self.conv(self.features, 1, name="conv3")(nn.relu(y), norm=norms[2], train=train)
        return _close(self, x, opened, y, train=train, keys=block_keys)


def _norms(block: Basic | Bottleneck, num_convs: int) -> list[nn.Module | None]:
    """The batch norm after each convolution: its own; pre-activated the next one's, and none after the last."""
    first = 2 if block.preactivation else 1
    norms: list[nn.Module | None] = [block.norm(name=f"bn{number}") for number in range(first, num_convs + 1)]
    return norms + [None] * (first - 1)


def _open(block: Basic | Bottleneck, x: Array, *, train: bool) -> Array:
    """What the first convolution reads."""
    if not block.preactivation or block.activated:
        return x
    return nn.relu(block.norm(name="bn1")(x, train=train))


def _close(
    block: Basic | Bottleneck, x: Array, opened: Array, y: Array, *, train: bool, keys: Key[Array, " batch"] | None
) -> Array:
    """`x + y`, with a projection (1x1 conv and batch norm) only where the shape changes; and the last ReLU."""
    if block.shortcut:
        if x.shape != y.shape:
            norm = None if block.preactivation else block.norm(name="shortcut_bn")
            shortcut = block.conv(block.features, 1, stride=block.stride, name="shortcut_conv")
            x = shortcut(opened, norm=norm, train=train)
        if block.drop_block and train:
            if keys is None:
                raise ValueError("stochastic depth draws from the keys of the images: call the network with keys")
            y = stochastic_depth(y, keys, block.drop_block)
        y = x + y
    return y if block.preactivation else nn.relu(y)
