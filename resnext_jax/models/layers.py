"""The three layers that every network is made of, initialised as in the original code."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
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


def fan_out_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """N(0, sqrt(2 / (k * k * C_out))), the original's rule; the fan-out is *not* divided by the groups.

    Flax's default (fan-in of one group) would make a 32x4d kernel 4 times as large.
    """
    kernel_height, kernel_width, _, out_channels = shape
    std = (2.0 / (kernel_height * kernel_width * out_channels)) ** 0.5
    return std * jax.random.normal(key, shape, dtype)


def fan_in_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), Torch's rule for a fully connected layer of shape (fan_in, fan_out)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """A convolution with symmetric padding `kernel_px // 2`, and without bias (VGG's alone have one).

    The float32 parameter `kernel` is (kernel_px, kernel_px, in_channels / groups, features), whichever algorithm
    computes it; `choose` names the algorithm for a shape. Channels may come in blocks (see `ops.blocked`).
    """

    features: int
    kernel_px: int
    choose: Callable[[ConvShape], str]
    stride: int = 1
    groups: int = 1
    dtype: DTypeLike = jnp.float32
    bias: bool = False

    def input_blocks(self, height: int, width: int, in_channels: int) -> int:
        """Into how many blocks of channels its input is best split (1: not at all)."""
        if self.stride > 1:
            return 1  # strided reads bring the plain layout back
        return blocked.num_blocks(self.choose(self._shape(height, width, in_channels)), self.groups, in_channels)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width *in"],
        *,
        train: bool = False,
        norm: "BatchNorm | None" = None,
        pool: Callable[[Array], Array] | None = None,
        blocks: int = 1,
    ) -> Array:
        """The convolution of x; of that the batch norm `norm`, as it trains or not; and of that the max-pool `pool`.

        x is (batch, height, width, channel) or (batch, height, width, block, channel). A 1x1 puts its outputs into
        `blocks` blocks of channels, or takes blocks in; a grouped one puts out the blocks that its algorithm is fast
        with.
        """
        in_channels = math.prod(x.shape[3:])
        if in_channels % self.groups or self.features % self.groups:
            raise UserError(
                f"cardinality {self.groups} does not divide the width: a grouped convolution from {in_channels} to "
                f"{self.features} channels needs a cardinality that divides both. Change the cardinality or the width."
            )
        kernel_shape = (self.kernel_px, self.kernel_px, in_channels // self.groups, self.features)
        kernel = self.param("kernel", fan_out_normal, kernel_shape).astype(self.dtype)
        x = x.astype(self.dtype)
        height, width = x.shape[1], x.shape[2]
        impl = self.choose(self._shape(height, width, in_channels))
        as_one = impl == "moments" and self._is_product and blocks == 1 and not self.bias
        if as_one and norm is not None and train and norm.covers_batch(x):
            return norm(x, train=True, kernel=kernel)
        y = self._convolve(x, kernel, impl, blocks)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None, None]
        return y if norm is None else norm(y, train=train, pool=pool)

    @nn.nowrap
    def _convolve(self, x: Array, kernel: Array, impl: str, blocks: int) -> Array:
        if blocks > 1:
            return blocked.to_blocks(x, kernel, blocks)
        if x.ndim == 5 and self._is_product:
            return blocked.from_blocks(x, kernel)
        y = grouped_conv(x.reshape(*x.shape[:3], -1), kernel, stride=self.stride, impl=impl)
        out_blocks = blocked.num_blocks(impl, self.groups, self.features)
        return y if out_blocks == 1 else y.reshape(*y.shape[:3], out_blocks, -1)

    @property
    def _is_product(self) -> bool:
        """Whether each output is a matrix product of one input."""
        return self.kernel_px == self.stride == self.groups == 1

    def _shape(self, height: int, width: int, in_channels: int) -> ConvShape:
        return ConvShape(self.kernel_px, self.stride, self.groups, in_channels, self.features, height, width)


class BatchNorm(nn.Module):
    """Batch norm over groups of `group_images` consecutive images (0: the whole batch); see `ops.batch_norm`.

    Running statistics (collection `batch_stats`) average the mean and the unbiased variance, as Torch does.
    """

    group_images: int

    def covers_batch(self, x: Array) -> bool:
        """Whether the batch is a single group."""
        return self.group_images in (0, x.shape[0])

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width *channel"],
        *,
        train: bool,
        kernel: Array | None = None,
        pool: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Normalises x.

        Args:
          x: activations.
          train: with the statistics of x, else with the running ones.
          kernel: normalises the 1x1 convolution of x with it, both as one (`ops.moments`); when training, and where
            the batch is one group.
          pool: a max-pool that follows; it is applied within.
        """
        channels = math.prod(x.shape[3:]) if kernel is None else kernel.shape[3]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        # Batch norm keeps the order of a channel's values, or reverses it where its scale is negative. So with the sign
        # of the scale put on x a max-pool may come first, and all that follows sees a quarter of x.
        sign = jnp.ones(channels) if pool is None else jnp.where(scale < 0, -1.0, 1.0)
        if pool is not None:
            x = x * sign.astype(x.dtype)[None, None, None]
        if kernel is not None:
            y, mean, variance = moments.conv_norm(x, kernel, scale, bias, BN_EPSILON)
            mean, variance = mean[None], variance[None]
        else:
            running = (running_mean.value * sign)[None], running_var.value[None]
            mean, variance = batch_norm.group_statistics(x, self.group_images) if train else running
            pooled = x if pool is None else pool(x)
            y = batch_norm.normalize(pooled, mean, variance, scale * sign, bias, BN_EPSILON)
        if train and not self.is_initializing():
            count = x.shape[0] // mean.shape[0] * x.shape[1] * x.shape[2]
            unbiased = variance * (count / max(count - 1, 1))
            running_mean.value = batch_norm.update_running(running_mean.value, mean * sign[None], BN_MOMENTUM)
            running_var.value = batch_norm.update_running(running_var.value, unbiased, BN_MOMENTUM)
        return y


def check_size(images: Float[Array, "batch height width channel"], smallest_px: int) -> None:
    """Raises UserError for images of which the last stage would see nothing, or less than it is made for."""
    height, width = images.shape[1:3]
    if min(height, width) < smallest_px:
        raise UserError(
            f"images of {height}x{width} px are too small for this network: it takes {smallest_px} px or more. Take "
            "larger images (data.image_size_px), or a network for small ones (model.family='cifar', or a row for them)."
        )


class Classifier(nn.Module):
    """The fully connected layer, always in float32: 1000 logits are cheap and the softmax wants the digits."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch channel"]) -> Float[Array, "batch classes"]:
        kernel = self.param("kernel", fan_in_uniform, (x.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return jnp.dot(x.astype(jnp.float32), kernel, precision="highest") + bias[None]
