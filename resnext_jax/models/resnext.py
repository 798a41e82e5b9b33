"""ResNeXt as in Table 1 and Figure 3(c): a stem, stages of blocks, global average pooling, one fully connected layer.

A ResNet is a ResNeXt of cardinality 1. The numbers of a network are an `Arch`.
"""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resnext_jax.models.arch import Arch
from resnext_jax.models.layers import BatchNorm, Classifier, Conv, ConvBN, Numerics, check_size
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.dropout import dropout, layer_keys, stochastic_depth
from resnext_jax.ops.pool import global_average, max_pool

Images = Float[Array, "batch height width in_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]
Keys = Key[Array, " batch"]


class Block(nn.Module):
    """What all residual blocks have in common; see `Arch` for the fields without a comment."""

    features: int  # channels of the output
    stride: int  # of the (first) 3x3: 2 where a stage halves the resolution
    numerics: Numerics
    inner: int = 0  # channels of a bottleneck's grouped convolution, cardinality * width of a path
    cardinality: int = 1
    shortcut: bool = True
    dropout: float = 0.0
    stochastic_depth: float = 0.0  # how often an image goes by the shortcut alone, in training
    number: int = 0  # place of the block in the network
    num_blocks: int = 1  # blocks of the whole network

    @nn.nowrap
    def drop(self, y: Images, *, train: bool, keys: Keys | None) -> Images:
        """Return y with stochastic depth: in training, y of some images is 0."""
        if not self.stochastic_depth or not train:
            return y
        return stochastic_depth(y, layer_keys(keys, self.num_blocks + self.number), self.stochastic_depth)


class Basic(Block):
    """3x3, 3x3 (ResNet-18 and -34)."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool, keys: Keys | None = None) -> Outputs:
        conv1 = ConvBN(self.features, 3, self.numerics, stride=self.stride, name="conv1")
        conv2 = ConvBN(self.features, 3, self.numerics, name="conv2")
        project = ConvBN(self.features, 1, self.numerics, stride=self.stride, name="shortcut_conv")

        y = nn.relu(conv1(x, train=train))
        if self.dropout and train:
            y = dropout(y, layer_keys(keys, self.number), self.dropout)
        y = conv2(y, train=train)
        if self.shortcut:
            x = x if x.shape == y.shape else project(x, train=train)
            y = x + self.drop(y, train=train, keys=keys)
        return nn.relu(y)


class Bottleneck(Block):
    """1x1, grouped 3x3, 1x1: Figure 3(c) of the paper; ResNet's bottleneck when `cardinality` is 1."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool, keys: Keys | None = None) -> Outputs:
        conv1 = ConvBN(self.inner, 1, self.numerics, name="conv1")
        conv2 = ConvBN(self.inner, 3, self.numerics, stride=self.stride, groups=self.cardinality, name="conv2")
        conv3 = ConvBN(self.features, 1, self.numerics, name="conv3")
        project = ConvBN(self.features, 1, self.numerics, stride=self.stride, name="shortcut_conv")

        y = nn.relu(conv1(x, reader=conv2, train=train))
        y = nn.relu(conv2(y, train=train))
        y = conv3(y, train=train)
        if self.shortcut:
            x = x if x.shape == y.shape else project(x, train=train)
            y = x + self.drop(y, train=train, keys=keys)
        return nn.relu(y)


# ---- Pre-activated blocks (He et al. 2016, "Identity Mappings", as in fb.resnet.torch), for ResNet-200 in Table 4
#
# Batch norm and ReLU come before each convolution, and nothing after the addition. So a convolution is one layer with
# the batch norm of the next. A projection reads what the first convolution reads, and has no batch norm.


class PreactivatedBlock(Block):
    """What both pre-activated blocks have in common."""

    @nn.nowrap
    def activate(self, x: Images, *, train: bool) -> Images:
        """Return the first batch norm and ReLU of x. The first block of a network reads the ReLU of the stem."""
        if self.number == 0:
            return x
        return nn.relu(BatchNorm(self.numerics.bn_group_images, name="bn1")(x, train=train))


class PreactivatedBasic(PreactivatedBlock):
    """3x3, 3x3 (Wide ResNet)."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool, keys: Keys | None = None) -> Outputs:
        conv1 = ConvBN(self.features, 3, self.numerics, stride=self.stride, name="conv1", bn="bn2")
        conv2 = Conv(self.features, 3, self.numerics, name="conv2")
        project = Conv(self.features, 1, self.numerics, stride=self.stride, name="shortcut_conv")

        activated = self.activate(x, train=train)
        y = nn.relu(conv1(activated, train=train))
        if self.dropout and train:
            y = dropout(y, layer_keys(keys, self.number), self.dropout)
        y = conv2(y)
        if self.shortcut:
            x = x if x.shape == y.shape else project(activated)
            y = x + self.drop(y, train=train, keys=keys)
        return y


class PreactivatedBottleneck(PreactivatedBlock):
    """1x1, grouped 3x3, 1x1."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool, keys: Keys | None = None) -> Outputs:
        conv1 = ConvBN(self.inner, 1, self.numerics, name="conv1", bn="bn2")
        conv2 = ConvBN(
            self.inner, 3, self.numerics, stride=self.stride, groups=self.cardinality, name="conv2", bn="bn3"
        )
        conv3 = Conv(self.features, 1, self.numerics, name="conv3")
        project = Conv(self.features, 1, self.numerics, stride=self.stride, name="shortcut_conv")

        activated = self.activate(x, train=train)
        y = nn.relu(conv1(activated, reader=conv2, train=train))
        y = nn.relu(conv2(y, train=train))
        y = conv3(y)
        if self.shortcut:
            x = x if x.shape == y.shape else project(activated)
            y = x + self.drop(y, train=train, keys=keys)
        return y


# ---- The network


class Stage(nn.Module):
    """The blocks of one resolution: stage 0 keeps the stem's, every later one halves it and doubles the width."""

    arch: Arch
    index: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Images, *, train: bool, keys: Keys | None) -> Outputs:
        arch, scale, num_blocks = self.arch, 2**self.index, sum(self.arch.blocks)
        if arch.block == "basic":
            kind = PreactivatedBasic if arch.preactivation else Basic
            features, inner = arch.width * arch.widen * scale, 0
        else:
            kind = PreactivatedBottleneck if arch.preactivation else Bottleneck
            features, inner = 4 * arch.width * scale, arch.cardinality * arch.bottleneck_width * scale
        for number in range(arch.blocks[self.index]):
            place = sum(arch.blocks[: self.index]) + number
            block = kind(
                features,
                2 if self.index > 0 and number == 0 else 1,
                self.numerics,
                inner=inner,
                cardinality=arch.cardinality,
                shortcut=arch.shortcut,
                dropout=arch.dropout,
                stochastic_depth=arch.stochastic_depth * place / max(num_blocks - 1, 1),
                number=place,
                num_blocks=num_blocks,
                name=f"block{number + 1}",
            )
            x = block(x, train=train, keys=keys)
        return x


class ResNeXt(nn.Module):
    """The network of one `Arch`.

    Call it with normalized images (batch, height, width, channel); it returns float32 logits (batch, classes), or
    with `features=True` the logits and the activations of every stage. Where there is dropout or stochastic depth,
    training needs the `keys` of the images (`ops.augment.image_keys`).
    """

    arch: Arch
    num_classes: int
    choose_conv: Callable[[ConvShape], str]  # this and the next two: see `layers.Numerics`
    bn_group_images: int = 32
    dtype: DTypeLike = jnp.float32
    pool: Callable[[Array], Array] = global_average  # last activations -> (batch, channel), which the classifier reads

    first_layer: ClassVar[str] = "stem_conv"

    @nn.compact
    def __call__(
        self, images: Images, *, train: bool, features: bool = False, keys: Keys | None = None
    ) -> Array | tuple[Array, dict[str, Array]]:
        arch, stem = self.arch, self.arch.stem
        check_size(images, arch.smallest_px)
        numerics = Numerics(self.choose_conv, self.bn_group_images, self.dtype)

        conv = ConvBN(arch.width, stem.kernel_px, numerics, stride=stem.stride, name="stem_conv")
        activations = {}
        if stem.pool and not features:
            x = nn.relu(conv(images, pool=max_pool, train=train))  # max-pool and ReLU commute
        else:
            x = activations["stage1"] = nn.relu(conv(images, train=train))
            x = max_pool(x) if stem.pool else x

        for index in range(len(arch.blocks)):
            name = f"stage{index + 2}"
            x = activations[name] = Stage(arch, index, numerics, name=name)(x, train=train, keys=keys)

        if arch.preactivation:
            x = BatchNorm(self.bn_group_images, name="final_bn")(x, train=train)
            with jax.named_scope("final_bn"):
                x = nn.relu(x)
        pooled = self.pool(x)
        logits = Classifier(self.num_classes, name="classifier")(pooled)
        return (logits, activations | {"pooled": pooled}) if features else logits
