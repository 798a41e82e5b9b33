"""Whether a checkpoint has the arrays of a model: every difference is named."""

from typing import Any

import jax
import numpy as np
from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.types import PyTree

MAX_NAMED_ARRAYS = 8


def require_same_arrays(checkpoint: epath.Path, wanted: PyTree, saved: PyTree, advice: str) -> None:
    """Checks that a checkpoint has the arrays of a model.

    Args:
      checkpoint: for the message.
      wanted: the model's arrays or their shapes.
      saved: those of the checkpoint.
      advice: what to do where they differ.

    Raises:
      UserError: they differ; the first few arrays are named with both shapes, the others counted.
    """
    problems = mismatches(wanted, saved)
    if problems:
        more = len(problems) - MAX_NAMED_ARRAYS
        raise UserError(
            f"the checkpoint {checkpoint} belongs to another model; nothing was changed:",
            *(f"  {problem}" for problem in problems[:MAX_NAMED_ARRAYS]),
            *([f"  ... and {more} more arrays"] if more > 0 else []),
            advice,
        )


def mismatches(wanted: PyTree, saved: PyTree) -> list[str]:
    """One line for every array that is missing from `saved`, extra in it, or of another shape or dtype."""

    def flat(tree: PyTree) -> dict[str, Any]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

    def form(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name}{tuple(leaf.shape)}"

    wanted, saved = flat(wanted), flat(saved)
    lines = [
        f"{name}: this model wants {form(wanted[name])}, the checkpoint lacks it" for name in wanted.keys() - saved
    ]
    lines += [
        f"{name}: the checkpoint has {form(saved[name])}, this model has no such array"
        for name in saved.keys() - wanted
    ]
    lines += [
        f"{name}: this model wants {form(wanted[name])}, the checkpoint has {form(saved[name])}"
        for name in wanted.keys() & saved.keys()
        if form(wanted[name]) != form(saved[name])
    ]
    # Parameters first: they tell more than the statistics that go with them.
    return sorted(lines, key=lambda line: (not line.startswith("params"), line))
