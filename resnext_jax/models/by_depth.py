"""The template by numbers: a depth, a cardinality, a width."""

from resnext_jax.errors import UserError, unknown
from resnext_jax.models.template import CIFAR_STEM, IMAGENET_STEM, SMALL_STEM, Arch, Block

# Blocks per stage by depth (Table 1; He et al. 2015, Table 1). Below 50 layers the block is the basic one.
IMAGENET_BLOCKS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}
# The stem, and n: channels of the stem, a quarter of what the first stage puts out.
FAMILIES = {"imagenet": (IMAGENET_STEM, 64), "cifar": (CIFAR_STEM, 64), "small": (SMALL_STEM, 32)}


def by_depth(
    depth: int,
    cardinality: int = 1,
    bottleneck_width: int = 64,
    family: str = "imagenet",
    shortcut: bool = True,
    preactivation: bool = False,
) -> Arch:
    """The template at a depth, with `cardinality` paths of `bottleneck_width` channels (in the first stage).

    Args:
      depth: 18, 34, 50, 101, 152 or 200 for "imagenet"; 9n + 2 (11, 20, 29, ...) for the others.
      cardinality: C >= 1; the basic blocks of depth 18 and 34 have no paths and take only 1.
      bottleneck_width: d >= 1.
      family: "imagenet" (7x7 stem, pooling, four stages), "cifar" (3x3 stem, three stages), or "small": the latter for
        a CPU, with a stem of stride 2 and half as wide, so that 1x32d, 2x20d, 4x12d, 8x7d and 32x2d cost the same.
      shortcut: False removes the residual connections.
      preactivation: see `template.Arch`.

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
            name = "CIFAR" if family == "cifar" else "small"
            problems.append(f"model.depth={depth}: a {name} network has 9n + 2 layers (11, 20, 29, 38, ...); take one.")
        block, blocks = "bottleneck", (num_blocks,) * 3
    if block == "basic" and (cardinality, bottleneck_width) != (1, 64):
        problems.append(
            f"model.depth={depth} is made of basic blocks, which have no paths: leave model.cardinality at 1 and "
            "model.bottleneck_width at 64, or take depth 50, 101 or 152."
        )
    if problems:
        raise UserError(*problems)
    stem, width = FAMILIES[family]
    return Arch(block, blocks, cardinality, bottleneck_width, stem, width, shortcut, preactivation)


def wide_resnet(depth: int, widen: int) -> Arch:
    """The Wide ResNet WRN-d-k for CIFAR: d = 6n + 4 layers (projections count, the classifier does not), k as `widen`.

    Its first batch norm and ReLU, which the first convolution and the projection share, are the stem's.
    """
    return Arch("basic", ((depth - 4) // 6,) * 3, stem=CIFAR_STEM, width=16, preactivation=True, widen=widen)
