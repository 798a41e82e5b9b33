"""Section 5.1: what residual connections are worth, in a ResNet and in a ResNeXt.

python experiments/residual_connections/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common import draw
from experiments.common.command import main
from experiments.common.study import Row, Scale, Study, small_row, small_scale, tiny_scale

# Top-1 errors in % of the table in section 5.1.
FULL = [
    Row("ResNet-50", "resnet50", published={"top-1": 23.9}),
    Row("ResNet-50, no shortcuts", "resnet50_no_shortcut", published={"top-1": 31.2}),
    Row("ResNeXt-50 32x4d", "resnext50_32x4d", published={"top-1": 22.2}),
    Row("ResNeXt-50 32x4d, no shortcuts", "resnext50_32x4d_no_shortcut", published={"top-1": 26.1}),
]


def halves(depth: int) -> list[Row]:
    """The four small networks."""
    shapes = [(paths, width, shortcut) for paths, width in ((1, 32), (32, 2)) for shortcut in (True, False)]
    names = ["1x32d", "1x32d, no shortcuts", "32x2d", "32x2d, no shortcuts"]
    return [
        small_row(
            depth, paths, width, name, fields={"model.shortcut": shortcut}, like=row.name, published=row.published
        )
        for row, name, (paths, width, shortcut) in zip(FULL, names, shapes, strict=True)
    ]


STUDY = Study(
    name="residual_connections",
    title="Residual connections",
    scales={
        "tiny": tiny_scale(halves(20), "20 layers on 15,000 images, about 12 minutes on two cores", num_epochs=3.0),
        "small": small_scale(halves(29), "29 layers on 60,000 images, hours on a CPU"),
        "full": Scale(FULL, (0,), "the paper's recipe on ImageNet, for a TPU pod", on_pod=True),
    },
    draw=draw.final,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
