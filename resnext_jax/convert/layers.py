"""Find the layers of a network, in the order in which they are applied, by tracing it."""

import collections
import dataclasses
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
from flax import traverse_util

from resnext_jax.models import zoo
from resnext_jax.ops.keys import seed_key

Kind = Literal["conv", "norm", "linear"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module with arrays.

    Attributes:
      path: path in the tree of parameters: ("stage2", "block1", "conv1").
      shapes: shapes of the arrays: `kernel` and perhaps `bias`, or `scale`, `bias`, `mean`, `var`.
      stride: stride of a convolution; 1 for other layers.
    """

    path: tuple[str, ...]
    kind: Kind
    shapes: dict[str, tuple[int, ...]]
    stride: int


def layers_of(name: str, num_classes: int) -> list[Layer]:
    """Return the layers of a row of the zoo for color images, in order; raises UserError if there is no such row.

    A projection comes after its main branch.
    """
    options: Any = dict(platform="cpu", conv_impl="native", compute_dtype="float32", bn_group_images=0)
    model = zoo.build_model(zoo.select(name), num_classes, **options)
    modules: dict[tuple[str, ...], nn.Module] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__":
            modules.setdefault(context.module.path, context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            partial(model.init, train=False), seed_key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
        )
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(variables)
    shapes = collections.defaultdict(dict)
    for (_, *path, array), leaf in flat.items():
        shapes[tuple(path)][array] = tuple(leaf.shape)
    layers = []
    for path, module in modules.items():
        if arrays := shapes.get(path):
            kind: Kind = "norm" if "scale" in arrays else "conv" if len(arrays["kernel"]) == 4 else "linear"
            layers.append(Layer(path, kind, arrays, getattr(module, "stride", 1)))
    return layers
