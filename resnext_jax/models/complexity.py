"""What a network costs, counted in its traced program."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from resnext_jax.models.zoo import Network


def multiply_adds(model: Network, image_shape: tuple[int, int, int]) -> int:
    """Of one image, forward, in convolutions and the classifier: the figure that papers call FLOPs.

    The network's own, whichever algorithms compute it: no multiplications by the zeros of merged groups, every window
    whole where it reaches into the padding.

    Args:
      model: the network.
      image_shape: (height, width, channel).
    """
    plain = model.clone(choose_conv=lambda shape: "native", dtype=jnp.dtype("float32"))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(partial(plain.init, train=False), jax.random.key(0), image)
    program = jax.make_jaxpr(partial(plain.apply, train=False))(variables, image)
    return sum(_multiply_adds(equation) for equation in _equations(program.jaxpr))


def _equations(program: core.Jaxpr) -> Iterator[Any]:
    """Every equation, those of inner programs too."""
    for equation in program.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


def _multiply_adds(equation: Any) -> int:
    if equation.primitive.name == "conv_general_dilated":
        left, right = (variable.aval.shape for variable in equation.invars)
        per_output = math.prod(right) // right[equation.params["dimension_numbers"].rhs_spec[0]]
    elif equation.primitive.name == "dot_general":
        left, right = (variable.aval.shape for variable in equation.invars)
        (contracted, _), _ = equation.params["dimension_numbers"]
        per_output = math.prod(left[dimension] for dimension in contracted)
    else:
        return 0
    return math.prod(equation.outvars[0].aval.shape) * per_output
