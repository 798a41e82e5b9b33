"""What a network costs, counted in its traced program."""

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resnext_jax.models.zoo import Network
from resnext_jax.ops.keys import seed_key

Place = tuple[str, ...]  # ("stage2", "block1", "conv1")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Costs of a network or a part of it."""

    params: int = 0
    multiply_adds: int = 0
    activations: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(ours + theirs for ours, theirs in pairs))


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or matrix product."""

    place: Place
    counts: Counts
    size_px: tuple[int, ...] | None  # height and width of the outputs of a convolution


def multiply_adds(model: Network, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of one image, forward, in convolutions and the classifier: what papers call FLOPs.

    They do not depend on the algorithms: the zeros of merged groups do not count, and windows count as a whole, also
    where they reach into the padding.

    Args:
      image_shape: (height, width, channel).
    """
    plain = model.clone(choose_conv=lambda shape: "native", dtype=jnp.dtype("float32"))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # Initialising runs the network, and draws parameters without any product.
    program = jax.make_jaxpr(partial(plain.init, train=False))(seed_key(0), image)
    return sum(found.counts.multiply_adds for found in products(program.jaxpr))


def products(jaxpr: Any, outside: Place = ()) -> Iterator[Product]:
    """Yield every convolution and matrix product of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        place = outside + modules_of(str(equation.source_info.name_stack))
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
            numbers = parameters["dimension_numbers"]
            outputs, window = math.prod(out), math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            size_px = tuple(out[dimension] for dimension in numbers.out_spec[2:])
            yield Product(place, Counts(0, outputs * window, outputs), size_px)
        elif name == "dot_general":
            contracted = parameters["dimension_numbers"][0][0]
            terms = math.prod(equation.invars[0].aval.shape[dimension] for dimension in contracted)
            yield Product(place, Counts(0, math.prod(equation.outvars[0].aval.shape) * terms, 0), None)
        for inner in inner_jaxprs(parameters):
            yield from products(inner, place)


def inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among the parameters of an operation."""
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def modules_of(name_stack: str) -> Place:
    """Return (stage2, block1, conv1) for `ResNeXt/stage2/block1/conv1`: no network, nothing that JAX adds."""
    words = name_stack.split("/") if name_stack else []
    return stem_together(
        tuple(word for word in words if re.fullmatch(r"[a-z]+\d+|[a-z]+_(conv|bn)|transition|classifier", word))
    )


def stem_together(place: Place) -> Place:
    """Return (stem, conv, kernel) for (stem_conv, kernel): the stem is one part, as a stage is."""
    return ("stem", place[0].removeprefix("stem_"), *place[1:]) if place and place[0].startswith("stem_") else place
