"""VGG (Simonyan & Zisserman 2014, Table 1; with batch norm as in torchvision), plain 3x3 convolutions."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resnext_jax.models.layers import BatchNorm, Classifier, Conv, check_size
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.dropout import dropout, layer_keys

POOLED_PX = 7  # what the first fully connected layer sees, of images of 224 px


@dataclasses.dataclass(frozen=True)
class VggArch:
    """One VGG of the zoo.

    Attributes:
      convs: 3x3 convolutions of each of the five stages; a 2x2 max-pool ends each.
      batch_norm: after every convolution.
      widths: channels of the stages.
      hidden: width of the two fully connected layers before the classifier.
      dropout: the rate after each of these two.
    """

    convs: tuple[int, ...]
    batch_norm: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    dropout: float = 0.5

    @property
    def smallest_px(self) -> int:
        """Each stage halves and rounds down."""
        return 2 ** len(self.convs)


class Hidden(nn.Module):
    """A fully connected layer in the compute dtype, drawn from N(0, 0.01) as the paper has it."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch in"]) -> Float[Array, "batch features"]:
        kernel = self.param("kernel", nn.initializers.normal(0.01), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        precision = "highest" if self.dtype == jnp.float32 else "default"
        return jnp.dot(x, kernel.astype(self.dtype), precision=precision) + bias.astype(self.dtype)[None]


class Vgg(nn.Module):
    """The network of one `VggArch`; attributes and call are those of `template.ResNeXt`.

    `stage1` to `stage5` are the outputs of the max-pools, strides 2 to 32, `pooled` what the classifier reads. Images
    of other sizes than 224 px reach the fully connected layers through an adaptive average pool, as in torchvision.
    """

    arch: VggArch
    num_classes: int
    choose_conv: Callable[[ConvShape], str]
    bn_group_images: int = 32
    dtype: DTypeLike = jnp.float32

    first_layer: ClassVar[str] = "stage1"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        *,
        train: bool,
        features: bool = False,
        keys: Key[Array, " batch"] | None = None,
    ) -> Array | tuple[Array, dict[str, Array]]:
        arch, x, activations = self.arch, images, {}
        check_size(images, arch.smallest_px)
        for index in range(len(arch.convs)):
            name = f"stage{index + 1}"
            stage = Stage(arch, index, self.choose_conv, self.bn_group_images, self.dtype, name=name)
            x = activations[name] = stage(x, train=train)
        # In Torch's order, channels first, so that the weights are Torch's, transposed.
        x = jnp.moveaxis(adaptive_average(x, POOLED_PX), 3, 1).reshape(x.shape[0], -1)
        for number in (1, 2):
            x = nn.relu(Hidden(arch.hidden, self.dtype, name=f"hidden{number}")(x))
            if arch.dropout and train:
                if keys is None:
                    raise ValueError("dropout draws from the keys of the images: call the network with keys")
                x = dropout(x, layer_keys(keys, number), arch.dropout)
        logits = Classifier(self.num_classes, name="classifier")(x)
        return (logits, activations | {"pooled": x.astype(jnp.float32)}) if features else logits


class Stage(nn.Module):
    """The convolutions of one resolution, and the max-pool after them."""

    arch: VggArch
    index: int
    choose_conv: Callable[[ConvShape], str]
    bn_group_images: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Array:
        arch = self.arch
        for number in range(1, arch.convs[self.index] + 1):
            features = arch.widths[self.index]
            conv = Conv(features, 3, self.choose_conv, bias=True, dtype=self.dtype, name=f"conv{number}")
            norm = BatchNorm(self.bn_group_images, name=f"bn{number}") if arch.batch_norm else None
            x = nn.relu(conv(x, norm=norm, train=train))
        return nn.max_pool(x, (2, 2), (2, 2))


def adaptive_average(
    x: Float[Array, "batch height width channel"], size_px: int
) -> Float[Array, "batch size_px size_px channel"]:
    """Averages over `size_px` windows in each direction, as even as can be: they overlap where they do not divide.

    Window i reaches from floor(i * n / size_px) to ceil((i + 1) * n / size_px), as Torch's AdaptiveAvgPool2d has it.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        if length != size_px:
            bounds = [(i * length // size_px, -(-(i + 1) * length // size_px)) for i in range(size_px)]
            windows = [x[:, low:high] if axis == 1 else x[:, :, low:high] for low, high in bounds]
            x = jnp.stack([window.mean(axis=axis) for window in windows], axis=axis)
    return x
