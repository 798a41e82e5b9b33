"""The picture of a run: training and validation error per epoch, as in the paper's Figure 5."""

import io
from typing import Any

from etils import epath

from resnext_jax.files import write_whole

CURVES_FILE = "curves.png"


def errors_by_epoch(
    rows: list[dict[str, Any]], validation: str = "top1"
) -> tuple[list[float], list[float], list[float]]:
    """Epochs of the evaluations, and the top-1 training and validation errors there, in percent.

    The training error is over all images since the evaluation before (the paper's curves: augmented images, while the
    network changes).

    Args:
      rows: of metrics.jsonl, in order.
      validation: the accuracy of the evaluations; `top1_present` for the 1K-way errors of a 5K run.
    """
    epochs, train_errors, errors = [], [], []
    images, correct = 0, 0.0
    for row in rows:
        if row["phase"] == "train":
            images, correct = images + row["images"], correct + row["images"] * row.get("top1", 0.0)
        elif row["phase"] == "evaluate" and images:
            epochs.append(row["epoch"])
            train_errors.append(100.0 * (1.0 - correct / images))
            errors.append(100.0 * (1.0 - row[validation]))
            images, correct = 0, 0.0
    return epochs, train_errors, errors


def draw_curves(rows: list[dict[str, Any]], workdir: str, title: str) -> str | None:
    """Draws `workdir/curves.png` and returns its path; None where no epoch has been evaluated yet."""
    # Imported here: a run on a pod host should not need a font cache to start.
    import matplotlib.figure

    epochs, train_errors, errors = errors_by_epoch(rows)
    if not errors:
        return None
    figure = matplotlib.figure.Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        epochs,
        train_errors,
        color="#4477aa",
        linestyle="--",
        linewidth=1.2,
        marker=".",
        label="training (running, augmented)",  # so it may well lie above the other
    )
    axes.plot(epochs, errors, color="#cc3311", linewidth=1.8, marker="o", markersize=3.5, label="validation")
    best = min(range(len(errors)), key=errors.__getitem__)
    axes.annotate(
        f"best {errors[best]:.2f} %",
        (epochs[best], errors[best]),
        xytext=(0, 16),
        textcoords="offset points",
        ha="right",
        color="#cc3311",
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 error (%)")
    axes.set_title(title)
    axes.set_xlim(0, epochs[-1] * 1.02)
    axes.set_ylim(0, min(100.0, 1.15 * max(*errors, *train_errors)))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path = epath.Path(workdir) / CURVES_FILE
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())
    return str(path)
