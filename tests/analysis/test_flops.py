"""Flops of what runs in loops, on programs small enough to count by hand."""

import pytest

from resnext_jax.analysis import hlo
from resnext_jax.analysis.chips import CHIPS
from resnext_jax.analysis.flops import repeated_flops
from resnext_jax.analysis.report import account
from resnext_jax.models.zoo import ARCHS

TRIPS = 'backend_config={"known_trip_count":{"n":"4"}}'


def program(product: str, x: str, y: str) -> str:
    """One that runs a fusion of a product of `x` and `y` in a loop of four trips, and once after it."""
    return f"""HloModule jit_train_step

%fused (p: {x}, q: {y}) -> f32[] {{
  %p = {x} parameter(0)
  %q = {y} parameter(1)
  ROOT %product = {product}
}}

%body (arg: ({x}, {y})) -> ({x}, {y}) {{
  %arg = ({x}, {y}) parameter(0)
  %a = {x} get-tuple-element(%arg), index=0
  %b = {y} get-tuple-element(%arg), index=1
  %fusion.1 = f32[] fusion(%a, %b), kind=kOutput, calls=%fused
  ROOT %next = ({x}, {y}) tuple(%a, %b)
}}

%condition (arg.1: ({x}, {y})) -> pred[] {{
  ROOT %arg.1 = pred[] constant(true)
}}

ENTRY %main (x: {x}, y: {y}) -> f32[] {{
  %x = {x} parameter(0)
  %y = {y} parameter(1)
  %init = ({x}, {y}) tuple(%x, %y)
  %loop = ({x}, {y}) while(%init), condition=%condition, body=%body, {TRIPS}
  ROOT %fusion.2 = f32[] fusion(%x, %y), kind=kOutput, calls=%fused
}}
"""


@pytest.mark.parametrize(
    ("product", "x", "y", "flops"),
    [
        # 2 images of 5 px and 4 channels, 6 filters of 3 px: 13 of the 15 taps are inside the padded row.
        (
            "f32[2,5,6]{2,1,0} convolution(%p, %q), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            *("f32[2,5,4]{2,1,0}", "f32[3,4,6]{2,1,0}", 2 * 13 * 4 * 2 * 6),
        ),
        # Stride 2, and two groups of two channels: outputs at 0, 2 and 4 have 2 + 3 + 2 taps.
        (
            "f32[2,3,6]{2,1,0} convolution(%p, %q), window={size=3 stride=2 pad=1_1}, dim_labels=b0f_0io->b0f, "
            "feature_group_count=2",
            *("f32[2,5,4]{2,1,0}", "f32[3,2,6]{2,1,0}", 2 * 7 * 2 * 2 * 6),
        ),
        # Its input gradient: three inputs at 0, 2 and 4 of five, hit by 2 + 3 + 2 taps; the other way round in 2-D.
        (
            "f32[1,5,5,7]{3,2,1,0} convolution(%p, %q), window={size=3x3 pad=1_1x1_1 lhs_dilate=2x2 rhs_reversal=1x1}, "
            "dim_labels=b01f_01oi->b01f",
            *("f32[1,3,3,8]{3,2,1,0}", "f32[3,3,7,8]{3,2,1,0}", 2 * 7 * 7 * 8 * 7),
        ),
        # A filter gradient: 2 taps two apart over a row of 5, batch in the place of the channels.
        (
            "f32[4,1,6]{2,1,0} convolution(%p, %q), window={size=2 rhs_dilate=2}, dim_labels=f0b_i0o->b0f",
            *("f32[3,5,4]{2,1,0}", "f32[3,2,6]{2,1,0}", 2 * 2 * 3 * 4 * 6),
        ),
        (
            "bf16[8,10]{1,0:T(8,128)(2,1)} convolution(%p, %q), dim_labels=bf_io->bf",
            *("bf16[8,512]{1,0}", "bf16[512,10]{1,0}", 2 * 8 * 512 * 10),
        ),
        (
            "f32[3,8,10]{2,1,0} dot(%p, %q), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
            "rhs_contracting_dims={1}",
            *("f32[3,8,5]{2,1,0}", "f32[3,5,10]{2,1,0}", 2 * 3 * 8 * 5 * 10),
        ),
    ],
    ids=["padded", "strided groups", "input gradient", "filter gradient", "matrix product", "batched dot"],
)
def test_the_trips_after_the_first_are_added(product, x, y, flops):
    text = program(product, x, y)
    module = hlo.parse(text)
    assert repeated_flops(module, hlo.executed(module)[0]) == 3 * flops
    assert account(text, CHIPS["v5e"], ARCHS["resnet50"]).repeated_flops == 3 * flops
    once = hlo.parse(text.replace('"n":"4"', '"n":"1"'))
    assert repeated_flops(once, hlo.executed(once)[0]) == 0
