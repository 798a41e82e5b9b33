"""A picture of the tables of a page that count M cycles: one panel for each table, a bar for each number.

python -m resnext_jax.analysis.draw_tables docs/performance.md --out=docs/performance_cycles.png

The numbers are those of the page, estimates of the TPU compiler. They stand in the picture's file too, so that a test
knows one that is out of date.
"""

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from resnext_jax.analysis import command, parts, report
from resnext_jax.errors import UserError

UNIT = "M cycles"
GOAL = "goal"  # a column that is drawn as a mark, not as a bar
COLORS = ("#3b6ea5", "#c4c4c4")
DIRECTION_COLORS = {"forward": "#3b6ea5", "backward": "#9dbfe0", "update": "#cc6677", "other": "#c4c4c4"}


@dataclasses.dataclass(frozen=True)
class Table:
    """Attributes: the first cell; by column and row the number, None where the cell has none."""

    title: str
    rows: tuple[str, ...]
    columns: dict[str, tuple[float | None, ...]]


def tables_of(markdown: str) -> list[Table]:
    """The tables whose first cell ends with the unit, without columns of ratios and columns that have no number.

    Of a cell that begins with a number, `35.66 (and more)`, the number counts.
    """
    found = []
    for text in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        header, _, *body = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
        if not header[0].endswith(UNIT) or not body:
            continue
        columns = {
            re.sub("`", "", name): tuple(_number(row[index]) for row in body)
            for index, name in enumerate(header[1:], start=1)
            if "/" not in name
        }
        columns = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
        found.append(Table(header[0], tuple(row[0] for row in body), columns))
    return found


def _number(cell: str) -> float | None:
    leading = re.match(r"\d+(\.\d+)?", cell)
    return float(leading[0]) if leading else None


def draw(tables: Sequence[Table], out: str) -> None:
    """Draws the tables, one below the other, into the PNG file `out`, which keeps their numbers."""
    import matplotlib.figure

    heights = [0.9 + 0.34 * len(table.rows) for table in tables]
    figure = matplotlib.figure.Figure(figsize=(8, 0.4 + sum(heights)), dpi=120, layout="constrained")
    figure.suptitle(report.NOTE, fontsize=9)
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        _panel(axes, table)
    command.save_picture(figure, out, format="png", metadata={"Description": description(tables)})


def description(tables: Sequence[Table]) -> str:
    """The numbers, for the picture's file."""
    return json.dumps([dataclasses.asdict(table) for table in tables])


def _panel(axes: Any, table: Table) -> None:
    """A bar for each number, below each other; where the columns are directions of one step, one bar of them all."""
    at = range(len(table.rows))
    bars = [name for name in table.columns if name != GOAL]
    if set(bars) <= set(parts.DIRECTIONS):
        ends = [0.0] * len(at)
        for name in bars:
            cells = [cell or 0.0 for cell in table.columns[name]]
            axes.barh(at, cells, 0.7, left=ends, color=DIRECTION_COLORS[name], label=name)
            ends = [end + cell for end, cell in zip(ends, cells, strict=True)]
        for row, end in zip(at, ends, strict=True):
            axes.text(end, row, f" {end:.2f}", va="center", fontsize=7)
    else:
        height = 0.8 / len(bars)
        for number, (name, color) in enumerate(zip(bars, COLORS, strict=False)):
            rows = [row + height * (number - (len(bars) - 1) / 2) for row in at]
            cells = table.columns[name]
            axes.barh(rows, [cell or 0.0 for cell in cells], height, color=color, label=name)
            for row, cell in zip(rows, cells, strict=True):
                shown = "" if cell is None else f" {cell:.2f}"
                axes.text(0, row, shown, va="center", fontsize=7, color="black" if number else "white")
    if GOAL in table.columns:
        axes.plot(table.columns[GOAL], at, "k|", markersize=16, markeredgewidth=1.5, label=GOAL)
    axes.set_yticks(at, [textwrap.fill(row, 30) for row in table.rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(table.title, fontsize=9, loc="left")
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")


def run(flag_values: flags.FlagValues, paths: Sequence[str]) -> None:
    """Draws the tables of the page."""
    if len(paths) != 1:
        raise UserError("give one page: python -m resnext_jax.analysis.draw_tables docs/performance.md --out=FILE.png")
    try:
        tables = tables_of(Path(paths[0]).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{paths[0]} is no page that can be read ({error}): give docs/performance.md.") from error
    if not tables:
        raise UserError(f"{paths[0]} has no table whose first cell ends with {UNIT!r}: give docs/performance.md.")
    draw(tables, flag_values.out)


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    flags.DEFINE_string("out", "cycles.png", "The picture to write, a PNG.", flag_values=to)
    return to


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when the picture is drawn, and with 2 for a mistake that the user can mend."""
    with command.mistakes_reported():
        flag_values = define_flags(flags.FLAGS)
        run(flag_values, command.parse_arguments(argv, flag_values))


if __name__ == "__main__":
    app.define_help_flags()
    main()
