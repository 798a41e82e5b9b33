"""A network of Torch7, walked in the order in which it computes, beside one of ours: fb.resnet.torch and ResNeXt.

Both sides are written down as steps ("conv 3x3 stride 2 of 4 channels per group", "batch norm", "relu", "split") and
compared one by one, so that a network of other structure is refused even where all of its arrays would fit.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Any

import numpy as np

from resnext_jax.convert.layers import Layer
from resnext_jax.convert.torch7 import Module
from resnext_jax.errors import UserError
from resnext_jax.json_files import MAX_SHOWN
from resnext_jax.models.arch import Arch

EPSILON = 1e-5
MAX_STEPS, MAX_DEPTH = 100_000, 100
KERNELS_PX = range(1, 100)
SHAPELESS = {"ReLU": "relu", "CAddTable": "add", "SpatialAveragePooling": "average pool"}
NOTHING = ("Identity", "View", "Reshape")
ARRAYS = ("weight", "bias", "running_mean", "running_var")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a network of Torch7.

    Attributes:
      text: what it does; see above; "" for a module that does nothing itself.
      name: numbers of the nested modules, from 1 as in Lua ("1", "5.2.1.1.4").
      arrays: those of `ARRAYS` that it has.
    """

    text: str
    name: str
    arrays: dict[str, np.ndarray]


def torch7_arrays(
    network: Any, arch: Arch, layers: Sequence[Layer], *, file: str, model: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the name of every layer in the file, and the arrays of the file as `NAME.weight` and so on.

    Args:
      network: what `read_torch7` found.

    Raises:
      UserError: the file holds no network, or one of another structure; the first difference is named.
    """
    found = []
    for number, (step, want) in enumerate(
        zip_longest(_bounded(_steps(network, "", file), file), _wanted(arch, layers)), start=1
    ):
        there = f"{step.text!r} (module {step.name})" if step else "nothing more"
        if step is None or step.text != want:
            raise UserError(
                f"{file} does not hold a {model}: step {number} is {there} there, and {want or 'nothing more'!r} in "
                f"{model}. Give the network that the file belongs to with --model=NAME."
            )
        found.append(step)
    return (
        [step.name for step in found if step.arrays],
        {f"{step.name}.{array}": value for step in found for array, value in step.arrays.items()},
    )


def _bounded(steps: Iterator[Step], file: str) -> Iterator[Step]:
    """Yield the steps with a text. Those without count too: a small file may hold one empty module 2**40 times."""
    for count, step in enumerate(steps):
        if count >= MAX_STEPS:
            raise UserError(f"{file} holds a network of more than {MAX_STEPS:,} modules. Give a file of one network.")
        if step.text:
            yield step


def _wanted(arch: Arch, layers: Sequence[Layer]) -> Iterator[str]:
    """Yield the steps of our network: conv-BN-ReLU, and in each block the projection or identity after the branch."""
    for parents, group in groupby(layers, key=lambda layer: layer.path[:-1]):
        if parents:
            yield from _wanted_block(list(group))
            continue
        for layer in group:
            if layer.kind == "linear":
                yield "average pool"
            yield _text(layer)
            if layer.kind == "norm":
                yield "relu"
            if layer.path == ("stem_bn",) and arch.stem.pool:
                yield "max pool 3x3 stride 2"


def _wanted_block(layers: Sequence[Layer]) -> Iterator[str]:
    shortcut = [layer for layer in layers if layer.path[-1].startswith("shortcut")]
    main = [layer for layer in layers if layer not in shortcut]
    preactivated = main[-1].kind == "conv"
    if preactivated and shortcut and main[0].kind == "norm":  # which the projection reads too
        yield from (_text(main.pop(0)), "relu")
    yield "split"
    for layer in main:
        yield _text(layer)
        if layer.kind == "norm" and layer is not main[-1]:
            yield "relu"
    yield "beside"
    yield from map(_text, shortcut)
    yield from ("join", "add") if preactivated else ("join", "add", "relu")


def _text(layer: Layer) -> str:
    if layer.kind != "conv":
        return {"norm": "batch norm", "linear": "linear"}[layer.kind]
    kernel_px, _, group_inputs, _ = layer.shapes["kernel"]
    return f"conv {kernel_px}x{kernel_px} stride {layer.stride} of {group_inputs} channels per group"


def _steps(module: Any, name: str, file: str, depth: int = 0) -> Iterator[Step]:
    if depth > MAX_DEPTH:
        raise UserError(f"{file} holds a network whose modules lie more than {MAX_DEPTH} within one another.")
    if not isinstance(module, Module):
        where = f" at module {name}" if name else ""
        raise UserError(
            f"{file} holds {type(module).__name__}{where}, where a network of Torch7 (nn.Sequential) is due. Save the "
            "network by itself there: torch.save(FILE, model:clearState())."
        )
    kind, fields = module.class_name.rpartition(".")[2][:MAX_SHOWN], module.fields
    yield Step("", name, {})
    if kind in ("Sequential", "ConcatTable"):
        inside = fields.get("modules")
        inside = inside if isinstance(inside, dict) else {}
        yield from (Step("", name, {}) for _ in inside)  # keys take time too
        for number, key in enumerate(sorted(key for key in inside if isinstance(key, int)), start=1):
            if kind == "ConcatTable":
                yield Step("split" if number == 1 else "beside", name, {})
            yield from _steps(inside[key], f"{name}.{number}".lstrip("."), file, depth + 1)
        if kind == "ConcatTable":
            yield Step("join", name, {})
    elif kind in SHAPELESS:
        yield Step(SHAPELESS[kind], name, {})
    elif kind not in NOTHING:
        yield Step(_module_text(kind, fields, name, file), name, _arrays_of(kind, fields))


def _module_text(kind: str, fields: dict[Any, Any], name: str, file: str) -> str:
    # Of other values only the type is named: a table may hold itself.
    fields = {key: value if isinstance(value, float | bool) else type(value).__name__ for key, value in fields.items()}

    def pair(first: str, second: str) -> str:
        one, other = fields.get(first), fields.get(second)
        return f"{one:g}" if isinstance(one, float) and one == other else f"({one}, {other})"

    if kind in ("SpatialConvolution", "SpatialConvolutionMM"):
        kernel, pad, groups = pair("kW", "kH"), pair("padW", "padH"), fields.get("groups", 1.0)
        text = f"conv {kernel}x{kernel} stride {pair('dW', 'dH')}"
        inputs = fields.get("nInputPlane")
        per_group = inputs / groups if isinstance(inputs, float) and isinstance(groups, float) and groups > 0 else 0
        padding = "" if kernel.isdigit() and pad == f"{int(kernel) // 2}" else f" padding {pad}"
        return f"{text} of {per_group:g} channels per group{padding}"
    if kind == "SpatialBatchNormalization":
        epsilon = fields.get("eps", EPSILON)
        return "batch norm" if epsilon == EPSILON else f"batch norm with epsilon {epsilon}"
    if kind == "SpatialMaxPooling":
        pad = pair("padW", "padH")
        rounding = " rounding up" if fields.get("ceil_mode") else ""
        text = f"max pool {pair('kW', 'kH')}x{pair('kW', 'kH')} stride {pair('dW', 'dH')}{rounding}"
        return text if pad == "1" else f"{text} padding {pad}"
    if kind == "Linear":
        return "linear"
    raise UserError(
        f"{file} has a {kind} (module {name}), which none of our networks has. Files of fb.resnet.torch's ResNets and "
        "of the original ResNeXts can be converted."
    )


def _arrays_of(kind: str, fields: dict[Any, Any]) -> dict[str, np.ndarray]:
    arrays = {array: fields[array] for array in ARRAYS if isinstance(fields.get(array), np.ndarray)}
    if kind.startswith("SpatialConvolution"):
        # The original code has no bias there; with old versions of cuDNN it kept one of zeros.
        if "bias" in arrays and not arrays["bias"].any():
            del arrays["bias"]
        # Kept as a matrix where nn computes by matrix products.
        weight, height, width = arrays.get("weight"), fields.get("kH"), fields.get("kW")
        if weight is not None and weight.ndim == 2 and isinstance(height, float) and isinstance(width, float):
            window = (int(height), int(width)) if height in KERNELS_PX and width in KERNELS_PX else (0, 0)
            if weight.size and min(window) > 0 and weight.shape[1] % (window[0] * window[1]) == 0:
                arrays["weight"] = weight.reshape(len(weight), -1, *window)
    return arrays
