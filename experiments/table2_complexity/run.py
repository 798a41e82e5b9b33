"""Tables 1 and 2: parameters and multiply-adds, counted in the traced programs, beside the published figures.

python experiments/table2_complexity/run.py --scale=tiny|full

Nothing is trained. A block is the last one of the first stage (conv2): C paths of d channels, which cost about the same
whatever C is (Table 2).
"""

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common import files
from experiments.common.command import end, parser_of
from experiments.common.draw import COLORS
from resnext_jax.analysis.complexity import Complexity
from resnext_jax.models.arch import by_depth

EXPERIMENT = "table2_complexity"
TAKES = {"tiny": "the small networks of the other experiments, seconds", "full": "the paper's networks, below a minute"}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the paper has of a network; "" where it has nothing."""

    form: str  # C x d
    width: int  # channels of the grouped convolution, C * d
    params: str = ""  # of the network, Table 1
    multiply_adds: str = ""
    block_params: str = "70 k"  # of a block, Table 2
    block_multiply_adds: str = "0.22 G"


# Tables 1 and 2: all of about 70 k parameters and 0.22 G multiply-adds in a block.
PAPER = {
    "resnet50": Figures("1x64d", 64, "25.5 M", "4.1 G"),
    "resnext50_2x40d": Figures("2x40d", 80),
    "resnext50_4x24d": Figures("4x24d", 96),
    "resnext50_8x14d": Figures("8x14d", 112),
    "resnext50_32x4d": Figures("32x4d", 128, "25.0 M", "4.2 G"),
}
# Half of all widths: a quarter of the paper's 70 k, and at 14 px instead of 56 px 1/64 of its multiply-adds.
SMALL = {(1, 32): "1x64d", (2, 20): "2x40d", (4, 12): "4x24d", (8, 7): "8x14d", (32, 2): "32x4d"}


def execute(arguments: Namespace) -> int:
    out = files.folder_of(arguments, EXPERIMENT, TAKES)
    files.claim_folder(out, EXPERIMENT, arguments.scale)
    rows = full_rows() if arguments.scale == "full" else small_rows()
    head = ["network", "C x d", "width", "parameters", "published", "multiply-adds", "published"]
    head += ["block: weights", "published", "block: multiply-adds", "published"]
    lines = [head, *([str(cell) for cell in cells_of(row)] for row in rows)]
    text = f"# Tables 1 and 2, complexity, --scale={arguments.scale}\n\n{files.markdown(lines)}\n"
    result = {"experiment": EXPERIMENT, "scale": arguments.scale, "rows": rows}
    files.write(out, text, result, lambda figure: draw(figure, rows))
    return 0


def full_rows() -> list[dict[str, Any]]:
    return [row_of(Complexity(name), figures) for name, figures in PAPER.items()]


def small_rows() -> list[dict[str, Any]]:
    """Those that stand for them at small scale, of 20 layers."""
    return [
        row_of(
            Complexity(f"small 20 {paths}x{width}d", arch=by_depth(20, paths, width, "small")),
            Figures(f"{paths}x{width}d", paths * width, block_params="", block_multiply_adds=""),
        )
        for paths, width in SMALL
    ]


def row_of(counted: Complexity, published: Figures) -> dict[str, Any]:
    block, total = ("stage2", counted.blocks("stage2")[-1]), counted.of()
    return {
        "name": counted.name,
        "params": total.params,
        "multiply_adds": total.multiply_adds,
        "block_weights": counted.weights(*block),  # the paper counts those of the three convolutions
        "block_multiply_adds": counted.of(*block).multiply_adds,
        "published": dataclasses.asdict(published),
    }


def cells_of(row: dict[str, Any]) -> list[Any]:
    published = row["published"]
    return [
        *(row["name"], published["form"], published["width"]),
        *(f"{row['params']:,}", published["params"]),
        *(f"{row['multiply_adds'] / 1e9:.3f} G", published["multiply_adds"]),
        *(f"{row['block_weights'] / 1e3:.1f} k", published["block_params"]),
        *(f"{row['block_multiply_adds'] / 1e9:.4f} G", published["block_multiply_adds"]),
    ]


def draw(figure: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the weights of a block, and the width that they buy."""
    figure.set_size_inches(9, 3.8)
    left, right = figure.subplots(1, 2)
    forms = [row["published"]["form"] for row in rows]
    left.bar(forms, [row["block_weights"] / 1e3 for row in rows], color=COLORS[: len(rows)])
    left.set_ylabel("weights of a block (k)")
    left.set_title("at equal cost ...", fontsize=10)
    right.bar(forms, [row["published"]["width"] for row in rows], color=COLORS[: len(rows)])
    right.set_ylabel("channels of the grouped convolution")
    right.set_title("... more paths are wider together", fontsize=10)
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)


if __name__ == "__main__":
    end(lambda: execute(parser_of(EXPERIMENT, TAKES, __doc__).parse_args()))
