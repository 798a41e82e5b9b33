"""Which algorithm computes which convolution on which device: one table, made from measurements, and one rule."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from resnext_jax.errors import UserError
from resnext_jax.ops import conv_table
from resnext_jax.ops.blocked import BLOCK
from resnext_jax.ops.grouped_conv import grouped_conv


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """A convolution and the height and width of its input, without the batch: what an algorithm is chosen by."""

    kernel_px: int
    stride: int
    groups: int
    in_channels: int
    out_channels: int
    height: int
    width: int


TPU_KINDS = {
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_of(device_kind: str) -> str:
    """Return the generation of a TPU ("v5e") by JAX's name of the device; for other devices that name."""
    return TPU_KINDS.get(device_kind, device_kind)


def choose(platform: str, chip: str, shape: ConvShape) -> str:
    """Return the fastest algorithm in `conv_table`, or by `rule` for a convolution that was not measured.

    Args:
      platform: "cpu", "gpu" or "tpu".
      chip: name by `chip_of`. It matters only on a TPU: all CPUs, and all GPUs, share the rows of the one measured.
    """
    measured = conv_table.TABLE.get(section(platform, chip), {}).get(key_of(shape))
    return rule(platform, chip, shape) if measured is None else measured[0]


def rule(platform: str, chip: str, shape: ConvShape) -> str:
    """Return the algorithm for a convolution that was not measured; docs/performance.md has the gain of each choice.

    CPU: slabs of 32 channels waste few multiplications and keep to XLA's fast code. A 1x1 is a matrix product.
    """
    if platform == "tpu":
        return _grouped_on_tpu(chip, shape) if shape.groups > 1 else _plain_on_tpu(shape)
    if platform != "cpu":
        return "native"
    if shape.kernel_px == 1:
        return "im2col"
    return "native" if shape.groups == 1 else "slabs32"


def _plain_on_tpu(shape: ConvShape) -> str:
    """Choose blocks of pixels for the stem, and moments for a 1x1 of few channels to more channels."""
    if shape.kernel_px == 7:
        return "space_to_depth"
    if shape.kernel_px > 1:
        return "native"
    if shape.stride > 1:
        return "subsampled"
    # The moments grow with the square of the channels, what they save with the pixels.
    most = 4 * BLOCK if shape.height >= 14 else 2 * BLOCK
    return "moments" if shape.in_channels <= most and shape.in_channels < shape.out_channels else "native"


def _grouped_on_tpu(chip: str, shape: ConvShape) -> str:
    """Choose groups as wide as the matrix unit (256 channels on a v6e, else 128), or a few blocks of 128.

    In large images, and with a stride, zeros of wider groups cost less than the passes from one layout to the other.
    """
    merged = "merged256" if chip == "v6e" else "merged128"
    blocks, rest = divmod(shape.in_channels, BLOCK)
    if rest or blocks < 2:
        return merged
    if shape.stride == 1:
        if blocks == 2 and shape.height >= 56:
            return "merged256"
        return "blocked128" if blocks <= 4 or (blocks == 8 and shape.height >= 14) else merged
    if blocks == 2 or (blocks == 4 and shape.height >= 56):
        return "dense"
    return "blocked128" if blocks == 4 else merged


def section(platform: str, chip: str) -> str:
    """Return the part of the table that a device reads: "cpu", "gpu" or "tpu v5e"."""
    return f"{platform} {chip}" if platform == "tpu" else platform


def key_of(shape: ConvShape) -> conv_table.Key:
    """Return the row of a shape; a width other than the height changes little."""
    return shape.kernel_px, shape.stride, shape.groups, shape.in_channels, shape.out_channels, shape.height


def problems_of(conv_impl: str) -> list[str]:
    """Return what is wrong with a `conv_impl`: an empty list, or one sentence."""
    try:
        resolver(conv_impl, platform="", chip="")
    except UserError as error:
        return list(error.problems)
    return []


def resolver(conv_impl: str, platform: str, chip: str = "", groups: int = 1) -> Callable[[ConvShape], str]:
    """Return the choice per convolution: by `choose` for "auto", else the named algorithm everywhere.

    Raises:
      UserError: `conv_impl` is neither "auto" nor known to `grouped_conv.algorithm`, or cannot compute `groups` groups.
    """
    if conv_impl == "auto":
        return functools.partial(choose, platform, chip)
    # Only traced: outputs and gradients, because both may be merged by a factor that does not divide.
    conv = functools.partial(grouped_conv, impl=conv_impl)
    pixel = jax.ShapeDtypeStruct((1, 1, 1, groups), "float32")  # in, out, and as a 1x1 kernel
    jax.eval_shape(lambda x, kernel: jax.vjp(conv, x, kernel)[1](x), pixel, pixel)
    return lambda shape: conv_impl
