"""The template of Table 1: a stem, stages of like blocks, global average pooling, one fully connected layer."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resnext_jax.models.blocks import Basic, Bottleneck
from resnext_jax.models.layers import BatchNorm, Classifier, Conv, check_size
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.dropout import layer_keys
from resnext_jax.ops.pool import global_average, max_pool

Block = Literal["basic", "bottleneck"]


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution, and whether a 3x3 max-pool of stride 2 follows."""

    kernel_px: int
    stride: int
    pool: bool


IMAGENET_STEM = Stem(kernel_px=7, stride=2, pool=True)
CIFAR_STEM = Stem(kernel_px=3, stride=1, pool=False)
SMALL_STEM = Stem(kernel_px=3, stride=2, pool=False)


@dataclasses.dataclass(frozen=True)
class Arch:
    """One network of the zoo.

    Attributes:
      block: "basic" (3x3, 3x3) or "bottleneck" (1x1, grouped 3x3, 1x1).
      blocks: blocks of each stage; from the second stage on, the first block has stride 2.
      cardinality: C, the number of paths of a bottleneck.
      bottleneck_width: d, the channels of a path in the first stage; doubles with every stage.
      stem: see `Stem`.
      width: n, channels of the stem and of a basic block in the first stage (a bottleneck puts out 4n); doubles.
      shortcut: False removes the residual connections.
      preactivation: batch norm and ReLU before the convolutions of a block, not after (`blocks`), and once at the end.
      widen: k, how many times as wide basic blocks are as `width` says; the stem is not (Zagoruyko & Komodakis 2016).
      dropout: the rate between the two convolutions of a basic block, 0 for none.
      stochastic_depth: how often the last block is left out, 0 for never; for the blocks before it in proportion to
        their number, for the first never.
    """

    block: Block
    blocks: tuple[int, ...]
    cardinality: int = 1
    bottleneck_width: int = 64
    stem: Stem = IMAGENET_STEM
    width: int = 64
    shortcut: bool = True
    preactivation: bool = False
    widen: int = 1
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @property
    def smallest_px(self) -> int:
        """The height and width of images of which the last stage still sees a whole pixel: its stride."""
        return self.stem.stride * (2 if self.stem.pool else 1) * 2 ** (len(self.blocks) - 1)


class Stage(nn.Module):
    """The blocks of one resolution: stage 0 keeps the stem's, every later one halves it and doubles the width."""

    arch: Arch
    index: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool, keys: Key[Array, " batch"] | None
    ) -> Array:
        arch, scale, num_blocks = self.arch, 2**self.index, sum(self.arch.blocks)
        for number in range(arch.blocks[self.index]):
            place = sum(arch.blocks[: self.index]) + number
            block_keys = None
            if arch.stochastic_depth and train and keys is not None:
                block_keys = layer_keys(keys, num_blocks + place)  # dropout has those below
            common: dict[str, Any] = dict(
                stride=2 if self.index > 0 and number == 0 else 1,
                shortcut=arch.shortcut,
                preactivation=arch.preactivation,
                activated=self.index == number == 0,
                conv=self.conv,
                norm=self.norm,
                drop_block=arch.stochastic_depth * place / max(num_blocks - 1, 1),
                name=f"block{number + 1}",
            )
            if arch.block == "basic":
                dropout_keys = None
                if arch.dropout and train and keys is not None:
                    dropout_keys = layer_keys(keys, place)
                block = Basic(arch.width * arch.widen * scale, dropout=arch.dropout, **common)
                x = block(x, train=train, keys=dropout_keys, block_keys=block_keys)
            else:
                inner = arch.cardinality * arch.bottleneck_width * scale
                block = Bottleneck(4 * arch.width * scale, inner, arch.cardinality, **common)
                x = block(x, train=train, block_keys=block_keys)
        return x


class ResNeXt(nn.Module):
    """The network of one `Arch`; a ResNet is a ResNeXt of cardinality 1.

    Call it with normalised images (batch, height, width, channel); it returns float32 logits (batch, classes), or
    with `features=True` the logits and the activations of every stage. Where there is dropout or stochastic depth,
    training needs the `keys` of the images (`ops.augment.image_keys`).

    Attributes:
      arch: a row of `zoo.ARCHS`.
      num_classes: the classes of the data set.
      choose_conv: names the algorithm for the shape of a convolution (`ops.grouped_conv.resolver`).
      bn_group_images: images per batch-norm group, 0 for the whole batch.
      dtype: of activations, float32 or bfloat16; parameters and statistics are always float32.
      pool: what the classifier reads of the last activations (batch, channel); dense testing has another.
    """

    arch: Arch
    num_classes: int
    choose_conv: Callable[[ConvShape], str]
    bn_group_images: int = 32
    dtype: DTypeLike = jnp.float32
    pool: Callable[[Array], Array] = global_average

    first_layer: ClassVar[str] = "stem_conv"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        *,
        train: bool,
        features: bool = False,
        keys: Key[Array, " batch"] | None = None,
    ) -> Array | tuple[Array, dict[str, Array]]:
        arch = self.arch
        check_size(images, arch.smallest_px)
        conv = partial(Conv, choose=self.choose_conv, dtype=self.dtype)
        norm = partial(BatchNorm, group_images=self.bn_group_images)

        stem = conv(arch.width, arch.stem.kernel_px, stride=arch.stem.stride, name="stem_conv")
        bn = norm(name="stem_bn")
        if arch.stem.pool and not features:
            x = nn.relu(stem(images, norm=bn, pool=max_pool, train=train))  # max-pool and ReLU commute
            activations = {}
        else:
            x = nn.relu(stem(images, norm=bn, train=train))
            activations = {"stage1": x}
            x = max_pool(x) if arch.stem.pool else x

        for index in range(len(arch.blocks)):
            name = f"stage{index + 2}"
            x = activations[name] = Stage(arch, index, conv, norm, name=name)(x, train=train, keys=keys)

        if arch.preactivation:
            x = norm(name="final_bn")(x, train=train)
            with jax.named_scope("final_bn"):
                x = nn.relu(x)
        pooled = self.pool(x)
        logits = Classifier(self.num_classes, name="classifier")(pooled)
        return (logits, activations | {"pooled": pooled}) if features else logits
