"""DenseNet-BC (Huang et al. 2016, Table 1, section 3): a layer reads what all layers before it in its block put out."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resnext_jax.models.arch import IMAGENET_STEM, Stem
from resnext_jax.models.layers import BatchNorm, Classifier, Conv, ConvBN, Numerics, check_size
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.pool import global_average, max_pool

Images = Float[Array, "batch height width in_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]


@dataclasses.dataclass(frozen=True)
class DenseNetArch:
    """One DenseNet of the zoo."""

    layers: tuple[int, ...]  # number in each dense block
    growth: int = 32  # k, the channels that a layer adds; its 1x1 bottleneck has 4k
    width: int = 64  # channels of the stem
    stem: Stem = IMAGENET_STEM  # batch norm and ReLU follow it only where it has pooling

    @property
    def smallest_px(self) -> int:
        """Smallest image that leaves the last stage one pixel. Transitions halve and round down, the stem rounds up."""
        before_stem = 2 ** (len(self.layers) - 1)
        return 4 * before_stem - 3 if self.stem.pool else before_stem


class DenseNet(nn.Module):
    """The network of one `DenseNetArch`; attributes and call are those of `resnext.ResNeXt`.

    `stage2` on are the outputs of the dense blocks, before the batch norm and ReLU of what reads them.
    """

    arch: DenseNetArch
    num_classes: int
    choose_conv: Callable[[ConvShape], str]
    bn_group_images: int = 32
    dtype: DTypeLike = jnp.float32
    pool: Callable[[Array], Array] = global_average

    first_layer: ClassVar[str] = "stem_conv"

    @nn.compact
    def __call__(
        self, images: Images, *, train: bool, features: bool = False, keys: Key[Array, " batch"] | None = None
    ) -> Array | tuple[Array, dict[str, Array]]:
        arch, stem = self.arch, self.arch.stem
        check_size(images, arch.smallest_px)
        numerics = Numerics(self.choose_conv, self.bn_group_images, self.dtype)

        activations = {}
        if stem.pool:
            conv = ConvBN(arch.width, stem.kernel_px, numerics, stride=stem.stride, name="stem_conv")
            x = activations["stage1"] = nn.relu(conv(images, train=train))
            x = max_pool(x)
        else:
            conv = Conv(arch.width, stem.kernel_px, numerics, stride=stem.stride, name="stem_conv")
            x = activations["stage1"] = conv(images)
        for index in range(len(arch.layers)):
            name = f"stage{index + 2}"
            x = activations[name] = Stage(arch, index, numerics, name=name)(x, train=train)

        x = BatchNorm(self.bn_group_images, name="final_bn")(x, train=train)
        with jax.named_scope("final_bn"):
            x = nn.relu(x)
        pooled = self.pool(x)
        logits = Classifier(self.num_classes, name="classifier")(pooled)
        return (logits, activations | {"pooled": pooled}) if features else logits


class Stage(nn.Module):
    """The dense block of one resolution, after a transition that halves resolution and channels."""

    arch: DenseNetArch
    index: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        if self.index:
            x = Transition(self.numerics, name="transition")(x, train=train)
        for number in range(1, self.arch.layers[self.index] + 1):
            x = Layer(self.arch.growth, self.numerics, name=f"layer{number}")(x, train=train)
        return x


class Layer(nn.Module):
    """BN, ReLU, 1x1 to 4k channels, BN, ReLU, 3x3 to k channels, which are put after those of the input."""

    growth: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        y = nn.relu(BatchNorm(self.numerics.bn_group_images, name="bn1")(x, train=train))
        y = nn.relu(ConvBN(4 * self.growth, 1, self.numerics, name="conv1", bn="bn2")(y, train=train))
        y = Conv(self.growth, 3, self.numerics, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """BN, ReLU, 1x1 to half the channels, 2x2 average pool."""

    numerics: Numerics

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        x = nn.relu(BatchNorm(self.numerics.bn_group_images, name="bn1")(x, train=train))
        x = Conv(x.shape[-1] // 2, 1, self.numerics, name="conv1")(x)
        batch, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
