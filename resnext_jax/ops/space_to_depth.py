"""A convolution of stride 2 as one of stride 1 over 2x2 blocks of pixels.

The stem reads images of three channels, which fill 3 of a TPU's 128 lanes; as (height / 2, width / 2, 12) they take a
quarter of the memory and of the passes over it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from resnext_jax.ops.conv_products import conv, precision

Images = Float[Array, "batch height width in_channels"]
Kernel = Float[Array, "kernel kernel in_channels out_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]


def conv_by_blocks(x: Images, kernel: Kernel) -> Outputs:
    """Return the convolution of stride 2, padded by k // 2, of one group; height and width must be even."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)

    # A window begins k // 2 pixels before an even one: a row and a column of zeros let it begin and end with a block.
    before_px = kernel.shape[0] // 2 % 2
    pad_px = (before_px, 1 - before_px)
    padded = jnp.pad(kernel, (pad_px, pad_px, (0, 0), (0, 0)))
    size = padded.shape[0] // 2
    filters = padded.reshape(size, 2, size, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    blocks_before = (kernel.shape[0] // 2 + before_px) // 2
    padding = (blocks_before, size - 1 - blocks_before)
    filters = filters.reshape(size, size, 4 * channels, -1)
    return conv(blocks, filters, (1, 1), (padding, padding), precision=precision(x))
