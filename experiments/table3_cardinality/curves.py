"""Figure 5, which Figure 6 resembles: the errors of every epoch, beside those at the end."""

from collections.abc import Callable
from typing import Any

from experiments.common.draw import OF_RUNS, Rows, final_errors, groups_of, label


def curves_and_errors(figure: Any, rows: Rows) -> None:
    """Draw Figure 5 with its table."""
    panels(figure, rows, training_curves)


def panels(figure: Any, rows: Rows, draw: Callable[..., None], what: str = "") -> None:
    """Draw a line of panels for each group: the curves by `draw`, and the final errors, which are `what`."""
    groups = groups_of(rows)
    figure.set_size_inches(10.5, 4.2 * len(groups))
    both = figure.subplots(len(groups), 2, squeeze=False)
    for (name, mine), (left, right) in zip(groups.items(), both, strict=True):
        draw(left, mine, name)
        final_errors(right, mine, f"{what}{OF_RUNS}")


def training_curves(axes: Any, rows: Rows, title: str) -> None:
    """Draw the training (dashed) and validation errors (solid) of the first and the last network."""
    shown, epochs, begin = [], [], 0
    for row in [rows[0], *rows[1:][-1:]]:
        epochs, train, validation = mean_curves(row)
        marker = "." if len(epochs) < 30 else ""
        axes.plot(epochs, train, color=row["color"], linestyle="--", linewidth=1.0)
        axes.plot(epochs, validation, color=row["color"], linewidth=1.7, marker=marker, label=row["name"])
        # The first tenth of a run, far above the rest, would flatten everything else.
        begin = max(1, len(epochs) // 10) if len(epochs) > 2 else 0
        shown += train[begin:] + validation[begin:]
    axes.plot([], [], color="black", linestyle="--", linewidth=1.0, label="training (running, augmented)")
    axes.plot([], [], color="black", linewidth=1.7, label="validation")
    axes.set_ylim(0.9 * min(shown), min(100.0, 1.08 * max(shown)))
    if len(epochs) < 10:
        axes.set_xticks(epochs, [f"{epoch:.2g}" for epoch in epochs])
    label(axes, "epoch (the first are above the picture)" if begin else "epoch", title or "means of the runs")
    axes.legend(frameon=False, fontsize=8)


def mean_curves(row: dict[str, Any], kind: str = "curves") -> list[list[float]]:
    """Return epochs, training and validation errors of a row: means over its runs with as many epochs."""
    curves = [run[kind] for run in row["runs"] if run[kind]]
    same = [each for each in curves if len(each[0]) == len(curves[0][0])]
    return [[sum(at) / len(at) for at in zip(*each, strict=True)] for each in zip(*same, strict=True)]
