"""1x1 convolutions into and out of blocks of channels: (batch, height, width, block, channel).

A TPU computes a grouped convolution of merged groups in blocks of 128 channels and lays its operands out accordingly.
With plain (batch, height, width, channel) activations on both sides, every batch norm in between needs extra passes to
read one layout and write the other. Here the blocks are a dimension from one 1x1 convolution to the next, without
extra passes. Parameters are those of the plain convolution.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnext_jax.ops.conv_products import precision

Images = Float[Array, "batch height width in_channels"]
Outputs = Float[Array, "batch height width out_channels"]
Blocks = Float[Array, "batch height width block channel"]
Kernel = Float[Array, "1 1 in_channels out_channels"]

BLOCK = 128  # channels: the lanes of a TPU's registers and, on most generations, of its matrix unit


def num_blocks(impl: str, groups: int, channels: int) -> int:
    """Return into how many blocks an algorithm splits the channels around a grouped convolution; 1: not at all."""
    fits = impl == "blocked128" and groups > 1 and channels % BLOCK == 0
    return channels // BLOCK if fits else 1


def to_blocks(x: Images, kernel: Kernel, blocks: int) -> Blocks:
    """Return the 1x1 convolution with its outputs split into `blocks` blocks of neighboring channels."""
    filters = kernel[0, 0].reshape(x.shape[-1], blocks, -1)
    return jnp.einsum("bhwi,igo->bhwgo", x, filters, precision=precision(x))


@jax.custom_vjp
def from_blocks(x: Blocks, kernel: Kernel) -> Outputs:
    """Return the 1x1 convolution of inputs that come in blocks; the kernel reads the channels of all blocks."""
    return jnp.einsum("bhwgi,gio->bhwo", x, _filters(x, kernel), precision=precision(x))


def _forward(x: Blocks, kernel: Kernel) -> tuple[Outputs, tuple[Blocks, Kernel]]:
    return from_blocks(x, kernel), (x, kernel)


def _backward(saved: tuple[Blocks, Kernel], grad_out: Outputs) -> tuple[Blocks, Kernel]:
    x, kernel = saved
    grad_x = jnp.einsum("bhwo,gio->bhwgi", grad_out, _filters(x, kernel), precision=precision(x))
    return grad_x, sum_of_products(x, grad_out).reshape(kernel.shape).astype(x.dtype)


def sum_of_products(x: Float[Array, "batch height width *left"], y: Float[Array, "batch height width *right"]) -> Array:
    """Return the sum over positions of every product of a channel of x and one of y, float32: (*left, *right).

    The order of contraction (height, width, batch) is a TPU's layout: the compiler then computes the ReLU before it on
    the fly, and otherwise writes it out first.
    """
    positions = (1, 2, 0)
    dimensions = ((positions, positions), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision(x), preferred_element_type=jnp.float32)


from_blocks.defvjp(_forward, _backward)


def _filters(x: Blocks, kernel: Kernel) -> Float[Array, "block channel out_channels"]:
    return kernel.reshape(*x.shape[3:], -1)
