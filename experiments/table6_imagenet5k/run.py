"""Table 6 and Figure 6: ImageNet-5K, evaluated 5K-way and 1K-way on the 1K validation set.

python experiments/table6_imagenet5k/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common.command import main
from experiments.common.draw import Rows, label
from experiments.common.study import Evaluation, Row, Scale, Study, small_row, small_scale, tiny_scale
from experiments.table3_cardinality.curves import curves_and_errors, mean_curves, panels

# Errors of Table 6 in %: 5K-way top-1 and top-5, 1K-way top-1 and top-5.
PUBLISHED = {
    ("ResNet-50", "resnet50"): (45.5, 19.4, 27.1, 8.2),
    ("ResNeXt-50 32x4d", "resnext50_32x4d"): (42.3, 16.8, 24.4, 6.6),
    ("ResNet-101", "resnet101"): (42.4, 16.9, 24.2, 6.8),
    ("ResNeXt-101 32x4d", "resnext101_32x4d"): (40.1, 15.1, 22.2, 5.7),
}
COLUMNS = ("top-1", "top-5", "1K-way top-1", "1K-way top-5")
FULL = [
    Row(
        name,
        f"{config}_imagenet5k",
        published=dict(zip(COLUMNS, errors, strict=True)),
        group=f"{'101' if '101' in name else '50'} layers",
    )
    for (name, config), errors in PUBLISHED.items()
]
SHAPES = [(11, 1, 32), (11, 32, 2), (20, 1, 32), (20, 32, 2)]
HALVES = [
    small_row(*shape, f"{shape[0]} layers, {shape[1]}x{shape[2]}d", group=f"{shape[0]} layers", like=row.name)
    for row, shape in zip(FULL, SHAPES, strict=True)
]
# In small: of ten classes the images of five are evaluated, any of the other five being an error, or left out.
FIVE = {"data.class_list": "experiments/table6_imagenet5k/five_classes.txt"}
OF_FIVE = [Evaluation("10-way", FIVE), Evaluation("5-way", {**FIVE, "evaluate.classes": "present"})]


def draw(figure: Any, rows: Rows) -> None:
    """Figure 6 with its table; like Figure 5 where runs have no 1K-way errors."""
    if all(run["curves_1k"] for row in rows for run in row["runs"]):
        panels(figure, rows, curves_1k, "5K-way, ")
    else:
        curves_and_errors(figure, rows)


def curves_1k(axes: Any, rows: Rows, title: str) -> None:
    """Draw the 1K-way validation errors of networks that train on 5000 classes, means over the seeds."""
    for row in rows:
        epochs, _, errors = mean_curves(row, "curves_1k")
        axes.plot(epochs, errors, color=row["color"], linewidth=1.7, label=row["name"])
    label(axes, "epoch", title, "1K-way top-1 error (%)")
    axes.legend(frameon=False, fontsize=8)


STUDY = Study(
    name="table6_imagenet5k",
    title="Table 6, ImageNet-5K (top-1 and top-5 are 5K-way)",
    scales={
        "tiny": tiny_scale(
            HALVES,
            "11 and 20 layers on 15,000 images, about 10 minutes on two cores",
            num_epochs=3.0,
            evaluations=OF_FIVE,
        ),
        "small": small_scale(HALVES, "11 and 20 layers on 60,000 images, hours on a CPU", evaluations=OF_FIVE),
        "full": Scale(
            FULL,
            seeds=(0,),
            takes="the paper's recipe on ImageNet-5K, for a TPU pod",
            evaluations=[Evaluation("1K-way", {"evaluate.classes": "present"})],
            on_pod=True,
        ),
    },
    draw=draw,
    columns=("top-1", "top-5"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)
