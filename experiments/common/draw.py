"""What several pictures share: a color for each network, means with standard errors, and the errors at the end."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.common.collect import errors_of, mean_and_error

COLORS = ("#4477aa", "#cc3311", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#777777")
COLORS += ("#ee8833", "#332288", "#44aa99", "#993300")
OF_RUNS = "mean ± standard error; dots are runs"
Rows = Sequence[dict[str, Any]]  # of a table (`collect.rows_of`), here with a color


def groups_of(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that have runs by their group, each with its color."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        if row["runs"]:
            groups.setdefault(row["group"], []).append(row | {"color": COLORS[number % len(COLORS)]})
    return groups


def final(figure: Any, rows: Rows) -> None:
    """Draw the final errors, one panel for each group."""
    groups = groups_of(rows)
    figure.set_size_inches(max(6.0, 1.3 * max(map(len, groups.values()))), 4.2 * len(groups))
    for axes, (name, mine) in zip(figure.subplots(len(groups), 1, squeeze=False)[:, 0], groups.items(), strict=True):
        final_errors(axes, mine, name or OF_RUNS)


def final_errors(axes: Any, rows: Rows, title: str) -> None:
    """Draw the top-1 errors at the end: a dot for each run, means with standard errors, crosses for published ones."""
    for position, row in enumerate(rows):
        (mean, error), values, color = mean_and_error(errors_of(row, "top-1")), errors_of(row, "top-1"), row["color"]
        axes.plot([position - 0.12] * len(values), values, ".", color=color, alpha=0.5)
        axes.errorbar(position + 0.08, mean, yerr=error, fmt="o", color=color, capsize=4)
        place = dict(xytext=(8, 0), textcoords="offset points", va="center", fontsize=8)
        axes.annotate(f"{mean:.2f}", (position + 0.08, mean), **place)
    crosses = {at: row["published"]["top-1"] for at, row in enumerate(rows) if is_published(row, "top-1")}
    if crosses:
        axes.plot(list(crosses), list(crosses.values()), "x", color="black", label="published")
        axes.legend(frameon=False, fontsize=8)
    breaks = ", " if any(", " in row["name"] for row in rows) else " "
    axes.set_xticks(range(len(rows)), [row["name"].replace(breaks, "\n") for row in rows], fontsize=8)
    axes.set_xlim(-0.5, len(rows) - 0.3)
    label(axes, "", title)


def is_published(row: dict[str, Any], column: str) -> bool:
    """Return whether the paper has this error of this very network, not of the one that it stands for."""
    return column in row["published"] and not row["stands_for"]


def means(axes: Any, positions: Sequence[float], values: Sequence[Sequence[float]], **style: Any) -> list[float]:
    """Draw the means of the values with standard errors, joined, with gaps for missing ones; return the means."""
    pairs = [mean_and_error(each) if each else (math.nan, None) for each in values]
    heights, errors = [mean for mean, _ in pairs], [error or 0.0 for _, error in pairs]
    axes.errorbar(positions, heights, yerr=errors, marker="o", capsize=4, **style)
    return heights


def label(axes: Any, below: str, title: str, beside: str = "top-1 error (%)") -> None:
    """Name the axes and the panel."""
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
