"""The three layers that every network is made of, initialised as in the original code."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnext_jax.errors import UserError
from resnext_jax.ops import batch_norm
from resnext_jax.ops.grouped_conv import ConvShape, grouped_conv

# Torch's 0.1 (the weight of the new value) is 0.9 here (the weight of the old one).
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5


def fan_out_normal(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """N(0, sqrt(2 / (k * k * C_out))), the original's rule; the fan-out is *not* divided by the groups.

    Flax's default (fan-in of one group) would make a 32x4d kernel 4 times as large.
    """
    kernel_height, kernel_width, _, out_channels = shape
    std = (2.0 / (kernel_height * kernel_width * out_channels)) ** 0.5
    return std * jax.random.normal(key, shape, dtype)


def fan_in_uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), Torch's rule for a fully connected layer of shape (fan_in, fan_out)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """A convolution without bias and with symmetric padding `kernel_px // 2`.

    The float32 parameter `kernel` is (kernel_px, kernel_px, in_channels / groups, features), whichever algorithm
    computes it; `choose` names the algorithm for a shape.
    """

    features: int
    kernel_px: int
    choose: Callable[[ConvShape], str]
    stride: int = 1
    groups: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"]) -> Float[Array, "batch height2 width2 out"]:
        _, height, width, in_channels = x.shape
        if in_channels % self.groups or self.features % self.groups:
            raise UserError(
                f"cardinality {self.groups} does not divide the width: a grouped convolution from {in_channels} to "
                f"{self.features} channels needs a cardinality that divides both. Change the cardinality or the width."
            )
        kernel_shape = (self.kernel_px, self.kernel_px, in_channels // self.groups, self.features)
        kernel = self.param("kernel", fan_out_normal, kernel_shape)
        shape = ConvShape(self.kernel_px, self.stride, self.groups, in_channels, self.features, height, width)
        return grouped_conv(
            x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, impl=self.choose(shape)
        )


class BatchNorm(nn.Module):
    """Batch norm over groups of `group_images` consecutive images (0: the whole batch); see `ops.batch_norm`.

    Running statistics (collection `batch_stats`) average the mean and the unbiased variance, as Torch does.
    """

    group_images: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch height width channel"]:
        channel = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channel,))
        bias = self.param("bias", nn.initializers.zeros, (channel,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channel,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channel,))
        if not train:
            return batch_norm.normalize(x, running_mean.value[None], running_var.value[None], scale, bias, BN_EPSILON)
        mean, variance = batch_norm.group_statistics(x, self.group_images)
        if not self.is_initializing():
            count = x.shape[0] // mean.shape[0] * x.shape[1] * x.shape[2]
            unbiased = variance * (count / max(count - 1, 1))
            running_mean.value = batch_norm.update_running(running_mean.value, mean, BN_MOMENTUM)
            running_var.value = batch_norm.update_running(running_var.value, unbiased, BN_MOMENTUM)
        return batch_norm.normalize(x, mean, variance, scale, bias, BN_EPSILON)


class Classifier(nn.Module):
    """The fully connected layer, always in float32: 1000 logits are cheap and the softmax wants the digits."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch channel"]) -> Float[Array, "batch classes"]:
        kernel = self.param("kernel", fan_in_uniform, (x.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return jnp.dot(x.astype(jnp.float32), kernel, precision="highest") + bias[None]
