"""Table 7 and Figure 7: CIFAR, ten runs with standard errors; more paths against wider.

python experiments/table7_cifar/run.py --scale=tiny|small|full
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common.collect import errors_of
from experiments.common.command import main
from experiments.common.draw import COLORS, Rows, groups_of, label, means
from experiments.common.study import Row, Scale, Study, small_row, small_scale, tiny_scale

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
    return [small_row(depth, *shape, group=f"Fashion-MNIST{direction}") for shape, direction in SHAPES.items()]


def draw(figure: Any, rows: Rows) -> None:
    """Draw Figure 7: error against parameters. A row's group is its data set and direction, "CIFAR-10, wider".

    Rows of only the data set are where all directions of several rows begin.
    """
    sets: dict[str, dict[str, list]] = {}
    for name, mine in groups_of(rows).items():
        data, _, direction = name.partition(", ")
        sets.setdefault(data, {})[direction] = mine
    figure.set_size_inches(5.6 * len(sets), 4.4)
    for axes, (data, directions) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        begin = directions.pop("", [])
        for number, (direction, mine) in enumerate((directions or {"": begin}).items()):
            points = sorted(mine if len(mine) == 1 else [*begin, *mine], key=lambda row: row["params"])
            sizes, errors = [row["params"] / 1e6 for row in points], [errors_of(row, "top-1") for row in points]
            heights = means(axes, sizes, errors, color=COLORS[number], label=direction)
            # The names of one direction below their points, of the others above; where all begin, once.
            place = dict(xytext=(4, 5) if number else (-5, -11), ha="left" if number else "right")
            for row, size, height in zip(points, sizes, heights, strict=True):
                if number == 0 or row not in begin:
                    text = row["name"].partition(",")[0]
                    axes.annotate(text, (size, height), textcoords="offset points", fontsize=8, **place)
        axes.margins(x=0.12)
        label(axes, "parameters (M)", data)
        axes.legend(frameon=False, fontsize=8)


STUDY = Study(
    name="table7_cifar",
    title="Table 7 and Figure 7, CIFAR",
    scales={
        "tiny": tiny_scale(small_rows(11), "11 layers on 15,000 images, about 10 minutes on two cores"),
        "small": small_scale(small_rows(20), "20 layers on 60,000 images, hours on a CPU"),
        "full": Scale(
            [*TABLE_7, *FIGURE_7], tuple(range(10)), "the paper's recipe, ten runs each, for a TPU", on_pod=True
        ),
    },
    draw=draw,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
