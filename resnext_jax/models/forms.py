"""Figure 3 of the paper, three forms of one block, and the exact maps between their parameters both ways.

The networks are made of (c): `Grouped` has the parameters of `resnext.Bottleneck`. With `kernels_px=(3, 3)` the same is
Figure 4: paths of depth 2 are nothing but a wider dense block, for there is no convolution left to be grouped.
"""

import functools
import operator

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnext_jax.errors import UserError
from resnext_jax.models.layers import BatchNorm, Conv, ConvBN, Numerics
from resnext_jax.types import PyTree

Images = Float[Array, "batch height width in_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]


class Form(nn.Module):
    """What the three forms have in common."""

    features: int  # channels of the output
    cardinality: int  # the number of paths C
    path_width: int  # the channels d of a path
    stride: int  # stride of the first 3x3
    numerics: Numerics
    kernels_px: tuple[int, ...] = (1, 3, 1)  # kernels of a path, from first to last

    @nn.nowrap
    def first_convs(self, x: Images, width: int, groups: int, *, train: bool) -> Outputs:
        """Return x after all convolutions but the last. The first reads all channels; those after it are grouped."""
        for number, kernel_px in enumerate(self.kernels_px[:-1], start=1):
            stride, groups_of = self.stride if kernel_px == 3 else 1, 1 if number == 1 else groups
            conv = ConvBN(width, kernel_px, self.numerics, stride=stride, groups=groups_of, name=f"conv{number}")
            x = nn.relu(conv(x, train=train))
        return x

    @nn.nowrap
    def paths(self, x: Images, *, whole: bool, train: bool) -> list[Outputs]:
        """Return the outputs of the C paths."""
        common = self.features, self.cardinality, self.path_width, self.stride, self.numerics, self.kernels_px
        return [Path(*common, whole, name=f"path{n + 1}")(x, train=train) for n in range(self.cardinality)]

    @nn.nowrap
    def last_conv(self, y: Images, *, train: bool) -> Outputs:
        """Return the last convolution of y, with batch norm."""
        return ConvBN(self.features, self.kernels_px[-1], self.numerics, name=f"conv{self.depth}")(y, train=train)

    @nn.nowrap
    def add_shortcut(self, x: Images, y: Outputs, *, train: bool) -> Outputs:
        """Return the ReLU of y and x, which is projected where the block changes the shape."""
        project = ConvBN(self.features, 1, self.numerics, stride=self.stride, name="shortcut_conv")
        return nn.relu(y + (x if x.shape == y.shape else project(x, train=train)))

    @property
    def depth(self) -> int:
        """The number of convolutions."""
        return len(self.kernels_px)


class Path(Form):
    """One path: the convolutions with batch norm and ReLU; where it is `whole` also the last one, alone."""

    whole: bool = True

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        y = self.first_convs(x, self.path_width, 1, train=train)
        if not self.whole:
            return y
        return Conv(self.features, self.kernels_px[-1], self.numerics, name=f"conv{self.depth}")(y)


class Summed(Form):
    """(a) C paths of 1x1, 3x3 and 1x1, summed. The last batch norm comes after the sum, before the shortcut."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        y = functools.reduce(operator.add, self.paths(x, whole=True, train=train))
        y = BatchNorm(self.numerics.bn_group_images, name=f"bn{self.depth}")(y, train=train)
        return self.add_shortcut(x, y, train=train)


class Concatenated(Form):
    """(b) C paths of 1x1 and 3x3, concatenated, and one 1x1."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        y = jnp.concatenate(self.paths(x, whole=False, train=train), axis=-1)
        return self.add_shortcut(x, self.last_conv(y, train=train), train=train)


class Grouped(Form):
    """(c) 1x1, grouped 3x3, 1x1, each as wide as all paths together."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Outputs:
        y = self.first_convs(x, self.cardinality * self.path_width, self.cardinality, train=train)
        return self.add_shortcut(x, self.last_conv(y, train=train), train=train)


# ---- The maps


def to_paths(variables: PyTree, form: type[Summed] | type[Concatenated], cardinality: int) -> PyTree:
    """Return the parameters and statistics of (c) as those of (a) or (b): an array that spans the paths is cut into C.

    Args:
      variables: `params` and `batch_stats` of a `Grouped` (or a `Bottleneck`), or any tree like `params`: gradients.
      form: (a) or (b).
      cardinality: the number of paths C.

    Raises:
      UserError: C does not divide the width.
    """
    result = {}
    for kind, modules in variables.items():
        axes = _path_axes(modules, form)
        result[kind] = {module: arrays for module, arrays in modules.items() if module not in axes}
        for number in range(cardinality):
            result[kind][f"path{number + 1}"] = {
                module: {
                    name: _cut(array, cardinality, axes[module])[number] for name, array in modules[module].items()
                }
                for module in axes
            }
    return result


def to_grouped(variables: PyTree, form: type[Summed] | type[Concatenated]) -> PyTree:
    """Return the parameters and statistics of (a) or (b) as those of (c); the inverse of `to_paths`."""
    result = {}
    for kind, modules in variables.items():
        result[kind] = {module: arrays for module, arrays in modules.items() if not module.startswith("path")}
        paths = [modules[f"path{number + 1}"] for number in range(len(modules) - len(result[kind]))]
        axes = _path_axes(result[kind] | paths[0], form)
        for module, arrays in paths[0].items():
            result[kind][module] = {
                name: jnp.concatenate([path[module][name] for path in paths], axis=axes[module]) for name in arrays
            }
    return result


def _path_axes(modules: PyTree, form: type[Summed] | type[Concatenated]) -> dict[str, int]:
    """Return the dimension in which a module's arrays span the paths, for those that do.

    All convolutions but the last put paths out; the last takes paths in, and each path of (a) has its part of it.
    """
    last = max(int(module[-1]) for module in modules if module[:2] == "bn")
    axes = {f"{name}{number}": axis for number in range(1, last) for name, axis in (("conv", 3), ("bn", 0))}
    axes |= {f"conv{last}": 2} if form is Summed else {}
    return {module: axis for module, axis in axes.items() if module in modules}


def _cut(array: Array, cardinality: int, axis: int) -> list[Array]:
    width = array.shape[axis]
    if width % cardinality:
        raise UserError(
            f"cardinality {cardinality} does not divide the {width} channels of this block. Take a divisor of {width}."
        )
    return jnp.split(array, cardinality, axis)
