"""The multiplications and additions that XLA's own count leaves out: it takes the body of a loop for one trip."""

import math
import re
from collections.abc import Iterator

from resnext_jax.analysis.hlo import Computation, Executed, Instruction, Module


def repeated_flops(module: Module, steps: list[Executed]) -> int:
    """Of convolutions and matrix products, in all runs of an instruction beyond its first.

    Args:
      module: the program.
      steps: that `hlo.executed` found in it.
    """
    looped = (step for step in steps if step.times > 1)
    return sum((s.times - 1) * sum(_products(module, s.instruction, s.computation)) for s in looped)


def _products(module: Module, instruction: Instruction, computation: Computation) -> Iterator[int]:
    """The flops of one run, product by product, fusions opened."""
    if instruction.opcode == "convolution":
        yield _convolution_flops(instruction, computation)
    elif instruction.opcode == "dot":
        yield _dot_flops(instruction, computation)
    for name in instruction.called("calls"):
        for part in module.computations[name].values():
            yield from _products(module, part, module.computations[name])


def _convolution_flops(conv: Instruction, computation: Computation) -> int:
    """Without the products of a tap with padding or with the zeros between dilated inputs, as XLA counts.

    `dim_labels=b01f_01io->b01f` names the dimensions of input, kernel and output; `window={size=3x3 stride=2x2 ...}`
    has one number for each spatial dimension. The kernel's `i` are the channels of one group.
    """
    labels = re.split("_|->", conv.attributes.partition("dim_labels=")[2].split(",")[0].strip())
    arrays = [_dims(computation[name].shape) for name in conv.operands] + [_dims(conv.shape)]
    inputs, kernel, out = (dict(zip(names, dims, strict=True)) for names, dims in zip(labels, arrays, strict=True))
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.findall(r"window=\{([^}]*)\}", conv.attributes) or [""])[0]))
    taps = 1
    for label in filter(str.isdigit, labels[0]):
        number = {field: values.split("x")[int(label)] for field, values in window.items()}
        stride, spread, gaps = (int(number.get(field, 1)) for field in ("stride", "lhs_dilate", "rhs_dilate"))
        before = int(number.get("pad", "0_0").split("_")[0])
        reads = (o * stride + k * gaps - before for o in range(out[label]) for k in range(int(number["size"])))
        taps *= sum(read % spread == 0 and 0 <= read // spread < inputs[label] for read in reads)
    return 2 * taps * kernel["i"] * out["b"] * out["f"]


def _dot_flops(dot: Instruction, computation: Computation) -> int:
    contracted = re.findall(r"\d+", (re.findall(r"lhs_contracting_dims=\{([^}]*)\}", dot.attributes) or [""])[0])
    left = _dims(computation[dot.operands[0]].shape)
    return 2 * math.prod(_dims(dot.shape)) * math.prod(left[int(dim)] for dim in contracted)


def _dims(shape: str) -> list[int]:
    return [int(dim) for dim in re.findall(r"\[([\d,]*)\]", shape)[0].split(",") if dim]
