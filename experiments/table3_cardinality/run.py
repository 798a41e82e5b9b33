"""Table 3 and Figure 5: cardinality against width at equal cost, and training curves.

python experiments/table3_cardinality/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common import draw, small
from experiments.common.command import main
from experiments.common.study import Row, Scale, Study

# Top-1 errors of Table 3 in %: 50 layers, 101 layers.
PUBLISHED = {
    "1x64d": (23.9, 22.0),
    "2x40d": (23.0, 21.7),
    "4x24d": (22.6, 21.4),
    "8x14d": (22.3, 21.3),
    "32x4d": (22.2, 21.2),
}
HALF = {"1x64d": (1, 32), "2x40d": (2, 20), "4x24d": (4, 12), "8x14d": (8, 7), "32x4d": (32, 2)}  # the small networks


def full(depth: int, form: str, error: float) -> Row:
    """A row of the paper's table."""
    name, config = ("ResNet", f"resnet{depth}") if form == "1x64d" else ("ResNeXt", f"resnext{depth}_{form}")
    return Row(f"{name}-{depth} {form}", config, published={"top-1": error}, group=f"{depth} layers")


def halves(depth: int) -> list[Row]:
    """The five small networks."""
    return [
        small.row(depth, *HALF[form], group=f"{depth} layers", like=f"50 layers, {form}", published={"top-1": error})
        for form, (error, _) in PUBLISHED.items()
    ]


STUDY = Study(
    name="table3_cardinality",
    title="Table 3, cardinality against width",
    scales={
        "tiny": small.tiny(halves(11), "11 layers on 15,000 images, about 10 minutes on two cores"),
        "small": small.small(halves(11), "11 layers on 60,000 images, more than an hour on two cores"),
        "full": Scale(
            [full(depth, form, errors[k]) for k, depth in enumerate((50, 101)) for form, errors in PUBLISHED.items()],
            seeds=(0,),
            takes="the paper's recipe on ImageNet, for a TPU pod",
            on_pod=True,
        ),
    },
    draw=draw.curves_and_errors,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
