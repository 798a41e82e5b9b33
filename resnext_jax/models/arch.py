"""The numbers of a ResNeXt (Table 1): what `resnext.ResNeXt` builds, and how to find them by depth and cardinality."""

import dataclasses
from typing import Literal

from resnext_jax.errors import raise_all, unknown

BlockKind = Literal["basic", "bottleneck"]


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution, and whether a 3x3 max-pool of stride 2 follows."""

    kernel_px: int
    stride: int
    pool: bool


IMAGENET_STEM = Stem(kernel_px=7, stride=2, pool=True)
CIFAR_STEM = Stem(kernel_px=3, stride=1, pool=False)
SMALL_STEM = Stem(kernel_px=3, stride=2, pool=False)


@dataclasses.dataclass(frozen=True)
class Arch:
    """One network of the zoo."""

    block: BlockKind  # "basic" (3x3, 3x3) or "bottleneck" (1x1, grouped 3x3, 1x1)
    blocks: tuple[int, ...]  # number in each stage; from the second stage on, the first block has stride 2
    cardinality: int = 1  # C, the number of paths of a bottleneck
    bottleneck_width: int = 64  # d, the channels of a path in the first stage; doubles with every stage
    stem: Stem = IMAGENET_STEM
    width: int = 64  # n, channels of the stem and of a basic block in the first stage (a bottleneck has 4n); doubles
    shortcut: bool = True  # False removes the residual connections (the paper's ablation, section 5.1)
    preactivation: bool = False  # batch norm and ReLU before the convolutions of a block, and once at the end
    widen: int = 1  # k, a factor of the width of basic blocks, not of the stem (Zagoruyko & Komodakis 2016)
    dropout: float = 0.0  # rate between the two convolutions of a basic block
    stochastic_depth: float = 0.0  # how often the last block is left out; the rate grows linearly from 0 at the first

    @property
    def smallest_px(self) -> int:
        """Smallest image that leaves the last stage one pixel: its stride."""
        return self.stem.stride * (2 if self.stem.pool else 1) * 2 ** (len(self.blocks) - 1)


# Blocks per stage by depth (Table 1; He et al. 2015, Table 1). Below 50 layers the block is the basic one.
IMAGENET_BLOCKS: dict[int, tuple[BlockKind, tuple[int, ...]]] = {
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
    """Return the network of a depth; see `Arch` for the arguments that are not here.

    Args:
      depth: 18, 34, 50, 101, 152 or 200 for "imagenet"; 9n + 2 (11, 20, 29, ...) for the others.
      cardinality: C >= 1; the basic blocks of depth 18 and 34 have no paths and take only 1.
      bottleneck_width: d >= 1; 64 for basic blocks.
      family: "imagenet" (7x7 stem, pooling, four stages), "cifar" (3x3 stem, three stages), or "small": as "cifar" for
        a CPU, with a stem of stride 2 and half as wide, so that 1x32d, 2x20d, 4x12d, 8x7d and 32x2d cost the same.

    Raises:
      UserError: a family or depth that does not exist, or a cardinality that the block cannot have.
    """
    problems = [unknown("model.family", family, FAMILIES)] if family not in FAMILIES else []
    block, blocks = "bottleneck", ()
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
    elif family in FAMILIES:
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
    raise_all(problems)
    stem, width = FAMILIES[family]
    return Arch(block, blocks, cardinality, bottleneck_width, stem, width, shortcut, preactivation)


def wide_resnet(depth: int, widen: int) -> Arch:
    """Return WRN-d-k for CIFAR: d = 6n + 4 layers (projections count, the classifier does not) and k = `widen`.

    The first batch norm and ReLU, which the first convolution and the projection share, belong to the stem.
    """
    return Arch("basic", ((depth - 4) // 6,) * 3, stem=CIFAR_STEM, width=16, preactivation=True, widen=widen)
