"""Grouped convolution: one function, one kernel layout, several algorithms.

A kernel always has the shape (k, k, in_channels / groups, out_channels), whichever algorithm computes it, so
checkpoints move between TPU, GPU and CPU unchanged. The speed of an algorithm differs by a factor of hundreds between
devices: `ops.conv_choice` chooses.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnext_jax.errors import UserError, unknown
from resnext_jax.ops import space_to_depth
from resnext_jax.ops.conv_products import conv, im2col, per_tap, precision

Images = Float[Array, "batch height width in_channels"]
Kernel = Float[Array, "kernel kernel group_in_channels out_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]
Algorithm = Callable[[Images, Kernel, int], Outputs]  # the last argument is the stride


def grouped_conv(x: Images, kernel: Kernel, *, stride: int = 1, impl: str) -> Outputs:
    """Convolve each group of input channels with its own filters (Figure 3(c) of the paper), padding by k // 2.

    Args:
      kernel: filters of the same dtype; x's channels are in `in_channels / group_in_channels` groups, in order.
      stride: step of the window, in both directions.
      impl: see `algorithm`.

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
    """Return XLA's own grouped convolution.

    Its filter gradient, with more than one group, is a convolution with `batch_group_count`. If the batch is sharded,
    XLA on the CPU gathers the whole batch for it.
    """
    pad_px = kernel.shape[0] // 2
    padding = ((pad_px, pad_px), (pad_px, pad_px))
    groups = x.shape[-1] // kernel.shape[2]
    return conv(x, kernel, (stride, stride), padding, feature_group_count=groups, precision=precision(x))


def _merged(x: Images, kernel: Kernel, stride: int, *, width: int | None = None) -> Outputs:
    """Merge neighboring groups into block-diagonal ones of at most `width` channels (None: all into one)."""
    groups = x.shape[-1] // kernel.shape[2]
    return _native(x, _block_diagonal(kernel, groups, _groups_to_merge(groups, kernel.shape[2], width)), stride)


def _merged_by(x: Images, kernel: Kernel, stride: int, *, merge: int) -> Outputs:
    """Merge every `merge` neighboring groups into one; a single group is left alone."""
    groups = x.shape[-1] // kernel.shape[2]
    if groups > 1 and groups % merge:
        divisors = ", ".join(str(n) for n in range(1, groups + 1) if groups % n == 0)
        raise UserError(
            f"conv_impl='merge{merge}' cannot merge {groups} groups by {merge}: the factor must divide the groups. "
            f"Take one of {divisors}."
        )
    return _native(x, _block_diagonal(kernel, groups, merge if groups > 1 else 1), stride)


def _slabs(x: Images, kernel: Kernel, stride: int, *, width: int) -> Outputs:
    """Return plain convolutions of slabs of at most `width` channels, each with its groups merged.

    XLA on the CPU has fast code for a plain convolution of few channels and its gradients, and slow code for groups.
    """
    groups = x.shape[-1] // kernel.shape[2]
    merge = _groups_to_merge(groups, kernel.shape[2], width)
    slabs = jnp.split(x, groups // merge, axis=-1)
    kernels = jnp.split(_block_diagonal(kernel, groups, merge), groups // merge, axis=-1)
    return jnp.concatenate([_native(*pair, stride) for pair in zip(slabs, kernels, strict=True)], axis=-1)


def _apart(forward: Algorithm, backward: Algorithm) -> Algorithm:
    """Return an algorithm with the outputs of one and the gradients of another."""
    conv = jax.custom_vjp(forward, nondiff_argnums=(2,))

    def save(x: Images, kernel: Kernel, stride: int) -> tuple[Outputs, tuple[Images, Kernel]]:
        return forward(x, kernel, stride), (x, kernel)

    def gradients(stride: int, saved: tuple[Images, Kernel], grad_out: Outputs) -> tuple[Images, Kernel]:
        # The compiler drops the outputs of `backward`, which are not used.
        return jax.vjp(lambda x, kernel: backward(x, kernel, stride), *saved)[1](grad_out)

    conv.defvjp(save, gradients)
    return conv


def _space_to_depth(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """Convolve blocks of 2x2 pixels where that is possible, else natively."""
    fits = stride == 2 and x.shape[3] == kernel.shape[2] and x.shape[1] % 2 == x.shape[2] % 2 == 0
    return space_to_depth.conv_by_blocks(x, kernel) if fits else _native(x, kernel, stride)


def _subsampled(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """Compute a strided 1x1 on the pixels that it reads, so that its input gradient does not convolve mostly zeros."""
    if kernel.shape[0] > 1:
        return _native(x, kernel, stride)
    return _native(x[:, ::stride, ::stride], kernel, 1)


def _groups_to_merge(groups: int, group_in_channels: int, width: int | None) -> int:
    """Return the most groups whose channels together fit `width`; a divisor of `groups`."""
    if width is None:
        return groups
    return max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * group_in_channels <= width))


def _block_diagonal(
    kernel: Kernel, groups: int, merge: int
) -> Float[Array, "kernel kernel merged_in_channels out_channels"]:
    """Return the kernel of `groups / merge` groups with the weights on the block diagonal and 0 elsewhere."""
    if merge == 1:
        return kernel
    _, _, group_in_channels, out_channels = kernel.shape
    # Four dimensions throughout: broadcasting into seven is slow on a TPU.
    tiled = jnp.tile(kernel, (1, 1, merge, 1))
    row = jnp.arange(merge * group_in_channels, dtype=jnp.int32) // group_in_channels
    column = jnp.arange(out_channels, dtype=jnp.int32) // (out_channels // groups) % merge
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
    # As merged128, between 1x1 convolutions whose outputs and inputs are blocks of 128 channels: `ops.blocked`.
    "blocked128": functools.partial(_merged, width=128),
    # For a 1x1 together with the batch norm after it: `ops.moments`. Alone it is the native one.
    "moments": _native,
}
ALL_IMPLS = ("auto", *IMPLS, "merge<r>", "<forward>+<backward>")  # what `conv_impl` may be, for messages


def algorithm(impl: str) -> Algorithm:
    """Return the algorithm of a name; raise UserError if there is none.

    A name is one of `IMPLS`, `merge8` to merge every 8 groups, or `native+im2col` to compute the outputs as `native`
    and both gradients as `im2col`.
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
