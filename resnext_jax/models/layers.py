"""The layers that every network is made of, initialized as in the original code.

`ConvBN`, a convolution with its batch norm, is the layer of the paper's tables. How a chip computes the two (which
algorithm, together or one after the other, in which layout) is decided here and nowhere else in the networks.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resnext_jax.errors import UserError
from resnext_jax.ops import batch_norm, blocked, moments
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.grouped_conv import grouped_conv

# Torch's 0.1 (the weight of the new value) is 0.9 here (the weight of the old one).
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5

# Channels are one dimension, or two where they come in blocks (`ops.blocked`).
Images = Float[Array, "batch height width *in_channels"]
Outputs = Float[Array, "batch out_height out_width *out_channels"]


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How the layers of a network compute. No parameter depends on it."""

    choose_conv: Callable[[ConvShape], str]  # names the algorithm for a convolution (`ops.conv_choice.resolver`)
    bn_group_images: int = 32  # images per batch-norm group, 0 for the whole batch
    dtype: DTypeLike = jnp.float32  # of activations; parameters and statistics are always float32


# N(0, sqrt(2 / (k * k * C_out))), the original's rule; the fan-out is *not* divided by the groups. Flax's default
# (fan-in of one group) would make a 32x4d kernel 4 times as large.
FAN_OUT_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal", dtype=jnp.float32)
# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), Torch's rule for a fully connected layer.
FAN_IN_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", dtype=jnp.float32)


class Conv(nn.Module):
    """A convolution with symmetric padding `kernel_px // 2`, and without bias (only VGG has one)."""

    features: int
    kernel_px: int
    numerics: Numerics
    stride: int = 1
    groups: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x: Images) -> Outputs:
        kernel, impl = self._kernel(x), self._algorithm(x.shape[1], x.shape[2], math.prod(x.shape[3:]))
        y = self._convolve(x.astype(self.numerics.dtype), kernel, impl)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.numerics.dtype)[None, None, None]
        return y

    @nn.nowrap
    def _kernel(self, x: Images) -> Float[Array, "kernel kernel group_in_channels out_channels"]:
        in_channels = math.prod(x.shape[3:])
        if in_channels % self.groups or self.features % self.groups:
            raise UserError(
                f"cardinality {self.groups} does not divide the width: a grouped convolution from {in_channels} to "
                f"{self.features} channels needs a cardinality that divides both. Change the cardinality or the width."
            )
        kernel_shape = (self.kernel_px, self.kernel_px, in_channels // self.groups, self.features)
        return self.param("kernel", FAN_OUT_NORMAL, kernel_shape).astype(self.numerics.dtype)

    @nn.nowrap
    def _algorithm(self, height: int, width: int, in_channels: int) -> str:
        shape = ConvShape(self.kernel_px, self.stride, self.groups, in_channels, self.features, height, width)
        return self.numerics.choose_conv(shape)

    @property
    def _is_product(self) -> bool:
        """Whether each output is a matrix product of one input."""
        return self.kernel_px == self.stride == self.groups == 1

    @nn.nowrap
    def _convolve(self, x: Images, kernel: Array, impl: str, blocks: int = 1) -> Outputs:
        """Return the convolution of x; of a 1x1 in `blocks` blocks of channels."""
        if blocks > 1:
            return blocked.to_blocks(x, kernel, blocks)
        if x.ndim == 5 and self._is_product:
            return blocked.from_blocks(x, kernel)
        y = grouped_conv(x.reshape(*x.shape[:3], -1), kernel, stride=self.stride, impl=impl)
        out_blocks = blocked.num_blocks(impl, self.groups, self.features)
        return y if out_blocks == 1 else y.reshape(*y.shape[:3], out_blocks, -1)


class ConvBN(Conv):
    """A convolution with batch norm, as one layer.

    Each has its own parameters in the module around the layer, as in checkpoints of PyTorch: `conv1` and `bn1`.
    """

    bn: str = ""  # name of the batch norm; by default the name of the layer with "bn" for "conv"

    @nn.compact
    def __call__(
        self,
        x: Images,
        *,
        train: bool,
        reader: "ConvBN | None" = None,
        pool: Callable[[Array], Array] | None = None,
    ) -> Outputs:
        """Return the batch norm of the convolution of x; see `BatchNorm` for `train` and `pool`.

        `reader` is the layer that reads the outputs of this 1x1. Its algorithm may be faster with channels in blocks.
        """
        bn = self.bn or str(self.name).replace("conv", "bn")
        norm = BatchNorm(self.numerics.bn_group_images, name=bn, parent=self.parent)
        height, width = x.shape[1:3]
        blocks = 1 if reader is None else reader.input_blocks(height, width, self.features)
        kernel, x = self._kernel(x), x.astype(self.numerics.dtype)
        impl = self._algorithm(height, width, math.prod(x.shape[3:]))
        one_group = self.numerics.bn_group_images in (0, x.shape[0])
        if impl == "moments" and self._is_product and blocks == 1 and train and one_group:
            return norm(x, train=True, kernel=kernel)
        return norm(self._convolve(x, kernel, impl, blocks), train=train, pool=pool)

    @nn.nowrap
    def input_blocks(self, height: int, width: int, in_channels: int) -> int:
        """Return into how many blocks of channels the input is best split (1: not at all)."""
        if self.stride > 1:
            return 1  # strided reads bring the plain layout back
        return blocked.num_blocks(self._algorithm(height, width, in_channels), self.groups, in_channels)


class BatchNorm(nn.Module):
    """Batch norm over groups of `group_images` consecutive images (0: the whole batch); see `ops.batch_norm`.

    Running statistics (collection `batch_stats`) average the mean and the unbiased variance, as Torch does.
    """

    group_images: int

    @nn.compact
    def __call__(
        self,
        x: Images,
        *,
        train: bool,
        kernel: Float[Array, "1 1 in_channels out_channels"] | None = None,
        pool: Callable[[Array], Array] | None = None,
    ) -> Outputs:
        """Return x normalized.

        Args:
          x: activations.
          train: whether to take the statistics of x, not the running ones.
          kernel: filters of a 1x1 convolution of x, whose outputs are normalized; computed with it as one
            (`ops.moments`). Only in training, and where the batch is one group.
          pool: max-pool after the batch norm. It is computed before it.
        """
        channels = math.prod(x.shape[3:]) if kernel is None else kernel.shape[3]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        # Batch norm keeps the order of a channel's values, or reverses it where its scale is negative. So with the sign
        # of the scale put on x a max-pool may come first, and all that follows sees a quarter of x.
        sign = jnp.ones(channels, jnp.float32) if pool is None else jnp.where(scale < 0, jnp.float32(-1.0), 1.0)
        if pool is not None:
            x = x * sign.astype(x.dtype)[None, None, None]
        if kernel is not None:
            y, mean, variance = moments.conv_norm(x, kernel, scale, bias, BN_EPSILON)
            mean, variance = mean[None], variance[None]
        else:
            running = (running_mean.value * sign)[None], running_var.value[None]
            # Sums of bfloat16 are shifted by the running mean, which costs no pass; see `batch_norm.group_statistics`.
            shift = running[0][0] if x.dtype == jnp.bfloat16 else None
            mean, variance = batch_norm.group_statistics(x, self.group_images, shift) if train else running
            pooled = x if pool is None else pool(x)
            y = batch_norm.normalize(pooled, mean, variance, scale * sign, bias, BN_EPSILON)
        if train and not self.is_initializing():
            count = x.shape[0] // mean.shape[0] * x.shape[1] * x.shape[2]
            unbiased = variance * (count / max(count - 1, 1))
            running_mean.value = batch_norm.update_running(running_mean.value, mean * sign[None], BN_MOMENTUM)
            running_var.value = batch_norm.update_running(running_var.value, unbiased, BN_MOMENTUM)
        return y


# The last layer, always in float32: 1000 logits are cheap and the softmax wants the digits.
Classifier = functools.partial(nn.Dense, dtype=jnp.float32, precision="highest", kernel_init=FAN_IN_UNIFORM)


def check_size(images: Float[Array, "batch height width channel"], smallest_px: int) -> None:
    """Raise UserError for images of which the last stage would see nothing, or less than it is made for."""
    height, width = images.shape[1:3]
    if min(height, width) < smallest_px:
        raise UserError(
            f"images of {height}x{width} px are too small for this network: it takes {smallest_px} px or more. Take "
            "larger images (data.image_size_px), or a network for small ones (model.family='cifar', or a row for them)."
        )
