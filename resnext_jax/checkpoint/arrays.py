"""Compare the arrays of a checkpoint with those of a model, and name every difference."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.types import PyTree

MAX_NAMED_ARRAYS = 8


def by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths: `params/stem_conv/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def first_lines(problems: Sequence[str]) -> list[str]:
    """Return the first problems as indented lines, and a line with the number of the others."""
    lines = [f"  {problem}" for problem in problems[:MAX_NAMED_ARRAYS]]
    more = len(problems) - len(lines)
    return [*lines, f"  ... and {more} more arrays"] if more else lines


def require_same_arrays(checkpoint: epath.Path, wanted: PyTree, saved: PyTree, advice: str) -> None:
    """Checks that a checkpoint has the arrays of a model.

    Args:
      wanted: arrays of the model, or their shapes.
      saved: arrays of the checkpoint, or their shapes.
      advice: what to do if they differ.

    Raises:
      UserError: they differ; the first few arrays are named with both shapes, the others counted.
    """
    if problems := mismatches(wanted, saved):
        heading = f"the checkpoint {checkpoint} belongs to another model; nothing was changed:"
        raise UserError(heading, *first_lines(problems), advice)


def mismatches(wanted: PyTree, saved: PyTree) -> list[str]:
    """Return a line for every array that is missing from `saved`, extra in it, or of another shape or dtype."""

    def forms(tree: PyTree) -> dict[str, str]:
        return {name: f"{np.dtype(leaf.dtype).name}{tuple(leaf.shape)}" for name, leaf in by_path(tree).items()}

    wanted, saved = forms(wanted), forms(saved)
    lines = []
    for name in wanted.keys() | saved.keys():
        if name not in saved:
            lines.append(f"{name}: this model wants {wanted[name]}, the checkpoint lacks it")
        elif name not in wanted:
            lines.append(f"{name}: the checkpoint has {saved[name]}, this model has no such array")
        elif wanted[name] != saved[name]:
            lines.append(f"{name}: this model wants {wanted[name]}, the checkpoint has {saved[name]}")
    # Parameters first: they say more than the statistics beside them.
    return sorted(lines, key=lambda line: (not line.startswith("params"), line))
