"""Grouped convolution: one function, one kernel layout, several algorithms.

Every convolution of the networks goes through `grouped_conv`. A kernel always has the shape
(k, k, in_channels / groups, out_channels), whichever algorithm computes it, so a checkpoint moves between TPU, GPU and
CPU untouched. What is fast differs by a factor of hundreds between devices: `ops.conv_choice` is the table of what to
take.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnext_jax.errors import UserError, unknown
from resnext_jax.ops import space_to_depth
from resnext_jax.ops.conv_products import im2col, per_tap, precision

Images = Float[Array, "batch height width in_channels"]
Kernel = Float[Array, "kernel kernel group_in_channels out_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]
Algorithm = Callable[[Images, Kernel, int], Outputs]  # the last argument is the stride


def grouped_conv(x: Images, kernel: Kernel, *, stride: int = 1, impl: str) -> Outputs:
    """Convolves each group of input channels with its own filters (Figure 3(c) of the paper), padding by k // 2.

    Args:
      x: images or features.
      kernel: filters of the same dtype; x's channels are in `in_channels / group_in_channels` groups, in order.
      stride: step of the window, in both directions.
      impl: a name that `algorithm` knows.

    Returns:
      (batch, (height - 1) // stride + 1, (width - 1) // stride + 1, out_channels), in x's dtype.

    Raises:
      UserError: the groups do not divide the channels, or there is no such algorithm.
    """
    compute = algorithm(impl)
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
    return compute(x, kernel, stride)


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
        precision=precision(x),
    )


def _merged(x: Images, kernel: Kernel, stride: int, *, width: int | None = None) -> Outputs:
    """Merges neighbouring groups into block-diagonal ones of at most `width` channels (None: all into one)."""
    groups = x.shape[-1] // kernel.shape[2]
    return _native(x, _block_diagonal(kernel, groups, _groups_to_merge(groups, kernel.shape[2], width)), stride)


def _merged_by(x: Images, kernel: Kernel, stride: int, *, merge: int) -> Outputs:
    """Merges every `merge` neighbouring groups into one; a single group is left alone."""
    groups = x.shape[-1] // kernel.shape[2]
    if groups > 1 and groups % merge:
        divisors = ", ".join(str(n) for n in range(1, groups + 1) if groups % n == 0)
        raise UserError(
            f"conv_impl='merge{merge}' cannot merge {groups} groups by {merge}: the factor must divide the groups. "
            f"Take one of {divisors}."
        )
    return _native(x, _block_diagonal(kernel, groups, merge if groups > 1 else 1), stride)


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


def _apart(forward: Algorithm, backward: Algorithm) -> Algorithm:
    """The outputs of one algorithm and the gradients of another."""
    conv = jax.custom_vjp(forward, nondiff_argnums=(2,))

    def save(x: Images, kernel: Kernel, stride: int) -> tuple[Outputs, tuple[Images, Kernel]]:
        return forward(x, kernel, stride), (x, kernel)

    def gradients(stride: int, saved: tuple[Images, Kernel], grad_out: Outputs) -> tuple[Images, Kernel]:
        # The outputs of `backward` are asked for by nobody: the compiler leaves them out.
        return jax.vjp(lambda x, kernel: backward(x, kernel, stride), *saved)[1](grad_out)

    conv.defvjp(save, gradients)
    return conv


def _space_to_depth(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """Over blocks of 2x2 pixels where that is possible, else native."""
    fits = stride == 2 and x.shape[3] == kernel.shape[2] and x.shape[1] % 2 == x.shape[2] % 2 == 0
    return space_to_depth.conv_by_blocks(x, kernel) if fits else _native(x, kernel, stride)


def _subsampled(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """A strided 1x1 on the pixels that it reads; its input gradient is then not a convolution over mostly zeros."""
    if kernel.shape[0] > 1:
        return _native(x, kernel, stride)
    return _native(x[:, ::stride, ::stride], kernel, 1)


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


IMPLS: dict[str, Algorithm] = {
    "native": _native,
    "merged64": functools.partial(_merged, width=64),
    "merged128": functools.partial(_merged, width=128),
    "merged256": functools.partial(_merged, width=256),
    "dense": _merged,
    "slabs32": functools.partial(_slabs, width=32),
    "slabs128": functools.partial(_slabs, width=128),
    "im2col": im2col,
    "per_tap": per_tap,
    "space_to_depth": _space_to_depth,
    "subsampled": _subsampled,
    # The same as merged128, between 1x1 convolutions that hand over and take blocks of 128 channels: `ops.blocked`.
    "blocked128": functools.partial(_merged, width=128),
    # For a 1x1 together with the batch norm after it: `ops.moments`. Alone it is the native one.
    "moments": _native,
}
ALL_IMPLS = ("auto", *IMPLS, "merge<r>", "<forward>+<backward>")  # what `conv_impl` may be, for messages


def algorithm(impl: str) -> Algorithm:
    """The algorithm of a name: one of `IMPLS`, `merge<r>` for any r, or two of them for forward and backward.

    Example:
      `merge8` merges every 8 groups; `native+im2col` computes outputs as `native`, both gradients as `im2col`.

    Raises:
      UserError: there is no such algorithm.
    """
    forward, plus, backward = impl.partition("+")
    if plus:
        return _apart(algorithm(forward), algorithm(backward))
    found = re.fullmatch(r"merge([1-9]\d*)", impl)
    if found:
        return functools.partial(_merged_by, merge=int(found[1]))
    if impl not in IMPLS:
        raise UserError(unknown("conv_impl", impl, ALL_IMPLS))
    return IMPLS[impl]
