"""Table 5: the same networks evaluated on larger images, and the multi-scale test of section 5.1.

python experiments/table5_resolution/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common.collect import errors_of
from experiments.common.command import main
from experiments.common.draw import Rows, groups_of, is_published, label, means
from experiments.common.study import Evaluation, Row, Scale, Study, small_row, small_scale, tiny_scale

# Top-1 and top-5 errors of Table 5 in %: at 224 px, at 320 px; multi-scale from the text below it.
FULL = [
    Row(
        "ResNet-200 1x64d",
        "resnet200",
        published={"top-1": 21.7, "top-5": 5.8, "320 px top-1": 20.1, "320 px top-5": 4.8},
    ),
    Row(
        "ResNeXt-101 64x4d",
        "resnext101_64x4d",
        published={
            "top-1": 20.4,
            "top-5": 5.3,
            "320 px top-1": 19.1,
            "320 px top-5": 4.4,
            "multi-scale top-1": 17.7,
            "multi-scale top-5": 3.7,
        },
    ),
]
# Names of evaluation protocols.
ON_IMAGENET = [
    Evaluation("320 px", {"protocol": "center_320"}),
    Evaluation("ten-crop", {"protocol": "ten_crop"}),
    Evaluation("multi-scale", {"protocol": "multi_scale"}),
]
# The whole image at another size: what 320 px are to networks trained at 224 px.
LARGER = [
    Evaluation(f"{size_px} px", {"data.crop": "resize", "data.image_size_px": size_px, "data.resize_px": size_px})
    for size_px in (32, 40)
]
SHAPES = [(20, 1, 32, "20 layers, 1x32d"), (11, 64, 2, "11 layers, 64x2d")]
HALVES = [small_row(*shape, like=row.name) for row, shape in zip(FULL, SHAPES, strict=True)]


def draw(figure: Any, rows: Rows) -> None:
    """Draw the top-1 error of every network by how it was evaluated."""
    figure.set_size_inches(6.4, 4.4)
    axes = figure.add_subplot()
    made = [row for group in groups_of(rows).values() for row in group]
    fullest = sorted((run["errors"] for row in made for run in row["runs"]), key=len, reverse=True)
    columns = list(dict.fromkeys(name for errors in fullest for name in errors if name.endswith("top-1")))
    title = "mean ± standard error"
    for row in made:
        errors = [errors_of(row, column) for column in columns]
        means(axes, range(len(columns)), errors, color=row["color"], label=row["name"])
        for position, column in enumerate(columns):
            if is_published(row, column):
                axes.plot(position, row["published"][column], "x", color=row["color"])
                title = "mean ± standard error; crosses are published"
    axes.set_xticks(range(len(columns)), [column.removesuffix("top-1").strip() or "as trained" for column in columns])
    label(axes, "", title)
    axes.legend(frameon=False, fontsize=8)


STUDY = Study(
    name="table5_resolution",
    title="Table 5, larger images",
    scales={
        "tiny": tiny_scale(
            HALVES,
            "28 px against 32 and 40 px, 15,000 images, about 8 minutes on two cores",
            evaluations=LARGER,
        ),
        "small": small_scale(HALVES, "28 px against 32 and 40 px, 60,000 images, hours on a CPU", evaluations=LARGER),
        "full": Scale(FULL, (0,), "the paper's recipe on ImageNet, for a TPU pod", ON_IMAGENET, on_pod=True),
    },
    draw=draw,
    columns=("top-1", "top-5"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)
