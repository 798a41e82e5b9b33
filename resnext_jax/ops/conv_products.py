"""Convolution as matrix products: of all windows at once (im2col), or tap by tap."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width in_channels"]
Kernel = Float[Array, "kernel kernel group_in_channels out_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]

conv = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def precision(x: Array) -> lax.Precision:
    """Return the precision of products: float32 stays float32; by default a TPU takes bfloat16 and a GPU TF32."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT


def out_px(in_px: int, stride: int) -> int:
    """Return the height or width after a convolution with symmetric padding."""
    return (in_px - 1) // stride + 1


def _im2col(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """Return one matrix product per group, of the k * k inputs under each window and the filters.

    A 1x1 convolution is a plain product of pixels and filters. The gradients are products of the same matrices,
    because XLA's own filter gradient on the CPU is slow for any convolution and much slower for a grouped one. Only x
    and the kernel are kept for the backward pass: the windows are k * k times the size of x.
    """
    groups = x.shape[-1] // kernel.shape[2]
    out = _product(_windows(x, groups, kernel.shape[0], stride), _filters(kernel, groups), contract=(2, 1))
    return _as_images(out, x, stride)


def _im2col_forward(x: Images, kernel: Kernel, stride: int) -> tuple[Outputs, tuple[Images, Kernel]]:
    return _im2col(x, kernel, stride), (x, kernel)


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


im2col = jax.custom_vjp(_im2col, nondiff_argnums=(2,))
im2col.defvjp(_im2col_forward, _im2col_backward)


def per_tap(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """Return the sum, in float32, of one product per group and position of the window; no array is larger than x."""
    groups = x.shape[-1] // kernel.shape[2]
    positions = itertools.product(range(kernel.shape[0]), repeat=2)
    taps = [_filters(kernel[row : row + 1, column : column + 1], groups) for row, column in positions]
    flat = (pixels.reshape(groups, -1, kernel.shape[2]) for pixels in _shifted(x, groups, kernel.shape[0], stride))
    out = sum(_product(pixels, tap, contract=(2, 1)) for pixels, tap in zip(flat, taps, strict=True))
    return _as_images(jnp.asarray(out), x, stride)


def _as_images(out: Float[Array, "groups positions group_out_channels"], x: Images, stride: int) -> Outputs:
    positions = (x.shape[0], *(out_px(in_px, stride) for in_px in x.shape[1:3]))
    return jnp.swapaxes(out, 0, 1).reshape(*positions, -1).astype(x.dtype)


def _shifted(
    x: Images, groups: int, kernel_px: int, stride: int
) -> list[Float[Array, "groups batch out_height out_width group_in_channels"]]:
    """Return the inputs that each position of the window reads, in the kernel's order."""
    by_group = jnp.moveaxis(x.reshape(*x.shape[:3], groups, x.shape[3] // groups), 3, 0)
    pad_px = kernel_px // 2
    padded = jnp.pad(by_group, ((0, 0), (0, 0), (pad_px, pad_px), (pad_px, pad_px), (0, 0)))
    last_row, last_column = ((out_px(in_px, stride) - 1) * stride for in_px in x.shape[1:3])
    return [
        padded[:, :, row : row + last_row + 1 : stride, column : column + last_column + 1 : stride]
        for row, column in itertools.product(range(kernel_px), repeat=2)
    ]


def _windows(x: Images, groups: int, kernel_px: int, stride: int) -> Float[Array, "groups positions window"]:
    """Return the inputs under the window, in the kernel's order, per group and output (batch, row, column)."""
    windows = jnp.concatenate(_shifted(x, groups, kernel_px, stride), axis=-1)
    return windows.reshape(groups, -1, windows.shape[-1])


def _filters(kernel: Kernel, groups: int) -> Float[Array, "groups window group_out_channels"]:
    return jnp.swapaxes(kernel.reshape(-1, groups, kernel.shape[3] // groups), 0, 1)


def _product(
    a: Float[Array, "groups _ _"], b: Float[Array, "groups _ _"], contract: tuple[int, int]
) -> Float[Array, "groups _ _"]:
    """Return the matrix product of each group over dimensions `contract` of a and b, added up in float32."""
    dimensions = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return lax.dot_general(a, b, dimensions, precision=precision(a), preferred_element_type=jnp.float32)
