"""Figure 3 of the paper, three forms of one block, and the exact maps between their parameters both ways.

The networks are made of (c): `Grouped` has the parameters of `blocks.Bottleneck`. With `kernels_px=(3, 3)` the same is
Figure 4: paths of depth 2 are nothing but a wider dense block, for there is no convolution left to be grouped.

Attributes: `features`, channels of the output; `cardinality`, the paths C; `path_width`, the channels d of a path;
`stride`, of the first 3x3; `conv` and `norm` come from outside, as in `blocks`.
"""

import functools
import operator
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnext_jax.errors import UserError
from resnext_jax.types import PyTree

Layer = Callable[..., nn.Module]
Images = Float[Array, "batch height width in"]


class Summed(nn.Module):
    """(a) C paths of 1x1, 3x3 and 1x1, summed. The last batch norm comes after the sum, before the shortcut."""

    features: int
    cardinality: int
    path_width: int
    stride: int
    conv: Layer
    norm: Layer
    kernels_px: tuple[int, ...] = (1, 3, 1)

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Array:
        y = functools.reduce(operator.add, _paths(self, x, features=self.features, train=train))
        y = self.norm(name=f"bn{len(self.kernels_px)}")(y, train=train)
        return nn.relu(y + _shortcut(self, x, y, train=train))


class Concatenated(nn.Module):
    """(b) C paths of 1x1 and 3x3, concatenated, and one 1x1."""

    features: int
    cardinality: int
    path_width: int
    stride: int
    conv: Layer
    norm: Layer
    kernels_px: tuple[int, ...] = (1, 3, 1)

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Array:
        y = jnp.concatenate(_paths(self, x, features=None, train=train), axis=-1)
        y = _last_conv(self, y, self.features, norm=self.norm(name=f"bn{len(self.kernels_px)}"), train=train)
        return nn.relu(y + _shortcut(self, x, y, train=train))


class Grouped(nn.Module):
    """(c) 1x1, grouped 3x3, 1x1, each as wide as all paths together."""

    features: int
    cardinality: int
    path_width: int
    stride: int
    conv: Layer
    norm: Layer
    kernels_px: tuple[int, ...] = (1, 3, 1)

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Array:
        y = _first_convs(self, x, self.cardinality * self.path_width, self.cardinality, train=train)
        y = _last_conv(self, y, self.features, norm=self.norm(name=f"bn{len(self.kernels_px)}"), train=train)
        return nn.relu(y + _shortcut(self, x, y, train=train))


Form = Summed | Concatenated | Grouped


class Path(nn.Module):
    """One path: the convolutions with batch norm and ReLU; with `features` also the last one, alone."""

    width: int
    kernels_px: tuple[int, ...]
    stride: int
    conv: Layer
    norm: Layer
    features: int | None

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Array:
        y = _first_convs(self, x, self.width, 1, train=train)
        return y if self.features is None else _last_conv(self, y, self.features, norm=None, train=train)


def _paths(form: Summed | Concatenated, x: Images, *, features: int | None, train: bool) -> list[Array]:
    common = form.path_width, form.kernels_px, form.stride, form.conv, form.norm, features
    return [Path(*common, name=f"path{number + 1}")(x, train=train) for number in range(form.cardinality)]


def _first_convs(form: Form | Path, x: Images, width: int, groups: int, *, train: bool) -> Array:
    """All convolutions but the last. The first reads all channels, only those after it can be in groups."""
    for number, kernel_px in enumerate(form.kernels_px[:-1], start=1):
        stride = form.stride if kernel_px == 3 else 1
        conv = form.conv(width, kernel_px, stride=stride, groups=1 if number == 1 else groups, name=f"conv{number}")
        x = nn.relu(conv(x, norm=form.norm(name=f"bn{number}"), train=train))
    return x


def _last_conv(form: Form | Path, x: Array, features: int, *, norm: nn.Module | None, train: bool) -> Array:
    last = len(form.kernels_px)
    return form.conv(features, form.kernels_px[-1], name=f"conv{last}")(x, norm=norm, train=train)


def _shortcut(form: Form, x: Images, y: Array, *, train: bool) -> Array:
    if x.shape == y.shape:
        return x
    conv = form.conv(form.features, 1, stride=form.stride, name="shortcut_conv")
    return conv(x, norm=form.norm(name="shortcut_bn"), train=train)


# ---- The maps


def to_paths(variables: PyTree, form: type[Summed] | type[Concatenated], cardinality: int) -> PyTree:
    """The parameters and statistics of (c) as those of (a) or (b): every array that spans the paths is cut into C.

    Args:
      variables: `params` and `batch_stats` of a `Grouped` (or a `Bottleneck`), or any tree like `params`: gradients.
      form: whose they become.
      cardinality: C.

    Raises:
      UserError: it does not divide the width.
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
    """The parameters and statistics of (a) or (b) as those of (c); the inverse of `to_paths`."""
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
    """The dimension in which a module's arrays span the paths, for those that do.

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
