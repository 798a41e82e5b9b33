"""Measure every algorithm for the convolutions of networks and write the table that `conv_impl=auto` looks up.

python -m resnext_jax.analysis.tune [--networks=resnet50,resnext50_32x4d] [--out=resnext_jax/ops/conv_table.py]

Run it on an idle machine: the rows of this platform are replaced for the shapes that are measured, all others stay.
It is for CPUs and GPUs. On a TPU layouts and fusions extend over neighboring operations, so the time of one convolution
says little.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from resnext_jax.analysis import command
from resnext_jax.errors import raise_all, unknown
from resnext_jax.models import zoo
from resnext_jax.models.arch import IMAGENET_STEM
from resnext_jax.ops import conv_table
from resnext_jax.ops.conv_choice import ConvShape, chip_of, key_of, rule, section
from resnext_jax.ops.grouped_conv import grouped_conv
from resnext_jax.ops.keys import seed_key
from resnext_jax.sharding import all_devices

SMALL = "resnext20_8x4d_small"
NETWORKS = (
    *(name for name, arch in zoo.ARCHS.items() if isinstance(arch, zoo.Arch) and arch.stem == IMAGENET_STEM),
    SMALL,
)
GPU_IMAGES = 64  # batch size except on a CPU; with fewer images the time to launch kernels dominates
REPEATS = 7
HOPELESS = 4.0  # an algorithm that takes so many times the best time is measured only once
WORTH = 0.95  # the winner must be below this share of the time of the rule's choice; less may be noise

# With one group there is nothing to merge, and the other algorithms equal the native one.
UNGROUPED = ("native", "im2col", "native+im2col", "im2col+native")
GROUPED = ("native", "merged64", "merged128", "merged256", "dense", "slabs32", "slabs128", "im2col", "per_tap")
GROUPED += ("slabs32+im2col", "im2col+slabs32")

Row = tuple[str, str]  # the fastest algorithm, and the milliseconds of all, sorted


def shapes_of(name: str) -> dict[ConvShape, int]:
    """Return the distinct convolutions of a network at its usual image size, and how many images to use on a CPU."""
    size_px, channels, batch = (28, 1, 128) if name == SMALL else (224, 3, 8)
    shapes: dict[ConvShape, int] = {}

    def note(shape: ConvShape) -> str:
        shapes[shape] = batch
        return "native"

    arch = zoo.ARCHS[name]
    model = zoo.NETWORKS[type(arch)](arch, 10, note)
    images = jax.ShapeDtypeStruct((1, size_px, size_px, channels), jnp.float32)
    jax.eval_shape(lambda key, x: model.init(key, x, train=False), seed_key(0), images)
    return shapes


def candidates(shape: ConvShape) -> tuple[str, ...]:
    """Return the algorithms that differ for a convolution."""
    if shape.groups > 1:
        return GROUPED
    special = {7: ("space_to_depth",), 1: ("subsampled",)}
    return UNGROUPED + (special.get(shape.kernel_px, ()) if shape.stride > 1 else ())


def step_of(shape: ConvShape, batch: int, dtype: Any, impl: str) -> Callable[[], Any]:
    """Return a function that runs a convolution and the gradients that training needs (for the stem, the kernel's)."""
    out_px = [(size - 1) // shape.stride + 1 for size in (shape.height, shape.width)]
    sizes = (
        (batch, shape.height, shape.width, shape.in_channels),
        (shape.kernel_px, shape.kernel_px, shape.in_channels // shape.groups, shape.out_channels),
        (batch, *out_px, shape.out_channels),
    )
    arrays = [jnp.ones(size, dtype) for size in sizes]

    @jax.jit
    def step(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> Any:
        out, vjp = jax.vjp(lambda x, kernel: grouped_conv(x, kernel, stride=shape.stride, impl=impl), x, kernel)
        return out, vjp(grad)[1 if shape.in_channels <= 3 else 0 :]

    return lambda: jax.block_until_ready(step(*arrays))


def measure(shape: ConvShape, batch: int, dtype: Any, preferred: str) -> Row:
    """Return the fastest algorithm of a convolution, by the least of several times taken in turns.

    `preferred` wins unless another is clearly faster.
    """
    steps, best_s = {}, {}
    for impl in (preferred, *(name for name in candidates(shape) if name != preferred)):
        step = step_of(shape, batch, dtype, impl)
        step()  # compiles
        best_s[impl] = _seconds(step)
        if best_s[impl] <= HOPELESS * min(best_s.values()):
            steps[impl] = step
    for _ in range(REPEATS - 1):
        for impl, step in steps.items():
            best_s[impl] = min(best_s[impl], _seconds(step))
    fastest = min(best_s, key=lambda impl: best_s[impl])
    winner = fastest if best_s[fastest] < WORTH * best_s[preferred] else preferred
    times = sorted((seconds, impl) for impl, seconds in best_s.items())
    return winner, ", ".join(f"{impl} {1e3 * s:{'.3g' if s < 0.1 else '.0f'}}" for s, impl in times)


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


HEADER = '''"""The fastest algorithm of every convolution that was measured, with the time of each beside it.

Written by python -m resnext_jax.analysis.tune, not by hand: milliseconds, forward and the gradients that training
needs; float32 and 8 images (128 of 28 px) on a CPU, else bfloat16 and 64 images.
"""
# fmt: off
# ruff: noqa: E501

Key = tuple[int, int, int, int, int, int]  # kernel_px, stride, groups, in_channels, out_channels, height

TABLE: dict[str, dict[Key, tuple[str, str]]] = {'''


def text(table: dict[str, dict[conv_table.Key, Row]]) -> str:
    """Return the text of the table's file."""
    lines = [HEADER]
    for platform, rows in sorted(table.items()):
        lines.append(f'    "{platform}": {{')
        lines += [f'        {key}: ("{winner}", "{times}"),' for key, (winner, times) in sorted(rows.items())]
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def run(flag_values: flags.FlagValues, _: Sequence[str]) -> None:
    """Measure what the flags ask for and write the table."""
    names = flag_values.networks or list(NETWORKS)
    raise_all([unknown("network", name, NETWORKS) for name in names if name not in NETWORKS])
    device = all_devices()[0]
    platform, chip = device.platform, chip_of(device.device_kind)
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    shapes = {shape: batch for name in names for shape, batch in shapes_of(name).items()}
    table = {name: dict(rows) for name, rows in conv_table.TABLE.items()}
    rows = table.setdefault(section(platform, chip), {})
    for number, (shape, batch) in enumerate(shapes.items(), start=1):
        images = batch if platform == "cpu" else GPU_IMAGES
        rows[key_of(shape)] = row = measure(shape, images, dtype, rule(platform, chip, shape))
        print(f"{number}/{len(shapes)} {key_of(shape)}: {row[0]}   {row[1]}", flush=True)
        # After every row, so that a stopped command loses nothing.
        Path(flag_values.out).write_text(text(table))


def define_flags(to: flags.FlagValues) -> None:
    """Add the command's flags."""
    flags.DEFINE_list("networks", [], f"Whose convolutions; by default all of: {', '.join(NETWORKS)}.", flag_values=to)
    flags.DEFINE_string("out", str(Path(conv_table.__file__)), "The file to write.", flag_values=to)


main = partial(command.main, define_flags, run, uses_devices=True)

if __name__ == "__main__":
    main()
