"""Arrays of a foreign file <-> our variables, one to one: every array is accounted for, or the file is refused."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from resnext_jax.convert.layers import Layer
from resnext_jax.convert.names import their_shape
from resnext_jax.errors import UserError
from resnext_jax.types import PyTree

Arrays = Mapping[str, np.ndarray]

COUNTER = "num_batches_tracked"  # of every batch norm in newer files of PyTorch; no part of the network
COLLECTIONS = {"mean": "batch_stats", "var": "batch_stats"}  # the others are params
THEIR_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Ours from theirs: (height, width, in, out) from (out, in, height, width); (in, out) from (out, in).
AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
BACK = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
MAX_NAMED_ARRAYS = 8
EXACT = ("float32", "float16", "bfloat16")  # dtypes whose values are float32's


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array on both sides.

    Attributes:
      path: in our variables: ("params", "stage2", "block1", "conv1", "kernel").
      name: in the file.
      shape, their_shape: of it here and there.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    their_shape: tuple[int, ...]

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        """Their array in our layout, float32. (A kernel of timm's VGG is a matrix there with two more dimensions.)"""
        flat = theirs.astype(np.float32).reshape(tuple(self.shape[axis] for axis in BACK[len(self.shape)]))
        return np.ascontiguousarray(flat.transpose(AXES[len(self.shape)]))

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """Our array in their layout."""
        return np.ascontiguousarray(ours.transpose(BACK[len(self.shape)])).reshape(self.their_shape)


def entries_of(their: str, layers: Sequence[Layer], names: Sequence[str]) -> list[Entry]:
    """Every array of these layers, in PyTorch's order.

    Args:
      their: whose file it is: "torchvision", "timm" or "torch7".
      layers: of our network.
      names: of the layers in the file.
    """
    return [
        Entry(
            (COLLECTIONS.get(array, "params"), *layer.path, array),
            f"{name}.{theirs}",
            layer.shapes[array],
            their_shape(their, layer, layer.shapes[array]),
        )
        for layer, name in zip(layers, names, strict=True)
        for array, theirs in THEIR_NAMES.items()
        if array in layer.shapes
    ]


def to_variables(entries: Sequence[Entry], arrays: Arrays, *, file: str, model: str) -> PyTree:
    """Our variables, float32.

    Args:
      entries: every array of the model.
      arrays: every array of the file, without counters.
      file, model: for messages.

    Raises:
      UserError: an array is missing, extra, misshapen or of a dtype that float32 does not hold exactly.
    """
    problems, used = [], {entry.name for entry in entries}
    for entry in entries:
        wanted = f"{entry.name}: {model} wants {entry.their_shape} (its {'/'.join(entry.path)}), the file"
        array = arrays.get(entry.name)
        if array is None:
            problems.append(f"{wanted} lacks it")
        elif array.shape != entry.their_shape:
            problems.append(f"{wanted} has {_form(array)}")
        elif array.dtype.name not in EXACT:
            problems.append(f"{wanted} has {_form(array)}, which float32 would round")
    problems += [
        f"{name}: the file has {_form(array)}, {model} has no such array"
        for name, array in arrays.items()
        if name not in used
    ]
    if problems:
        more = len(problems) - MAX_NAMED_ARRAYS
        raise UserError(
            f"{file} does not hold the weights of {model}; nothing was written:",
            *(f"  {problem}" for problem in problems[:MAX_NAMED_ARRAYS]),
            *([f"  ... and {more} more arrays"] if more > 0 else []),
            "Give the network that the file belongs to with --model=NAME, or the file of that network.",
        )
    variables: PyTree = {}
    for entry in entries:
        *parents, last = entry.path
        branch = variables
        for name in parents:
            branch = branch.setdefault(name, {})
        branch[last] = entry.ours(arrays[entry.name])
    variables.setdefault("batch_stats", {})
    return variables


def from_variables(entries: Sequence[Entry], variables: PyTree) -> dict[str, np.ndarray]:
    """Every array under its name in the file and in the file's layout, float32."""
    arrays = {}
    for entry in entries:
        array = variables
        for name in entry.path:
            array = array[name]
        arrays[entry.name] = entry.theirs(np.asarray(array))
    return arrays


def _form(array: np.ndarray) -> str:
    return f"{array.dtype.name}{array.shape}"
