"""A picture of compile reports: the cycles of each step by part of the network, one bar for every compile.

python -m resnext_jax.analysis.aot --config=configs/resnext50_32x4d.py --compare=native --json | tail -1 >a.json
python -m resnext_jax.analysis.draw a.json [b.json ...] --out=cycles.png

Estimates of the TPU compiler, as the reports are.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from resnext_jax.analysis import command, parts, report
from resnext_jax.errors import UserError

Report = dict[str, Any]


def bars_of(path: str) -> list[tuple[str, dict[str, float], float]]:
    """The compiles of one report (`analysis.aot --json`), those that fitted their chip.

    Returns:
      For each its label, the M cycles of every part, and the least M cycles of what the compiler has no figure for.

    Raises:
      UserError: the file is not such a report.
    """
    try:
        found: Report = json.loads(Path(path).read_text())
        compiles = [found, *([found["compare"]] if found.get("compare") else [])]
        return [
            (
                f"{Path(found['config']).stem}\n{compile_['conv_impl']}, {found['topology']}",
                {part: sum(row.values()) / 1e6 for part, row in compile_["parts"].items()},
                compile_["floor_cycles"] / 1e6,
            )
            for compile_ in compiles
            if compile_["fits"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no report of the compiler ({error}): give files with the last line of "
            "`python -m resnext_jax.analysis.aot --config=configs/NAME.py --json`."
        ) from error


def draw(bars: Sequence[tuple[str, dict[str, float], float]], out: str) -> None:
    """Draws the bars, the first one on top, into the file `out`, and prints its name."""
    import matplotlib
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 1.4 + 0.62 * len(bars)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shown = [part for part in parts.PARTS if any(part in row for _, row, _ in bars)]
    left = [0.0] * len(bars)
    colors = matplotlib.colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for part, color in zip(shown, colors, strict=False):
        widths = [row.get(part, 0.0) for _, row, _ in bars]
        axes.barh(range(len(bars)), widths, left=left, color=color, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    floors = [floor for _, _, floor in bars]
    axes.barh(
        range(len(bars)), floors, left=left, color="none", edgecolor="#555555", hatch="////", linewidth=0.5, height=0.7,
        label="no figure, at least",
    )  # fmt: skip
    for row, (total, floor) in enumerate(zip(left, floors, strict=True)):
        axes.text(total + floor, row, f" {total:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(total + floor for total, floor in zip(left, floors, strict=True)))
    axes.set_xlabel("M cycles of one training step on one device")
    axes.set_title(report.NOTE, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    command.save_picture(figure, out)


def run(flag_values: flags.FlagValues, paths: Sequence[str]) -> None:
    """Draws the reports at `paths`."""
    if not paths:
        raise UserError("give one report or more: python -m resnext_jax.analysis.draw REPORT.json --out=cycles.png")
    bars = [bar for path in paths for bar in bars_of(path)]
    if not bars:
        raise UserError(f"no compile in {', '.join(paths)} fitted its chip: there is nothing to draw.")
    draw(bars, flag_values.out)


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    flags.DEFINE_string("out", "cycles.png", "The picture to write.", flag_values=to)
    return to


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when the picture is drawn, and with 2 for a mistake that the user can mend."""
    with command.mistakes_reported():
        flag_values = define_flags(flags.FLAGS)
        run(flag_values, command.parse_arguments(argv, flag_values))


if __name__ == "__main__":
    app.define_help_flags()
    main()
