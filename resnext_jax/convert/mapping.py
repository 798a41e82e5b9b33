"""Convert arrays of a foreign file to our variables and back; no array may be missing or extra."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from flax import traverse_util

from resnext_jax.checkpoint import first_lines
from resnext_jax.convert.layers import Layer
from resnext_jax.convert.names import their_shape
from resnext_jax.errors import UserError
from resnext_jax.types import PyTree

Arrays = Mapping[str, np.ndarray]

COUNTER = "num_batches_tracked"  # counter of every batch norm in newer PyTorch files; the network does not use it
COLLECTIONS = {"mean": "batch_stats", "var": "batch_stats"}  # other arrays are params
THEIR_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Ours from theirs: (height, width, in, out) from (out, in, height, width); (in, out) from (out, in).
AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
BACK = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
EXACT = ("float32", "float16", "bfloat16")  # dtypes that float32 holds exactly
LARGEST = 1e12  # no weight or variance of a trained network comes near; a flipped bit of an exponent does


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array on both sides.

    Attributes:
      path: path in our variables: ("params", "stage2", "block1", "conv1", "kernel").
      name: name of the array in the file.
      shape, their_shape: shapes in our variables and in the file.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    their_shape: tuple[int, ...]

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        """Return their array in our layout, in float32. (Matrices of timm's VGG have two more dimensions there.)"""
        flat = theirs.astype(np.float32).reshape(tuple(self.shape[axis] for axis in BACK[len(self.shape)]))
        return np.ascontiguousarray(flat.transpose(AXES[len(self.shape)]))

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """Return our array in their layout."""
        return np.ascontiguousarray(ours.transpose(BACK[len(self.shape)])).reshape(self.their_shape)


def entries_of(their: str, layers: Sequence[Layer], names: Sequence[str]) -> list[Entry]:
    """Return every array of the layers, in PyTorch's order; `names` are the names of the layers in the file."""
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
    """Return our variables, in float32.

    Args:
      arrays: all arrays of the file, without counters.

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
        raise UserError(
            f"{file} does not hold the weights of {model}; nothing was written:",
            *first_lines(problems),
            "Give the network that the file belongs to with --model=NAME, or the file of that network.",
        )
    variables = traverse_util.unflatten_dict({entry.path: entry.ours(arrays[entry.name]) for entry in entries})
    return {"batch_stats": {}, **variables}


def require_sound_values(arrays: Arrays, where: str) -> None:
    """Checks the values of floating-point arrays by name.

    Raises:
      UserError: some are not finite or absurdly large, or a variance is negative; the first of each array is named.
    """
    problems = []
    for name, array in arrays.items():
        values = array.astype(np.float32, copy=False)
        lowest = 0.0 if name.endswith(THEIR_NAMES["var"]) else -LARGEST
        if not values.size or (values.min() >= lowest and values.max() <= LARGEST):  # false for NaN
            continue
        wrong = np.argwhere(~((values >= lowest) & (values <= LARGEST)))
        first = tuple(wrong[0].tolist())
        problems.append(
            f"{name}: {len(wrong):,} of {values.size:,} values, the first {values[first]:g} at {list(first)}"
        )
    if problems:
        raise UserError(
            f"{where} has values that are not finite or larger than {LARGEST:g}, or negative variances; nothing was "
            "written:",
            *first_lines(problems),
            "It is damaged, or its training diverged: fetch it again, or give another one.",
        )


def from_variables(entries: Sequence[Entry], variables: PyTree) -> dict[str, np.ndarray]:
    """Return every array by its name in the file and in the layout of the file, in float32."""
    flat = traverse_util.flatten_dict(variables)
    return {entry.name: entry.theirs(np.asarray(flat[entry.path])) for entry in entries}


def _form(array: np.ndarray) -> str:
    return f"{array.dtype.name}{array.shape}"
