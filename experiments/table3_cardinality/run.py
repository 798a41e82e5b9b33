"""Table 3 and Figure 5: cardinality against width at equal cost, and training curves.

python experiments/table3_cardinality/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common.command import main
from experiments.common.study import Row, Scale, Study, small_row, small_scale, tiny_scale
from experiments.table3_cardinality.curves import curves_and_errors

# Top-1 errors of Table 3 in %, by the number of layers.
PUBLISHED = {
    50: {"1x64d": 23.9, "2x40d": 23.0, "4x24d": 22.6, "8x14d": 22.3, "32x4d": 22.2},
    101: {"1x64d": 22.0, "2x40d": 21.7, "4x24d": 21.4, "8x14d": 21.3, "32x4d": 21.2},
}
HALF = {"1x64d": (1, 32), "2x40d": (2, 20), "4x24d": (4, 12), "8x14d": (8, 7), "32x4d": (32, 2)}  # the small networks


def full(depth: int, form: str) -> Row:
    """A row of the paper's table."""
    name, config = ("ResNet", f"resnet{depth}") if form == "1x64d" else ("ResNeXt", f"resnext{depth}_{form}")
    return Row(f"{name}-{depth} {form}", config, published={"top-1": PUBLISHED[depth][form]}, group=f"{depth} layers")


def half(depth: int, like: int, form: str) -> Row:
    """A small network, which stands for the one of `like` layers."""
    cardinality, width = HALF[form]
    return small_row(
        *(depth, cardinality, width, f"{depth} layers, {cardinality}x{width}d"),
        group=f"{depth} layers",
        like=f"{like} layers, {form}",
        published={"top-1": PUBLISHED[like][form]},
    )


SHALLOW = [half(11, 50, form) for form in HALF]
# Of the deeper ones, which take twice as long, the two of Figure 5.
DEEPER = [half(20, 101, form) for form in ("1x64d", "32x4d")]

STUDY = Study(
    name="table3_cardinality",
    title="Table 3, cardinality against width",
    scales={
        "tiny": tiny_scale(SHALLOW, "11 layers on 15,000 images, about 10 minutes on two cores"),
        "small": small_scale([*SHALLOW, *DEEPER], "11 and 20 layers on 60,000 images, hours on two cores"),
        "full": Scale(
            [full(depth, form) for depth, forms in PUBLISHED.items() for form in forms],
            seeds=(0,),
            takes="the paper's recipe on ImageNet, for a TPU pod",
            on_pod=True,
        ),
    },
    draw=curves_and_errors,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
