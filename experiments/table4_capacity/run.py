"""Table 4: at twice the cost deeper, wider, or more paths.

python experiments/table4_capacity/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common import draw
from experiments.common.command import main
from experiments.common.study import Row, Scale, Study, small_row, small_scale, tiny_scale

# Top-1 and top-5 errors of Table 4 in %; the first two rows have the cost of ResNet-101, the others twice that.
ONE, TWO = "cost of ResNet-101", "twice that cost"
FULL = [
    Row("ResNet-101 1x64d", "resnet101", published={"top-1": 22.0, "top-5": 6.0}, group=ONE),
    Row("ResNeXt-101 32x4d", "resnext101_32x4d", published={"top-1": 21.2, "top-5": 5.6}, group=ONE),
    Row("ResNet-200 1x64d", "resnet200", published={"top-1": 21.7, "top-5": 5.8}, group=TWO),
    Row("ResNet-101 1x100d", "resnet101_1x100d", published={"top-1": 21.3, "top-5": 5.7}, group=TWO),
    Row("ResNeXt-101 2x64d", "resnext101_2x64d", published={"top-1": 20.7, "top-5": 5.5}, group=TWO),
    Row("ResNeXt-101 64x4d", "resnext101_64x4d", published={"top-1": 20.4, "top-5": 5.3}, group=TWO),
]


def halves(depth: int, deeper: int) -> list[Row]:
    """The six small networks; `deeper` has twice the blocks of `depth`."""
    shapes = [(depth, 1, 32), (depth, 32, 2), (deeper, 1, 32), (depth, 1, 50), (depth, 2, 32), (depth, 64, 2)]
    return [
        small_row(*shape, name=f"{shape[0]} layers, {shape[1]}x{shape[2]}d", like=row.name, published=row.published)
        for row, shape in zip(FULL, shapes, strict=True)
    ]


STUDY = Study(
    name="table4_capacity",
    title="Table 4, deeper, wider, or more paths",
    scales={
        "tiny": tiny_scale(
            halves(11, 20), "11 or 20 layers on 15,000 images, about 15 minutes on two cores", num_epochs=3.0
        ),
        "small": small_scale(halves(11, 20), "11 or 20 layers on 60,000 images, hours on two cores"),
        "full": Scale(FULL, (0,), "the paper's recipe on ImageNet, for a TPU pod", on_pod=True),
    },
    draw=draw.final,
    columns=("top-1", "top-5"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)
