"""Every algorithm against float64 numpy loops over windows: outputs and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnext_jax.errors import UserError
from resnext_jax.ops import grouped_conv as lib
from resnext_jax.ops.grouped_conv import grouped_conv

# (batch, height, width, in_channels, out_channels, groups, kernel_px, stride)
CASES = {
    "32x4d": (2, 5, 5, 128, 128, 32, 3, 1),
    "32x4d stride 2, odd": (2, 5, 7, 128, 128, 32, 3, 2),
    "8x14d": (2, 4, 4, 112, 112, 8, 3, 1),
    "4x24d stride 2, even": (1, 4, 6, 96, 96, 4, 3, 2),
    "depthwise": (2, 5, 7, 6, 6, 6, 3, 1),
    "wider outputs than inputs": (2, 4, 5, 8, 24, 4, 3, 2),
    "two groups of 128": (1, 3, 3, 256, 256, 2, 3, 1),
    "one group, one image": (1, 5, 7, 8, 16, 1, 3, 1),
    "one pixel": (2, 1, 1, 8, 8, 2, 3, 2),
    "1x1": (2, 5, 7, 16, 8, 1, 1, 1),
    "1x1 stride 2": (2, 5, 8, 16, 8, 1, 1, 2),
    "grouped 1x1": (2, 3, 3, 8, 8, 4, 1, 1),
    "7x7 stem": (1, 9, 12, 3, 8, 1, 7, 2),
    "7x7 stem, even": (2, 8, 12, 3, 8, 1, 7, 2),
    "5x5 stride 2, even": (1, 8, 6, 3, 4, 1, 5, 2),
    "3x3 stride 2, even": (1, 6, 8, 3, 4, 1, 3, 2),
}


def _inputs(case, dtype=np.float32):
    batch, height, width, in_channels, out_channels, groups, kernel_px, stride = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, height, width, in_channels)).astype(np.float32)
    kernel = rng.normal(size=(kernel_px, kernel_px, in_channels // groups, out_channels)).astype(np.float32)
    grad = rng.normal(size=(batch, -(-height // stride), -(-width // stride), out_channels)).astype(np.float32)
    return (jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), jnp.asarray(grad, dtype)), groups, stride


def _reference(x, kernel, grad, groups, stride):
    """Output, input gradient and filter gradient in float64, one output position and one group at a time."""
    x, kernel, grad = (np.asarray(array, np.float64) for array in (x, kernel, grad))
    k, _, d_in, out_channels = kernel.shape
    d_out, pad = out_channels // groups, k // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out, grad_padded, grad_kernel = np.zeros_like(grad), np.zeros_like(padded), np.zeros_like(kernel)
    for row, column, group in np.ndindex(grad.shape[1], grad.shape[2], groups):
        top, left = row * stride, column * stride
        window = (slice(None), slice(top, top + k), slice(left, left + k), slice(group * d_in, (group + 1) * d_in))
        filters = (Ellipsis, slice(group * d_out, (group + 1) * d_out))
        out_grad = grad[:, row, column, filters[1]]
        out[:, row, column, filters[1]] = np.tensordot(padded[window], kernel[filters], axes=3)
        grad_padded[window] += np.einsum("no,hwio->nhwi", out_grad, kernel[filters])
        grad_kernel[filters] += np.einsum("nhwi,no->hwio", padded[window], out_grad)
    height, width = x.shape[1:3]
    return out, grad_padded[:, pad : pad + height, pad : pad + width], grad_kernel


def _compute(x, kernel, grad, stride, impl):
    @jax.jit
    def run(x, kernel, grad):
        out, vjp = jax.vjp(lambda x, kernel: grouped_conv(x, kernel, stride=stride, impl=impl), x, kernel)
        return out, *vjp(grad)

    return run(x, kernel, grad)


def _assert_close(got, want, relative):
    """Errors relative to the largest value: a sum that cancels keeps the rounding of its terms."""
    for name, ours, true in zip(("output", "input gradient", "filter gradient"), got, want, strict=True):
        error = np.abs(np.asarray(ours, np.float64) - true).max() / np.abs(true).max()
        assert error <= relative, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("impl", [*lib.IMPLS, "merge1", "merge2", "native+im2col", "slabs32+per_tap"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_output_and_gradients_equal_numpy(case, impl):
    (x, kernel, grad), groups, stride = _inputs(case)
    if impl == "merge2" and groups == 1:
        pytest.skip("nothing to merge")
    got = _compute(x, kernel, grad, stride, impl)
    assert [array.shape for array in got] == [grad.shape, x.shape, kernel.shape]
    # Float32 rounds to 6e-8; 2e-6 leaves room for sums of up to 1152 terms in any order.
    _assert_close(got, _reference(x, kernel, grad, groups, stride), 2e-6)


@pytest.mark.parametrize("impl", lib.IMPLS)
def test_bfloat16_stays_bfloat16(impl):
    (x, kernel, grad), groups, stride = _inputs("32x4d stride 2, odd", jnp.bfloat16)
    got = _compute(x, kernel, grad, stride, impl)
    assert {array.dtype for array in got} == {jnp.dtype(jnp.bfloat16)}
    # Bfloat16 rounds the result to 2^-9 of its value; sums in float32 add nothing to that.
    _assert_close(got, _reference(x, kernel, grad, groups, stride), 2**-8)


@pytest.mark.parametrize("impl", lib.IMPLS)
def test_same_bits_at_each_run(impl):
    (x, kernel, grad), _, stride = _inputs("8x14d")
    jax.tree.map(np.testing.assert_array_equal, *(_compute(x, kernel, grad, stride, impl) for _ in range(2)))


# XLA gathers the batch for the filter gradient of its own convolution wherever more than one group is left.
@pytest.mark.parametrize("impl", ["dense", "slabs32", "im2col"])
def test_sharded_batch_is_never_gathered(impl):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    over_batch = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    x, kernel, grad = jnp.ones((16, 4, 4, 32)), jnp.ones((3, 3, 4, 32)), jnp.ones((16, 2, 2, 32))

    def run(x, kernel, grad):
        out, vjp = jax.vjp(lambda x, kernel: grouped_conv(x, kernel, stride=2, impl=impl), x, kernel)
        return out, *vjp(grad)

    sharded = jax.jit(
        run,
        in_shardings=(over_batch, everywhere, over_batch),
        out_shardings=(over_batch, over_batch, everywhere),
    )
    compiled = sharded.lower(x, kernel, grad).compile().as_text()
    assert compiled is not None
    assert "all-reduce" in compiled
    assert not any(op in compiled for op in ("all-gather", "all-to-all", "collective-permute"))


def test_groups_that_do_not_divide():
    with pytest.raises(UserError, match="10 input channels do not divide into groups of 4"):
        grouped_conv(jnp.ones((1, 3, 3, 10)), jnp.ones((3, 3, 4, 10)), impl="native")
    with pytest.raises(UserError, match="7 output channels do not divide into 2 groups"):
        grouped_conv(jnp.ones((1, 3, 3, 8)), jnp.ones((3, 3, 4, 7)), impl="native")


def test_unknown_algorithm():
    with pytest.raises(UserError, match=r"unknown conv_impl 'nativ'.*'native'"):
        grouped_conv(jnp.ones((1, 3, 3, 8)), jnp.ones((3, 3, 4, 8)), impl="nativ")
    with pytest.raises(UserError, match=r"unknown conv_impl 'im2co'.*'im2col'"):
        grouped_conv(jnp.ones((1, 3, 3, 8)), jnp.ones((3, 3, 4, 8)), impl="native+im2co")


def test_merging_by_a_factor_that_does_not_divide():
    with pytest.raises(UserError, match=r"'merge3' cannot merge 4 groups by 3.*1, 2, 4"):
        grouped_conv(jnp.ones((1, 3, 3, 8)), jnp.ones((3, 3, 2, 8)), impl="merge3")
    # A single group has nothing to merge: the networks have such convolutions beside the grouped ones.
    assert grouped_conv(jnp.ones((1, 3, 3, 8)), jnp.ones((3, 3, 8, 8)), impl="merge3").shape == (1, 3, 3, 8)


@pytest.mark.parametrize(("impl", "groups"), [("merge8", 4), ("merged64", 2), ("merged256", 1), ("merge32", 1)])
def test_merged_groups_are_really_merged(impl, groups):
    """32 groups of 4 channels: by hand, 8 of them make 4 groups of 32, and 64 channels hold 16 of them."""
    x, kernel = jax.ShapeDtypeStruct((1, 5, 5, 128), "float32"), jax.ShapeDtypeStruct((3, 3, 4, 128), "float32")
    text = jax.jit(lambda x, kernel: grouped_conv(x, kernel, impl=impl)).lower(x, kernel).as_text()
    assert f"feature_group_count = {groups} " in text


def test_forward_and_backward_apart():
    """The outputs come from a convolution, both gradients from matrix products alone."""
    x, kernel = jax.ShapeDtypeStruct((1, 5, 5, 8), "float32"), jax.ShapeDtypeStruct((3, 3, 4, 8), "float32")

    def loss(x, kernel):
        return grouped_conv(x, kernel, impl="native+im2col").sum()

    forward = jax.jit(loss).lower(x, kernel).as_text()
    backward = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile().as_text()
    assert "stablehlo.convolution" in forward
    assert "dot_general" not in forward
    assert "convolution(" not in str(backward)


@pytest.mark.parametrize("impl", sorted(lib.IMPLS))
def test_float32_is_not_multiplied_in_less(impl):
    def products(dtype):
        x, kernel = jax.ShapeDtypeStruct((2, 6, 6, 8), dtype), jax.ShapeDtypeStruct((3, 3, 4, 8), dtype)
        total = lambda x, kernel: grouped_conv(x, kernel, impl=impl).astype("float32").sum()  # noqa: E731
        text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(x, kernel).as_text()
        return [line for line in text.splitlines() if "dot_general" in line or "stablehlo.convolution" in line]

    assert len(products("float32")) >= 2
    assert all("HIGHEST" in line for line in products("float32"))
    assert not any("HIGHEST" in line for line in products("bfloat16"))
