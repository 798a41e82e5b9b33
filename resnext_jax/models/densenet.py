"""DenseNet-BC (Huang et al. 2016, Table 1, section 3): a layer reads what all layers before it in its block put out."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resnext_jax.models.layers import BatchNorm, Classifier, Conv, check_size
from resnext_jax.models.template import IMAGENET_STEM, Stem
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.pool import global_average, max_pool


@dataclasses.dataclass(frozen=True)
class DenseNetArch:
    """One DenseNet of the zoo.

    Attributes:
      layers: of each dense block.
      growth: k, the channels that a layer adds; its 1x1 bottleneck has 4k.
      width: channels of the stem.
      stem: see `template.Stem`. With pooling it has batch norm and ReLU, without (CIFAR) it is the convolution alone.
    """

    layers: tuple[int, ...]
    growth: int = 32
    width: int = 64
    stem: Stem = IMAGENET_STEM

    @property
    def smallest_px(self) -> int:
        """Transitions halve and round down, the stem rounds up."""
        smallest = 2 ** (len(self.layers) - 1)
        for _ in range(2 if self.stem.pool else 0):
            smallest = 2 * smallest - 1
        return smallest


class DenseNet(nn.Module):
    """The network of one `DenseNetArch`; attributes and call are those of `template.ResNeXt`.

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
        self,
        images: Float[Array, "batch height width channel"],
        *,
        train: bool,
        features: bool = False,
        keys: Key[Array, " batch"] | None = None,
    ) -> Array | tuple[Array, dict[str, Array]]:
        arch, stem = self.arch, self.arch.stem
        check_size(images, arch.smallest_px)
        conv = partial(Conv, choose=self.choose_conv, dtype=self.dtype)
        norm = partial(BatchNorm, group_images=self.bn_group_images)

        bn = norm(name="stem_bn") if stem.pool else None
        x = conv(arch.width, stem.kernel_px, stride=stem.stride, name="stem_conv")(images, norm=bn, train=train)
        x = nn.relu(x) if stem.pool else x
        activations = {"stage1": x}
        x = max_pool(x) if stem.pool else x
        for index in range(len(arch.layers)):
            name = f"stage{index + 2}"
            x = activations[name] = Stage(arch, index, conv, norm, name=name)(x, train=train)

        x = norm(name="final_bn")(x, train=train)
        with jax.named_scope("final_bn"):
            x = nn.relu(x)
        pooled = self.pool(x)
        logits = Classifier(self.num_classes, name="classifier")(pooled)
        return (logits, activations | {"pooled": pooled}) if features else logits


class Stage(nn.Module):
    """The dense block of one resolution, after a transition that halves resolution and channels."""

    arch: DenseNetArch
    index: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Array:
        if self.index:
            x = Transition(self.conv, self.norm, name="transition")(x, train=train)
        for number in range(1, self.arch.layers[self.index] + 1):
            x = Layer(self.arch.growth, self.conv, self.norm, name=f"layer{number}")(x, train=train)
        return x


class Layer(nn.Module):
    """BN, ReLU, 1x1 to 4k channels, BN, ReLU, 3x3 to k channels, which are put after those of the input."""

    growth: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Array:
        y = nn.relu(self.norm(name="bn1")(x, train=train))
        y = self.conv(4 * self.growth, 1, name="conv1")(y, norm=self.norm(name="bn2"), train=train)
        y = self.conv(self.growth, 3, name="conv2")(nn.relu(y), train=train)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """BN, ReLU, 1x1 to half the channels, 2x2 average pool."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Array:
        x = nn.relu(self.norm(name="bn1")(x, train=train))
        x = self.conv(x.shape[-1] // 2, 1, name="conv1")(x, train=train)
        batch, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
