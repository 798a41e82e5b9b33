"""Table 7 and Figure 7: CIFAR, ten runs with standard errors; more paths against wider.

python experiments/table7_cifar/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common import draw, small
from experiments.common.command import main
from experiments.common.study import Row, Scale, Study

# Errors of Table 7 in %: CIFAR-10, CIFAR-100.
PUBLISHED = {
    "wrn28_10": ("WRN-28-10", "Wide ResNet", (4.17, 20.50)),
    "resnext29_8x64d": ("8x64d", "more paths", (3.65, 17.77)),
    "resnext29_16x64d": ("16x64d", "more paths", (3.58, 17.31)),
}
TABLE_7 = [
    Row(f"{name}, {data}", f"{network}_{config}", published={"top-1": errors[index]}, group=f"{data}, {direction}")
    for index, (data, config) in enumerate((("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100")))
    for network, (name, direction, errors) in PUBLISHED.items()
]
# The other points of Figure 7, on CIFAR-10; the paper gives them as a picture alone.
OTHERS = {
    "resnet29": ("1x64d", ""),
    "resnext29_2x64d": ("2x64d", ", more paths"),
    "resnext29_4x64d": ("4x64d", ", more paths"),
    "resnet29_1x128d": ("1x128d", ", wider"),
    "resnet29_1x256d": ("1x256d", ", wider"),
}
FIGURE_7 = [
    Row(f"{name}, CIFAR-10", "resnext29_8x64d_cifar10", {"model.name": network}, group=f"CIFAR-10{direction}")
    for network, (name, direction) in OTHERS.items()
]
# From a narrow network on, in steps of twice the cost of a block: more paths, or wider.
SHAPES = {(1, 16): "", (2, 16): ", more paths", (4, 16): ", more paths", (1, 26): ", wider", (1, 41): ", wider"}


def small_rows(depth: int) -> list[Row]:
    """The small networks."""
    return [small.row(depth, *shape, group=f"Fashion-MNIST{direction}") for shape, direction in SHAPES.items()]


STUDY = Study(
    name="table7_cifar",
    title="Table 7 and Figure 7, CIFAR",
    scales={
        "tiny": small.tiny(small_rows(11), "11 layers on 15,000 images, about 10 minutes on two cores"),
        "small": small.small(small_rows(20), "20 layers on 60,000 images, hours on a CPU"),
        "full": Scale(
            [*TABLE_7, *FIGURE_7], tuple(range(10)), "the paper's recipe, ten runs each, for a TPU", on_pod=True
        ),
    },
    draw=draw.by_parameters,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
