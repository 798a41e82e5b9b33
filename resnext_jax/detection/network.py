"""The two networks of Faster R-CNN on a ResNet or ResNeXt, which share nothing (appendix B; He et al. 2015).

All stages but the last are the trunk: conv1 to conv4, of stride 16. The RPN reads its outputs at every cell. In the
Fast R-CNN network the last stage, conv5, reads the features of each region. Both have the parameters of the
classification network under the same names, so its weights fit. Batch norm always uses the running statistics.

Images come with padding at the right and at the bottom. Everything that reads more than one pixel sees zeros there, as
at the border of an image without padding; so the outputs of the image's part do not depend on the padding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from resnext_jax.detection import roi
from resnext_jax.errors import UserError
from resnext_jax.models.arch import Arch
from resnext_jax.models.layers import BatchNorm, Conv, ConvBN, Numerics
from resnext_jax.models.resnext import Stage
from resnext_jax.ops.conv_choice import ConvShape
from resnext_jax.ops.pool import global_average, max_pool
from resnext_jax.types import PyTree

Images = Float[Array, "batch height width channel"]
Features = Float[Array, "batch out_height out_width out_channels"]
Sizes = Float[Array, "batch 2"]

POOLS = {"max": roi.roi_max_pool, "align": roi.roi_align}
# The new layers (py-faster-rcnn's prototxt files): always in float32, as the classifier of the other task.
new_layer = partial(nn.Dense, dtype=jnp.float32, precision="highest")


def require_trunk(name: str, arch: object) -> Arch:
    """Return the network if it can be trunk and head; raise UserError if it is no ResNet or ResNeXt.

    Args:
      name: its name, for the message.
      arch: a row of the zoo.
    """
    if isinstance(arch, Arch):
        return arch
    raise UserError(
        f"model.name={name!r} cannot detect objects: only a ResNet or a ResNeXt is split into trunk and head. Take one "
        "of them, such as resnext50_32x4d."
    )


def stride_px(arch: Arch) -> int:
    """Return the distance of neighboring cells of the trunk's outputs: 16 for the networks of ImageNet."""
    return arch.stem.stride * (2 if arch.stem.pool else 1) * 2 ** (len(arch.blocks) - 2)


def size_cells(size_px: Float[Array, "*dims 2"], stride_px: int) -> Int[Array, "*dims 2"]:
    """Return height and width of the image's part of a feature map; every layer of stride 2 rounds up."""
    return jnp.ceil(size_px / stride_px).astype(jnp.int32)


def mask_padding(x: Float[Array, "batch height width *channels"], size_px: Sizes, canvas: tuple[int, int]) -> Array:
    """Return x with zeros outside the images.

    Args:
      x: activations of any stage.
      size_px: height and width of each image.
      canvas: height and width of the images with padding; they tell the stride of x.
    """
    height, width = x.shape[1:3]
    stride, sides = 1, canvas
    while sides != (height, width):
        stride, sides = 2 * stride, (-(-sides[0] // 2), -(-sides[1] // 2))
    cells = size_cells(size_px, stride)
    in_rows = jnp.arange(height, dtype=jnp.int32)[None] < cells[:, :1]
    in_columns = jnp.arange(width, dtype=jnp.int32)[None] < cells[:, 1:]
    inside: Bool[Array, "batch height width"] = in_rows[:, :, None] & in_columns[:, None]
    return jnp.where(inside.reshape(*inside.shape, *(1,) * (x.ndim - 3)), x, 0)


def _trunk(arch: Arch, numerics: Numerics, images: Images, size_px: Sizes) -> Features:
    """Return the outputs of all stages but the last; the layers belong to the module that calls it."""
    mask = partial(mask_padding, size_px=size_px, canvas=(images.shape[1], images.shape[2]))

    def mask_inputs(layer: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, Conv) and module.kernel_px > 1 and context.method_name == "__call__":
            args = (mask(args[0]), *args[1:])
        return layer(*args, **kwargs)

    stem = arch.stem
    conv = ConvBN(arch.width, stem.kernel_px, numerics, stride=stem.stride, name="stem_conv")
    with nn.intercept_methods(mask_inputs):
        x = nn.relu(conv(images, train=False))
        # Zeros are as good as no values: nothing is smaller after a ReLU.
        x = max_pool(mask(x)) if stem.pool else x
        for index in range(len(arch.blocks) - 1):
            x = Stage(arch, index, numerics, name=f"stage{index + 2}")(x, train=False, keys=None)
    return mask(x)


class RpnNetwork(nn.Module):
    """The trunk and the RPN's head: a 3x3 convolution, and of each cell a logit and a box code for each anchor.

    Call it with normalized images and their sizes without padding. The anchors are in the order of `anchors.grid`.
    """

    arch: Arch
    choose_conv: Callable[[ConvShape], str]  # see `layers.Numerics`
    num_anchors: int = 12  # of a cell
    channels: int = 1024
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Images, size_px: Sizes
    ) -> tuple[Float[Array, "batch anchors"], Float[Array, "batch anchors 4"]]:
        normal = nn.initializers.normal(0.01)
        x = _trunk(self.arch, Numerics(self.choose_conv, dtype=self.dtype), images, size_px)
        x = nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype, kernel_init=normal, name="rpn_conv")(x)
        x = nn.relu(x).astype(jnp.float32)
        logits = new_layer(self.num_anchors, kernel_init=normal, name="rpn_score")(x)
        deltas = new_layer(4 * self.num_anchors, kernel_init=normal, name="rpn_box")(x)
        return logits.reshape(len(x), -1), deltas.reshape(len(x), -1, 4)


class FastNetwork(nn.Module):
    """The trunk, features of regions, the last stage as head, and of each region classes and a box for each class.

    Call it with normalized images, their sizes without padding, and regions in pixels of the images; it returns logits,
    of the background first, and box codes for each class, in units of `sampling.REGION_STD`.
    """

    arch: Arch
    num_classes: int  # without the background
    choose_conv: Callable[[ConvShape], str]  # see `layers.Numerics`
    pool: str = "max"  # a name in `POOLS`
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Images, size_px: Sizes, regions: Float[Array, "batch regions 4"]
    ) -> tuple[Float[Array, "batch regions classes_and_background"], Float[Array, "batch regions classes 4"]]:
        numerics = Numerics(self.choose_conv, dtype=self.dtype)
        x = _trunk(self.arch, numerics, images, size_px)
        stride = stride_px(self.arch)
        pool = jax.vmap(partial(POOLS[self.pool], stride_px=stride))
        pooled = pool(x, regions, size_cells=size_cells(size_px, stride))
        x = pooled.reshape(-1, *pooled.shape[2:])

        last = len(self.arch.blocks) - 1
        x = Stage(self.arch, last, numerics, name=f"stage{last + 2}")(x, train=False, keys=None)
        if self.arch.preactivation:
            x = nn.relu(BatchNorm(numerics.bn_group_images, name="final_bn")(x, train=False))
        x = global_average(x).reshape(*regions.shape[:2], -1)
        logits = new_layer(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), name="class_score")(x)
        deltas = new_layer(4 * self.num_classes, kernel_init=nn.initializers.normal(0.001), name="class_box")(x)
        return logits, deltas.reshape(*regions.shape[:2], self.num_classes, 4)


def frozen(params: PyTree, num_stages: int = 2) -> PyTree:
    """Return which parameters are not trained, as a tree of bools: those of all batch norms and of the first stages.

    Args:
      params: parameters of one of the networks.
      num_stages: stages that are not trained, from conv1 on; 0 trains all convolutions.
    """
    stages = {f"stage{number}" for number in range(2, num_stages + 1)} | ({"stem_conv"} if num_stages else set())

    def is_frozen(path: tuple[Any, ...], leaf: Any) -> bool:
        stage, layer = path[0].key, path[-2].key
        return stage in stages or layer.startswith("bn") or layer.endswith("_bn")

    return jax.tree.map_with_path(is_frozen, params)


def freeze(params: PyTree, num_stages: int = 2) -> PyTree:
    """Return the parameters with no gradient for those that are not trained; see `frozen`.

    The backward pass then ends at the first layer that is trained.
    """
    return jax.tree.map(
        lambda is_frozen, leaf: jax.lax.stop_gradient(leaf) if is_frozen else leaf, frozen(params, num_stages), params
    )
