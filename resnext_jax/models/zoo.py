"""The networks by name: one row each, nothing else to write for a new one."""

import dataclasses

import jax.numpy as jnp

from resnext_jax.errors import UserError, unknown
from resnext_jax.models.template import CIFAR_STEM, SMALL_STEM, Arch, Block, ResNeXt
from resnext_jax.ops.conv_choice import resolver

# Blocks per stage by depth (Table 1; He et al. 2015, Table 1). Below 50 layers the block is the basic one.
IMAGENET_BLOCKS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
FAMILIES = ("imagenet", "cifar")


def by_depth(
    depth: int, cardinality: int = 1, bottleneck_width: int = 64, family: str = "imagenet", shortcut: bool = True
) -> Arch:
    """The template at a depth, with `cardinality` paths of `bottleneck_width` channels (in the first stage).

    Args:
      depth: 18, 34, 50, 101 or 152 for "imagenet"; 9n + 2 (11, 20, 29, ...) for "cifar".
      cardinality: C >= 1; the basic blocks of depth 18 and 34 have no paths and take only 1.
      bottleneck_width: d >= 1.
      family: "imagenet" (7x7 stem, pooling, four stages) or "cifar" (3x3 stem, three stages).
      shortcut: False removes the residual connections.

    Raises:
      UserError: a family or depth that does not exist, or a cardinality that the block cannot have.
    """
    problems = []
    if family not in FAMILIES:
        raise UserError(unknown("model.family", family, FAMILIES))
    if cardinality < 1 or bottleneck_width < 1:
        problems.append(
            f"model.cardinality={cardinality} and model.bottleneck_width={bottleneck_width}: both must be 1 or more."
        )
    if family == "imagenet":
        if depth not in IMAGENET_BLOCKS:
            problems.append(
                f"model.depth={depth}: the ImageNet depths are {sorted(IMAGENET_BLOCKS)}; take one of them."
            )
        block, blocks = IMAGENET_BLOCKS.get(depth, ("bottleneck", ()))
    else:
        num_blocks, rest = divmod(depth - 2, 9)
        if rest or num_blocks < 1:
            problems.append(f"model.depth={depth}: a CIFAR network has 9n + 2 layers (11, 20, 29, 38, ...); take one.")
        block, blocks = "bottleneck", (num_blocks,) * 3
    if block == "basic" and (cardinality, bottleneck_width) != (1, 64):
        problems.append(
            f"model.depth={depth} is made of basic blocks, which have no paths: leave model.cardinality at 1 and "
            "model.bottleneck_width at 64, or take depth 50, 101 or 152."
        )
    if problems:
        raise UserError(*problems)
    if family == "cifar":
        return Arch(block, blocks, cardinality, bottleneck_width, stem=CIFAR_STEM, shortcut=shortcut)
    return Arch(block, blocks, cardinality, bottleneck_width, shortcut=shortcut)


ARCHS: dict[str, Arch] = {
    # ResNets: the baselines of Tables 3 and 4.
    "resnet18": by_depth(18),
    "resnet34": by_depth(34),
    "resnet50": by_depth(50),
    "resnet101": by_depth(101),
    "resnet152": by_depth(152),
    # Table 3: cardinality against width at equal complexity.
    "resnext50_2x40d": by_depth(50, 2, 40),
    "resnext50_4x24d": by_depth(50, 4, 24),
    "resnext50_8x14d": by_depth(50, 8, 14),
    "resnext50_32x4d": by_depth(50, 32, 4),
    "resnext101_2x40d": by_depth(101, 2, 40),
    "resnext101_4x24d": by_depth(101, 4, 24),
    "resnext101_8x14d": by_depth(101, 8, 14),
    "resnext101_32x4d": by_depth(101, 32, 4),
    # Table 4: wider, or more paths.
    "resnet101_1x100d": by_depth(101, 1, 100),
    "resnext101_2x64d": by_depth(101, 2, 64),
    "resnext101_64x4d": by_depth(101, 64, 4),
    # Usual neighbours.
    "resnext101_32x8d": by_depth(101, 32, 8),
    "resnext152_32x4d": by_depth(152, 32, 4),
    # CIFAR, Table 7.
    "resnext29_8x64d": by_depth(29, 8, 64, "cifar"),
    "resnext29_16x64d": by_depth(29, 16, 64, "cifar"),
    # 28 px images on a CPU: the quickstart; and the smallest that still has every part, for tests.
    "resnext20_8x4d_small": Arch("bottleneck", (2, 2, 2), 8, 4, stem=SMALL_STEM, width=16),
    "resnext11_4x2d_tiny": Arch("bottleneck", (1, 1, 1), 4, 2, stem=SMALL_STEM, width=4),
}


def select(
    name: str = "",
    *,
    family: str = "imagenet",
    depth: int = 50,
    cardinality: int = 32,
    bottleneck_width: int = 4,
    shortcut: bool = True,
) -> Arch:
    """The network of a config's `model` fields: the row `name` of `ARCHS`, or where it is empty the one `by_depth`.

    Raises:
      UserError: there is no such row (the close matches are named) or no such depth.
    """
    if not name:
        return by_depth(depth, cardinality, bottleneck_width, family, shortcut)
    if name not in ARCHS:
        raise UserError(unknown("model.name", name, ARCHS))
    return dataclasses.replace(ARCHS[name], shortcut=shortcut)


DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def build_model(
    arch: Arch,
    num_classes: int,
    *,
    platform: str,
    chip: str = "",
    conv_impl: str,
    compute_dtype: str,
    bn_group_images: int,
) -> ResNeXt:
    """The network with everything chosen that is no part of its mathematics.

    Args:
      arch: of `select`.
      num_classes: of the data set.
      platform: "cpu", "gpu" or "tpu": whom the convolution algorithms are chosen for.
      chip: which one; see `ops.conv_choice.choose`.
      conv_impl: "auto", or the one algorithm for every convolution (`ops.grouped_conv.algorithm`).
      compute_dtype: "bfloat16" or "float32", of the activations.
      bn_group_images: images per batch-norm group, 0 for the whole batch.

    Raises:
      UserError: an unknown algorithm or dtype.
    """
    if compute_dtype not in DTYPES:
        raise UserError(unknown("compute_dtype", compute_dtype, DTYPES))
    return ResNeXt(arch, num_classes, resolver(conv_impl, platform, chip), bn_group_images, DTYPES[compute_dtype])
