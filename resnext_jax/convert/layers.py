"""The layers of one of our networks in the order in which they are applied, found by tracing it."""

import dataclasses
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax

from resnext_jax.models import zoo
from resnext_jax.types import PyTree

Kind = Literal["conv", "norm", "linear"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that has arrays of its own.

    Attributes:
      path: its name in the tree of parameters: ("stage2", "block1", "conv1").
      kind: "conv", "norm" or "linear".
      shapes: of its arrays: `kernel` and perhaps `bias`, or `scale`, `bias`, `mean`, `var`.
      stride: of a convolution.
    """

    path: tuple[str, ...]
    kind: Kind
    shapes: dict[str, tuple[int, ...]]
    stride: int


def layers_of(name: str, num_classes: int) -> list[Layer]:
    """The layers of a row of the zoo, for colour images; a projection comes after the branch that it goes beside.

    Raises:
      UserError: there is no such row; the close matches are named.
    """
    model = zoo.build_model(
        zoo.select(name),
        num_classes,
        platform="cpu",
        conv_impl="native",
        compute_dtype="float32",
        bn_group_images=0,
    )
    modules: dict[tuple[str, ...], nn.Module] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__":
            modules.setdefault(context.module.path, context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            partial(model.init, train=False), jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
        )
    layers = []
    for path, module in modules.items():
        shapes = {
            array: tuple(leaf.shape)
            for collection in ("params", "batch_stats")
            for array, leaf in _at(variables.get(collection, {}), path).items()
            if not isinstance(leaf, dict)
        }
        if shapes:
            kind = "norm" if "scale" in shapes else "conv" if len(shapes["kernel"]) == 4 else "linear"
            layers.append(Layer(path, kind, shapes, getattr(module, "stride", 1)))
    return layers


def _at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    for name in path:
        tree = tree.get(name, {})
    return tree
