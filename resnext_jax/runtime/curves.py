"""The picture of a run: training and validation error per epoch, as in the paper's Figure 5."""

import io
from typing import Any

from etils import epath

from resnext_jax.files import write_whole
from resnext_jax.types import Metric

CURVES_FILE = "curves.png"


def errors_by_epoch(
    rows: list[dict[str, Any]], validation: str = "top1", train: str = "top1"
) -> tuple[list[float], list[float], list[float]]:
    """Return the epochs of the evaluations, and the training and validation errors there in percent.

    The training error is over all images since the last evaluation (the paper's curves: augmented images, while the
    network changes).

    Args:
      rows: rows of metrics.jsonl, in order.
      validation: accuracy of the evaluations; `top1_present` for the 1K-way errors of a 5K run.
      train: accuracy of the rows of training.
    """
    epochs, train_errors, errors = [], [], []
    images, correct = 0, 0.0
    for row in rows:
        if row["phase"] == "train":
            images, correct = images + row["images"], correct + row["images"] * row.get(train, 0.0)
        elif row["phase"] == "evaluate" and images:
            epochs.append(row["epoch"])
            train_errors.append(100.0 * (1.0 - correct / images))
            errors.append(100.0 * (1.0 - row[validation]))
            images, correct = 0, 0.0
    return epochs, train_errors, errors


def draw_curves(rows: list[dict[str, Any]], workdir: str, title: str, score: Metric) -> str | None:
    """Draw `workdir/curves.png` and return its path; None if there is no evaluation yet.

    Args:
      rows: rows of metrics.jsonl, in order.
      score: metric that is drawn, as an error in percent if it is an accuracy.
    """
    # Imported here: a run on a pod host should not need a font cache to start.
    import matplotlib.figure

    train_values: list[float] = []
    if score.is_accuracy:
        epochs, train_values, values = errors_by_epoch(rows, score.name, score.name)
        if not any(score.name in row for row in rows if row["phase"] == "train"):
            train_values = []
    else:
        evaluations = [row for row in rows if row["phase"] == "evaluate"]
        epochs, values = [row["epoch"] for row in evaluations], [row[score.name] for row in evaluations]
    if not values:
        return None
    figure = matplotlib.figure.Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if train_values:
        axes.plot(
            epochs,
            train_values,
            color="#4477aa",
            linestyle="--",
            linewidth=1.2,
            marker=".",
            label="training (running, augmented)",  # often above the validation error
        )
    axes.plot(epochs, values, color="#cc3311", linewidth=1.8, marker="o", markersize=3.5, label="validation")
    sign = -1 if score.is_accuracy else 1
    best = max(range(len(values)), key=lambda index: (sign * values[index], index))
    axes.annotate(
        f"best {values[best]:.2f} %" if score.is_accuracy else f"best {values[best]:{score.format}}",
        (epochs[best], values[best]),
        xytext=(0, 16),
        textcoords="offset points",
        ha="right",
        color="#cc3311",
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{score.label} error (%)" if score.is_accuracy else score.label)
    axes.set_title(title)
    axes.set_xlim(0, epochs[-1] * 1.02)
    top = 1.15 * max([*values, *train_values])
    axes.set_ylim(0, (min(100.0, top) if score.is_accuracy else top) or 1.0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path = epath.Path(workdir) / CURVES_FILE
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())
    return str(path)
