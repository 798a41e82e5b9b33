"""Grouped convolution: one function, one kernel layout, several algorithms.

Every convolution of the networks goes through `grouped_conv`. A kernel always has the shape
(k, k, in_channels / groups, out_channels), whichever algorithm computes it, so a checkpoint moves between TPU, GPU and
CPU untouched. What is fast differs by a factor of hundreds between devices: `choose` is the table of what to take.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnext_jax.errors import UserError, unknown
from resnext_jax.ops import conv_table

Images = Float[Array, "batch height width in_channels"]
Kernel = Float[Array, "kernel kernel group_in_channels out_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """What an algorithm is chosen by: the convolution and the height and width of its input, without the batch."""

    kernel_px: int
    stride: int
    groups: int
    in_channels: int
    out_channels: int
    height: int
    width: int


def grouped_conv(x: Images, kernel: Kernel, *, stride: int = 1, impl: str) -> Outputs:
    """Convolves each group of input channels with its own filters (Figure 3(c) of the paper), padding by k // 2.

    Args:
      x: images or features.
      kernel: filters of the same dtype; x's channels are in `in_channels / group_in_channels` groups, in order.
      stride: step of the window, in both directions.
      impl: a name from `IMPLS`.

    Returns:
      (batch, (height - 1) // stride + 1, (width - 1) // stride + 1, out_channels), in x's dtype.

    Raises:
      UserError: the groups do not divide the channels, or there is no such algorithm.
    """
    if impl not in IMPLS:
        raise UserError(unknown("conv_impl", impl, IMPLS))
    in_channels, (group_in_channels, out_channels) = x.shape[-1], kernel.shape[2:]
    if in_channels % group_in_channels:
        raise UserError(
            f"{in_channels} input channels do not divide into groups of {group_in_channels}. The kernel's third "
            "dimension must divide the input channels. Change the cardinality or the bottleneck width."
        )
    groups = in_channels // group_in_channels
    if out_channels % groups:
        raise UserError(
            f"{out_channels} output channels do not divide into {groups} groups. Each group must have as many output "
            "channels as the others. Change the cardinality or the bottleneck width."
        )
    return IMPLS[impl](x, kernel, stride)


def _native(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """XLA's own grouped convolution.

    Its filter gradient, with more than one group, is a convolution with `batch_group_count`; where the batch is
    sharded, XLA on the CPU gathers the whole batch for it.
    """
    pad_px = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad_px, pad_px), (pad_px, pad_px)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
        precision=_precision(x),
    )


def _precision(x: Array) -> lax.Precision:
    """float32 means float32: by default a TPU multiplies it as bfloat16 and a GPU as TF32."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT


def _merged(x: Images, kernel: Kernel, stride: int, *, width: int | None = None) -> Outputs:
    """Merges neighbouring groups into block-diagonal ones of at most `width` channels (None: all into one)."""
    groups = x.shape[-1] // kernel.shape[2]
    return _native(x, _block_diagonal(kernel, groups, _groups_to_merge(groups, kernel.shape[2], width)), stride)


def _slabs(x: Images, kernel: Kernel, stride: int, *, width: int) -> Outputs:
    """One plain convolution per slab of at most `width` channels, its groups merged.

    XLA on the CPU has fast code for a plain convolution and all its gradients, if its channels are few; more than one
    group, in one operation, takes a slow path.
    """
    groups = x.shape[-1] // kernel.shape[2]
    merge = _groups_to_merge(groups, kernel.shape[2], width)
    slabs = jnp.split(x, groups // merge, axis=-1)
    kernels = jnp.split(_block_diagonal(kernel, groups, merge), groups // merge, axis=-1)
    return jnp.concatenate([_native(*pair, stride) for pair in zip(slabs, kernels, strict=True)], axis=-1)


def _groups_to_merge(groups: int, group_in_channels: int, width: int | None) -> int:
    """The most neighbours whose channels together fit `width`; a divisor of `groups`."""
    if width is None:
        return groups
    return max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * group_in_channels <= width))


def _block_diagonal(
    kernel: Kernel, groups: int, merge: int
) -> Float[Array, "kernel kernel merged_in_channels out_channels"]:
    """The kernel of `groups / merge` groups that computes the same function: true weights on the diagonal, else 0."""
    if merge == 1:
        return kernel
    _, _, group_in_channels, out_channels = kernel.shape
    # Four dimensions throughout: a TPU broadcasts into seven at a crawl.
    tiled = jnp.tile(kernel, (1, 1, merge, 1))
    row = jnp.arange(merge * group_in_channels) // group_in_channels
    column = jnp.arange(out_channels) // (out_channels // groups) % merge
    return jnp.where((row[:, None] == column[None])[None, None], tiled, jnp.zeros((), kernel.dtype))


def _im2col_output(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """One matrix product per group, of the k * k inputs under each window and the filters.

    A 1x1 convolution is a plain product of pixels and filters. The gradients are products of the same matrices,
    because XLA's own filter gradient on the CPU is slow for any convolution and hopeless for a grouped one. Only x and
    the kernel wait for the backward pass: the windows are k * k times the size of x.
    """
    groups = x.shape[-1] // kernel.shape[2]
    out = _product(_windows(x, groups, kernel.shape[0], stride), _filters(kernel, groups), contract=(2, 1))
    batch, height, width, _ = x.shape
    positions = (batch, _out_px(height, stride), _out_px(width, stride))
    return jnp.swapaxes(out, 0, 1).reshape(*positions, kernel.shape[3]).astype(x.dtype)


def _im2col_forward(x: Images, kernel: Kernel, stride: int) -> tuple[Outputs, tuple[Images, Kernel]]:
    return _im2col_output(x, kernel, stride), (x, kernel)


def _im2col_backward(stride: int, saved: tuple[Images, Kernel], grad_out: Outputs) -> tuple[Images, Kernel]:
    x, kernel = saved
    groups = x.shape[-1] // kernel.shape[2]
    windows_of = functools.partial(_windows, groups=groups, kernel_px=kernel.shape[0], stride=stride)
    grad_groups = _windows(grad_out, groups, kernel_px=1, stride=1)

    grad_filters = _product(windows_of(x), grad_groups, contract=(1, 1))
    grad_kernel = jnp.swapaxes(grad_filters, 0, 1).reshape(kernel.shape).astype(kernel.dtype)

    grad_windows = _product(grad_groups, _filters(kernel, groups), contract=(2, 2))
    # The transpose adds up to k * k windows per input; they stay float32 for that.
    (grad_x,) = jax.linear_transpose(windows_of, jax.ShapeDtypeStruct(x.shape, grad_windows.dtype))(grad_windows)
    return grad_x.astype(x.dtype), grad_kernel


_im2col = jax.custom_vjp(_im2col_output, nondiff_argnums=(2,))
_im2col.defvjp(_im2col_forward, _im2col_backward)


def _windows(x: Images, groups: int, kernel_px: int, stride: int) -> Float[Array, "groups positions window"]:
    """Per group and output position (batch, row, column), the inputs under the window in the kernel's order."""
    by_group = jnp.moveaxis(x.reshape(*x.shape[:3], groups, x.shape[3] // groups), 3, 0)
    pad_px = kernel_px // 2
    padded = jnp.pad(by_group, ((0, 0), (0, 0), (pad_px, pad_px), (pad_px, pad_px), (0, 0)))
    last_row, last_column = ((_out_px(in_px, stride) - 1) * stride for in_px in x.shape[1:3])
    taps = [
        padded[:, :, row : row + last_row + 1 : stride, column : column + last_column + 1 : stride]
        for row in range(kernel_px)
        for column in range(kernel_px)
    ]
    windows = jnp.concatenate(taps, axis=-1)
    return windows.reshape(groups, -1, windows.shape[-1])


def _filters(kernel: Kernel, groups: int) -> Float[Array, "groups window group_out_channels"]:
    return jnp.swapaxes(kernel.reshape(-1, groups, kernel.shape[3] // groups), 0, 1)


def _product(
    a: Float[Array, "groups _ _"], b: Float[Array, "groups _ _"], contract: tuple[int, int]
) -> Float[Array, "groups _ _"]:
    """The matrix product of each group over dimensions `contract` of a and b, added up in float32."""
    dimensions = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return lax.dot_general(a, b, dimensions, precision=_precision(a), preferred_element_type=jnp.float32)


def _out_px(in_px: int, stride: int) -> int:
    return (in_px - 1) // stride + 1


IMPLS: dict[str, Callable[[Images, Kernel, int], Outputs]] = {
    "native": _native,
    "merged128": functools.partial(_merged, width=128),
    "dense": _merged,
    "slabs32": functools.partial(_slabs, width=32),
    "im2col": _im2col,
}


def choose(platform: str, shape: ConvShape) -> str:
    """The fastest known algorithm for a convolution on a platform ("cpu", "gpu" or "tpu").

    What was measured stands in `conv_table`; the rest follows `rule`.
    """
    measured = conv_table.TABLE.get(platform, {}).get(key_of(shape))
    return rule(platform, shape) if measured is None else measured[0]


def rule(platform: str, shape: ConvShape) -> str:
    """What to take for a convolution that was never measured.

    CPU: slabs of 32 channels waste few multiplications and keep to XLA's fast code. A 1x1 is a matrix product.
    TPU: 128 channels fill the 128 x 128 matrix unit of every generation before v6e.
    """
    if platform == "tpu":
        return "merged128"
    if platform != "cpu":
        return "native"
    if shape.kernel_px == 1:
        return "im2col"
    return "native" if shape.groups == 1 else "slabs32"


def key_of(shape: ConvShape) -> conv_table.Key:
    """The row of a shape; a width other than the height changes little."""
    return shape.kernel_px, shape.stride, shape.groups, shape.in_channels, shape.out_channels, shape.height


def resolver(conv_impl: str, platform: str) -> Callable[[ConvShape], str]:
    """The choice per convolution: by `choose` for "auto", else the named algorithm everywhere.

    Raises:
      UserError: `conv_impl` is neither "auto" nor in `IMPLS`.
    """
    if conv_impl == "auto":
        return functools.partial(choose, platform)
    if conv_impl not in IMPLS:
        raise UserError(unknown("conv_impl", conv_impl, ("auto", *IMPLS)))
    return lambda shape: conv_impl
