"""`--config.debug_nans`: repeat the first step that is not finite under JAX's own checks, which name the operation."""

import re
import traceback
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnext_jax import metrics
from resnext_jax.errors import UserError
from resnext_jax.train.step import Step
from resnext_jax.types import PyTree, TrainState


class NanDebugger:
    """Runs steps, and explains the first one that is not finite. It keeps a copy of the state and waits for each step.

    Args:
      step: compiled step; it may donate the state.
      plain_step: the same without jit and devices.
    """

    def __init__(self, step: Callable, plain_step: Step):
        self._step, self._plain_step = step, plain_step
        self._is_finite = jax.jit(
            lambda tree: jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
        )

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, metrics.Sums]:
        """Run one step.

        Raises:
          UserError: its result is not finite. The message names where that begins.
        """
        before, number = jax.tree.map(jnp.copy, state), int(state.step) + 1
        state, sums = self._step(state, batch)
        if not int(sums.images) or not self._is_finite((state, sums.loss)):
            raise UserError(
                f"debug_nans: step {number} is not finite. {first_nonfinite(self._plain_step, before, batch)}"
            )
        return state, sums


def first_nonfinite(function: Callable, *args: PyTree) -> str:
    """Return a sentence about the first operation of `function(*args)` whose result is not finite."""
    with jax.debug_nans(True), jax.debug_infs(True):
        try:
            jax.block_until_ready(function(*args))
        except FloatingPointError as error:
            return _explain(error)
    return (
        "Made operation by operation it is finite: the compiled step rounds or sums in another order, close to the "
        "largest number of its type. Compute in float32 (--config.compute_dtype=float32)."
    )


def _explain(error: FloatingPointError) -> str:
    """Return which operation made the number, in which layer and line.

    JAX raises inside the operation, so the layer is the innermost Flax module that is being called. In the backward
    pass and in the update no module is.
    """
    found = re.search(r"\((nan|inf)\) encountered in (\S+?)\.?$", str(error).splitlines()[0])
    kind, operation = ({"nan": "NaN", "inf": "infinity"}[found[1]], found[2]) if found else ("NaN", "an operation")
    layer, line = "the backward pass or the update", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module.path:
            layer = f"{'/'.join(module.path)} (forward)"
        _, package, path = frame.f_code.co_filename.rpartition("resnext_jax/")
        line = f", {package}{path}:{number}" if package else line
    return f"The first {kind} is the result of `{operation}` in {layer}{line}."
