"""VGG (Simonyan & Zisserman 2014, Table 1; with batch norm as in torchvision), plain 3x3 convolutions."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resnext_jax.models.layers import BatchNorm, Classifier, Conv, Numerics, check_size
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.conv_products import precision
from resnext_jax.ops.dropout import dropout, layer_keys

Images = Float[Array, "batch height width in_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]
POOLED_PX = 7  # what the first fully connected layer sees, of images of 224 px


@dataclasses.dataclass(frozen=True)
class VggArch:
    """One VGG of the zoo."""

    convs: tuple[int, ...]  # 3x3 convolutions of each stage; a 2x2 max-pool ends each
    batch_norm: bool = False  # after every convolution
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of the stages
    hidden: int = 4096  # width of the two fully connected layers before the classifier
    dropout: float = 0.5  # rate after each of these two

    @property
    def smallest_px(self) -> int:
        """Smallest image that leaves the last stage one pixel. Each stage halves and rounds down."""
        return 2 ** len(self.convs)


class Vgg(nn.Module):
    """The network of one `VggArch`; attributes and call are those of `resnext.ResNeXt`.

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
        self, images: Images, *, train: bool, features: bool = False, keys: Key[Array, " batch"] | None = None
    ) -> Array | tuple[Array, dict[str, Array]]:
        arch, x, activations = self.arch, images, {}
        check_size(images, arch.smallest_px)
        numerics = Numerics(self.choose_conv, self.bn_group_images, self.dtype)
        for index in range(len(arch.convs)):
            name = f"stage{index + 1}"
            x = activations[name] = Stage(arch, index, numerics, name=name)(x, train=train)
        # In Torch's order, channels first, so that the weights are Torch's, transposed.
        x = jnp.moveaxis(adaptive_average(x, POOLED_PX), 3, 1).reshape(x.shape[0], -1)
        draw = nn.initializers.normal(0.01)  # as in the paper
        for number in (1, 2):
            dense = nn.Dense(
                arch.hidden, dtype=self.dtype, precision=precision(x), kernel_init=draw, name=f"hidden{number}"
            )
            x = nn.relu(dense(x))
            if arch.dropout and train:
                x = dropout(x, layer_keys(keys, number), arch.dropout)
        logits = Classifier(self.num_classes, name="classifier")(x)
        return (logits, activations | {"pooled": x.astype(jnp.float32)}) if features else logits


class Stage(nn.Module):
    """The convolutions of one resolution, and the max-pool after them."""

    arch: VggArch
    index: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        arch = self.arch
        for number in range(1, arch.convs[self.index] + 1):
            x = Conv(arch.widths[self.index], 3, self.numerics, bias=True, name=f"conv{number}")(x)
            if arch.batch_norm:
                x = BatchNorm(self.numerics.bn_group_images, name=f"bn{number}")(x, train=train)
            x = nn.relu(x)
        return nn.max_pool(x, (2, 2), (2, 2))


def adaptive_average(x: Images, size_px: int) -> Float[Array, "batch {size_px} {size_px} in_channels"]:
    """Return averages over `size_px` windows in each direction, as even as can be; they overlap if they do not divide.

    Window i reaches from floor(i * n / size_px) to ceil((i + 1) * n / size_px), as Torch's AdaptiveAvgPool2d has it.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        if length != size_px:
            bounds = [(i * length // size_px, -(-(i + 1) * length // size_px)) for i in range(size_px)]
            windows = [x[:, low:high] if axis == 1 else x[:, :, low:high] for low, high in bounds]
            x = jnp.stack([window.mean(axis=axis) for window in windows], axis=axis)
    return x
