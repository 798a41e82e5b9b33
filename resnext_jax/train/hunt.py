"""`--config.debug_nans`: where in the step the first number appears that is not finite.

The compiled step says only that there is one. Then the same step is made once more from the state before it, operation
by operation and without sharding, and the first one is named that makes such a number out of finite ones.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from resnext_jax import metrics
from resnext_jax.errors import UserError
from resnext_jax.types import Batch, PyTree, TrainState

# Operations that are nothing but the program inside them.
CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


class Hunter:
    """Watches every step. It keeps a copy of the state, and waits for each step.

    Args:
      step: (state, batch) -> (state, sums), to be traced: the step without jit, sharding, and skipping.
    """

    def __init__(self, step: Callable):
        self._step = step
        self._is_finite = jax.jit(
            lambda state: jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)])
        )

    def before(self, state: TrainState, batch: Batch) -> None:
        """Called with what a step takes, which it may donate."""
        self._copy = jax.tree.map(jnp.copy, state), batch

    def after(self, step: int, state: TrainState, sums: metrics.Sums) -> None:
        """Called with what it gave.

        Raises:
          UserError: it is not finite; where that began is named.
        """
        skipped = not int(sums.images)
        if skipped or not (jnp.isfinite(sums.loss) and self._is_finite(state).all()):
            raise UserError(f"debug_nans: step {step} is not finite. {first_nonfinite(self._step, *self._copy)}")


def first_nonfinite(function: Callable, *args: PyTree) -> str:
    """A sentence about the first operation of `function(*args)` whose result is not finite though its inputs are."""
    flat, tree = jax.tree.flatten(args)
    program = jax.make_jaxpr(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)))(*flat)
    try:
        _run(program.jaxpr, program.consts, flat, "")
    except _Found as found:
        return str(found)
    return (
        "Made operation by operation it is finite: the compiled step rounds or sums in another order, close to the "
        "largest number of its type. Compute in float32 (--config.compute_dtype=float32)."
    )


class _Found(Exception):
    pass


def _run(program: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], prefix: str) -> list[Any]:
    """Evaluates a program equation by equation."""
    values: dict[Any, Any] = dict(zip([*program.constvars, *program.invars], [*consts, *args], strict=True))
    last_use = {var: i for i, equation in enumerate(program.eqns) for var in _variables(equation.invars)}
    for index, equation in enumerate(program.eqns):
        inputs = _read(values, equation.invars)
        path = "/".join(part for part in (prefix, str(equation.source_info.name_stack)) if part)
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and inner is not None:
            closed = isinstance(inner, core.ClosedJaxpr)
            outputs = _run(inner.jaxpr if closed else inner, inner.consts if closed else (), inputs, path)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **params)
            outputs = list(outputs) if equation.primitive.multiple_results else [outputs]
            if not _finite(outputs) and _finite(inputs):
                raise _Found(_sentence(equation.primitive.name, path, inputs, outputs))
        values |= zip(equation.outvars, outputs, strict=True)
        for var in set(_variables(equation.invars)) - set(_variables(program.outvars)):
            if last_use[var] == index:
                del values[var]  # memory: a step's activations, one by one
    return _read(values, program.outvars)


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _read(values: dict[Any, Any], atoms: Sequence[Any]) -> list[Any]:
    return [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in atoms]


def _floats(values: Sequence[Any]) -> list[jax.Array]:
    arrays = [value for value in values if hasattr(value, "dtype") or isinstance(value, float)]
    return [jnp.asarray(array) for array in arrays if jnp.issubdtype(jnp.result_type(array), jnp.floating)]


def _finite(values: Sequence[Any]) -> bool:
    return all(bool(jnp.isfinite(array).all()) for array in _floats(values))


def _sentence(name: str, path: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    """What was made where, of what.

    >>> _layer("transpose(jvp(ResNeXt))/stage3/block1/conv2"), _layer("jvp(loss)"), _layer("")
    ('stage3/block1/conv2 (backward)', 'loss (forward)', 'the step itself')
    """
    bad = next(array for array in _floats(outputs) if not jnp.isfinite(array).all())
    kinds = [word for word, found in (("NaN", jnp.isnan(bad)), ("infinity", jnp.isinf(bad))) if found.any()]
    ranges = [f"{array.min():.3g} to {array.max():.3g}" for array in _floats(inputs) if array.size]
    return (
        f"The first {' and '.join(kinds)} is the result of `{name}` in {_layer(path)}, {bad.dtype} {bad.shape}; its "
        f"inputs are finite: {', '.join(ranges) or 'none'}."
    )


def _layer(path: str) -> str:
    """The layer of a path that JAX has noted, and whether it is its backward pass."""
    words = [word for word in re.split(r"[/()]+", path) if word not in ("", "jvp", "transpose", "vmap", "ResNeXt")]
    if not words:
        return "the step itself"
    where = "" if "update" in words else " (backward)" if "transpose" in path else " (forward)"
    return "/".join(dict.fromkeys(words)) + where
