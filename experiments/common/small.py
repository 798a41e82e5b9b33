"""Small versions of the paper's networks and recipes, for Fashion-MNIST on a CPU or one GPU.

`model.family=small` is the template of Table 1 with 28 px images, three stages and half of all widths, so that what the
paper has as 1x64d, 2x40d, 4x24d, 8x14d and 32x4d is here 1x32d, 2x20d, 4x12d, 8x7d and 32x2d: again of equal cost.
"""

from collections.abc import Sequence
from typing import Any

from experiments.common.study import Row, Scale

# Files of configs/: 15,000 images inside the package, and all 60,000.
BUILTIN, FASHION_MNIST = "quickstart", "resnext20_8x4d_small_fashion_mnist"


def row(depth: int, cardinality: int, bottleneck_width: int, name: str = "", **others: Any) -> Row:
    """A small network; `others` are further parts of the row, `fields` besides those of the network."""
    fields = {
        "model.name": "",
        "model.family": "small",
        "model.depth": depth,
        "model.cardinality": cardinality,
        "model.bottleneck_width": bottleneck_width,
        **others.pop("fields", {}),
    }
    return Row(name or f"{cardinality}x{bottleneck_width}d", BUILTIN, fields, **others)


def tiny(rows: Sequence[Row], takes: str, *, num_epochs: float = 4.0, **others: Any) -> Scale:
    """Minutes on two cores: the built-in images, two seeds."""
    return Scale([one.trained(BUILTIN, num_epochs) for one in rows], (0, 1), takes, **others)


def small(rows: Sequence[Row], takes: str, *, num_epochs: float = 6.0, **others: Any) -> Scale:
    """Hours on a CPU: all of Fashion-MNIST, three seeds."""
    return Scale([one.trained(FASHION_MNIST, num_epochs) for one in rows], (0, 1, 2), takes, **others)
