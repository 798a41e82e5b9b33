"""The pictures: errors against epochs as in Figure 5, against a row's size as in Figure 7, and one beside the other."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.common.collect import Result, mean_and_error

COLORS = ("#4477aa", "#cc3311", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#777777")


def groups_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The rows by their group, in the order of the table; without those that have no runs."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.made:
            groups.setdefault(result.row.group, []).append(result)
    return groups


def training_curves(axes: Any, results: Sequence[Result], title: str) -> None:
    """Figure 5: training (dashed) and validation error (solid) of every epoch, means over the seeds."""
    shown, begin = [], 0
    epochs: list[float] = []
    for result, color in zip(results, COLORS, strict=False):
        epochs = result.made[0].curves[0]
        kinds = [[made.curves[kind] for made in result.made if len(made.curves[0]) == len(epochs)] for kind in (1, 2)]
        train, validation = ([sum(at) / len(at) for at in zip(*curves, strict=True)] for curves in kinds)
        marker = "." if len(epochs) < 30 else ""
        axes.plot(epochs, train, color=color, linestyle="--", linewidth=1.0)
        axes.plot(epochs, validation, color=color, linewidth=1.7, marker=marker, label=result.row.name)
        # The first tenth of a run, far above the rest, would flatten everything else.
        begin = max(1, len(epochs) // 10) if len(epochs) > 2 else 0
        shown += train[begin:] + validation[begin:]
    axes.plot([], [], color="black", linestyle="--", linewidth=1.0, label="training (running, augmented)")
    axes.plot([], [], color="black", linewidth=1.7, label="validation")
    axes.set_ylim(0.9 * min(shown), min(100.0, 1.08 * max(shown)))
    if len(epochs) < 10:
        axes.set_xticks(epochs, [f"{epoch:.2g}" for epoch in epochs])
    _label(axes, "epoch (the first are above the picture)" if begin else "epoch", title or "means of the runs")
    axes.legend(frameon=False, fontsize=8)


def curves_1k(axes: Any, results: Sequence[Result], title: str) -> None:
    """Figure 6: 1K-way validation errors of networks that train on 5000 classes, means over the seeds."""
    for result, color in zip(results, COLORS, strict=False):
        curves = [made.curves_1k for made in result.made if made.curves_1k]
        epochs = curves[0][0]
        errors = [sum(at) / len(at) for at in zip(*(of[2] for of in curves if len(of[0]) == len(epochs)), strict=True)]
        axes.plot(epochs, errors, color=color, linewidth=1.7, label=result.row.name)
    _label(axes, "epoch", title)
    axes.set_ylabel("1K-way top-1 error (%)")
    axes.legend(frameon=False, fontsize=8)


def final_errors(axes: Any, results: Sequence[Result], title: str, column: str = "top-1") -> None:
    """The errors at the end: every run a dot, beside it mean and standard error; published ones as crosses."""
    for position, result in enumerate(results):
        values = result.values(column)
        if values:
            mean, error = mean_and_error(values)
            color = COLORS[position % len(COLORS)]
            axes.plot([position - 0.12] * len(values), values, ".", color=color, alpha=0.5)
            axes.errorbar(position + 0.08, mean, yerr=error, fmt="o", color=color, capsize=4)
            style = dict(xytext=(8, 0), textcoords="offset points", va="center", fontsize=8)
            axes.annotate(f"{mean:.2f}", (position + 0.08, mean), **style)
        if column in result.row.published and not result.row.like:
            axes.plot(position, result.row.published[column], "x", color="black")
    names = [result.row.name for result in results]
    breaks = ", " if any(", " in name for name in names) else " "
    axes.set_xticks(range(len(results)), [name.replace(breaks, "\n") for name in names], fontsize=8)
    axes.set_xlim(-0.5, len(results) - 0.3)
    if any(result.row.published and not result.row.like for result in results):
        axes.plot([], [], "x", color="black", label="published")
        axes.legend(frameon=False, fontsize=8)
    _label(axes, "", title)


def curves_and_errors(figure: Any, results: Sequence[Result]) -> None:
    """Figure 5 with its table: for each group the curves of its first and last row, and the final errors of all."""
    groups = groups_of(results)
    figure.set_size_inches(10.5, 4.2 * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (name, rows), (left, right) in zip(groups.items(), panels, strict=True):
        training_curves(left, [rows[0], *rows[1:][-1:]], name)
        final_errors(right, rows, "mean ± standard error; dots are runs")


def curves_1k_and_errors(figure: Any, results: Sequence[Result]) -> None:
    """Figure 6 with its table, one row of panels for each group; as Figure 5 where runs have no 1K-way errors."""
    made = [made for result in results for made in result.made]
    if not all(one.curves_1k for one in made):
        return curves_and_errors(figure, results)
    groups = groups_of(results)
    figure.set_size_inches(10.5, 4.2 * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (name, rows), (left, right) in zip(groups.items(), panels, strict=True):
        curves_1k(left, rows, name)
        final_errors(right, rows, "5K-way, mean ± standard error; dots are runs")


def final(figure: Any, results: Sequence[Result]) -> None:
    """The final errors, one panel for each group."""
    groups = groups_of(results)
    figure.set_size_inches(max(6.0, 1.3 * max(map(len, groups.values()))), 4.2 * len(groups))
    for axes, (name, rows) in zip(figure.subplots(len(groups), 1, squeeze=False)[:, 0], groups.items(), strict=True):
        final_errors(axes, rows, name or "mean ± standard error; dots are runs")


def sizes(figure: Any, results: Sequence[Result]) -> None:
    """Table 5: the top-1 error of every network by how it was evaluated."""
    figure.set_size_inches(6.4, 4.4)
    axes = figure.add_subplot()
    made = [result for result in results if result.made]
    fullest = sorted((one.errors for result in made for one in result.made), key=len, reverse=True)
    names = [name for errors in fullest for name in errors if name.endswith("top-1")]
    columns = list(dict.fromkeys(names))
    title = "mean ± standard error"
    for result, color in zip(made, COLORS, strict=False):
        values = [result.values(column) for column in columns]
        # A gap in the line where an evaluation is missing.
        pairs = [mean_and_error(errors) if errors else (math.nan, None) for errors in values]
        axes.errorbar(
            range(len(columns)),
            [mean for mean, _ in pairs],
            yerr=[error or 0.0 for _, error in pairs],
            marker="o",
            color=color,
            label=result.row.name,
            capsize=4,
        )
        for position, column in enumerate(columns):
            if column in result.row.published and not result.row.like:
                axes.plot(position, result.row.published[column], "x", color=color)
                title = "mean ± standard error; crosses are published"
    names = [column.removesuffix("top-1").strip() or "as trained" for column in columns]
    axes.set_xticks(range(len(columns)), names)
    _label(axes, "", title)
    axes.legend(frameon=False, fontsize=8)


def by_parameters(figure: Any, results: Sequence[Result]) -> None:
    """Figure 7: error against parameters. A row's group is its data set and direction, "CIFAR-10, wider".

    Rows of the data set alone are where all directions of several rows begin.
    """
    sets: dict[str, dict[str, list[Result]]] = {}
    for name, rows in groups_of(results).items():
        data, _, direction = name.partition(", ")
        sets.setdefault(data, {})[direction] = rows
    figure.set_size_inches(5.6 * len(sets), 4.4)
    for axes, (data, directions) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        begin = directions.pop("", [])
        for number, (direction, rows) in enumerate((directions or {"": begin}).items()):
            color = COLORS[number % len(COLORS)]
            rows = sorted(rows if len(rows) == 1 else [*begin, *rows], key=lambda result: result.params)
            pairs = [mean_and_error(result.values("top-1")) for result in rows]
            axes.errorbar(
                [result.params / 1e6 for result in rows],
                [mean for mean, _ in pairs],
                yerr=[error or 0.0 for _, error in pairs],
                marker="o",
                capsize=4,
                color=color,
                label=direction,
            )
            # The names of one direction below their points, of the others above; where all begin, once.
            for result, (mean, _) in zip(rows, pairs, strict=True):
                if number == 0 or result not in begin:
                    place = dict(xytext=(4, 5) if number else (-5, -11), ha="left" if number else "right")
                    axes.annotate(
                        result.row.name.partition(",")[0],
                        (result.params / 1e6, mean),
                        textcoords="offset points",
                        fontsize=8,
                        **place,
                    )
        axes.margins(x=0.12)
        _label(axes, "parameters (M)", data)
        axes.legend(frameon=False, fontsize=8)


def _label(axes: Any, below: str, title: str) -> None:
    axes.set_xlabel(below)
    axes.set_ylabel("top-1 error (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
