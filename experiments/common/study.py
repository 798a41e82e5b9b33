"""What an experiment is, as data: the rows of a table, the scales at which they are trained, the runs that follow.

The small networks are the template of Table 1 with 28 px images, three stages and half of all widths: the paper's
1x64d, 2x40d, 4x24d, 8x14d and 32x4d are 1x32d, 2x20d, 4x12d, 8x7d and 32x2d, again of equal cost.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from resnext_jax.config import command_line

ROOT = Path(__file__).resolve().parents[2]
# Files of configs/ for small networks: 15,000 images inside the package, and all 60,000.
BUILTIN, FASHION_MNIST = "quickstart", "resnext20_8x4d_small_fashion_mnist"
Fields = Mapping[str, Any]  # fields of a config, by their dotted names


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One network of a table, trained once for every seed."""

    name: str  # as in the paper's table, or of the small network that stands for it
    config: str  # file of configs/, without `.py`
    fields: Fields = dataclasses.field(default_factory=dict)  # changed in that config
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)  # errors in % by column of the table
    group: str = ""  # rows of one group are compared; a figure has a panel for each group
    like: str = ""  # the row of the paper that a small network stands for

    @property
    def slug(self) -> str:  # the name in workdirs and flags: `resnext_50_32x4d`
        return _slug(self.name)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Another evaluation of the trained networks: `--mode=evaluate` with `fields` changed."""

    column: str  # of the table: "320 px" has the columns "320 px top-1" and "320 px top-5"
    fields: Fields


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the networks and the data are, and how often each network is trained."""

    rows: Sequence[Row]  # of the table, in its order
    seeds: Sequence[int]  # of the runs of each row
    takes: str  # how long, in words, and on what
    evaluations: Sequence[Evaluation] = ()  # besides the one at the end of training
    on_pod: bool = False  # commands are printed, and run here only with --run


@dataclasses.dataclass(frozen=True)
class Study:
    """One table or figure of the paper."""

    name: str  # of its folder in experiments/
    title: str  # of its table
    scales: Mapping[str, Scale]
    draw: Callable[[Any, Sequence[Any]], None]  # (matplotlib figure, rows of `collect`): draws its picture
    columns: Sequence[str] = ("top-1",)  # errors that every row has


@dataclasses.dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: Row
    seed: int
    workdir: str

    @property
    def name(self) -> str:
        return f"{self.row.name} seed {self.seed}"

    @property
    def flags(self) -> list[str]:  # of `main.py`
        return [f"--config=configs/{self.row.config}.py", *flags_of({**self.row.fields, "seed": self.seed})]

    def file(self, evaluation: Evaluation) -> epath.Path:  # where its row is kept
        return epath.Path(self.workdir) / f"evaluation_{_slug(evaluation.column)}.json"

    def config(self) -> Any:
        config = command_line.load(str(ROOT / "configs" / f"{self.row.config}.py"))
        config.update_from_flattened_dict({**self.row.fields, "seed": self.seed})
        return config


def small_row(depth: int, cardinality: int, width: int, name: str = "", **others: Any) -> Row:
    """Return a small network; `others` are further parts of the row, `fields` besides those of the network."""
    shape = {"name": "", "family": "small", "depth": depth, "cardinality": cardinality, "bottleneck_width": width}
    fields = {f"model.{field}": value for field, value in shape.items()} | others.pop("fields", {})
    return Row(name or f"{cardinality}x{width}d", BUILTIN, fields, **others)


def tiny_scale(rows: Sequence[Row], takes: str, num_epochs: float = 4.0, **others: Any) -> Scale:
    """Return a scale of minutes on two cores: the built-in images, two seeds."""
    return Scale([_trained(row, BUILTIN, num_epochs) for row in rows], (0, 1), takes, **others)


def small_scale(rows: Sequence[Row], takes: str, num_epochs: float = 6.0, **others: Any) -> Scale:
    """Return a scale of hours on a CPU: all of Fashion-MNIST, three seeds."""
    return Scale([_trained(row, FASHION_MNIST, num_epochs) for row in rows], (0, 1, 2), takes, **others)


def _trained(row: Row, config: str, num_epochs: float) -> Row:
    return dataclasses.replace(row, config=config, fields={**row.fields, "num_epochs": num_epochs})


def flags_of(fields: Fields) -> list[str]:
    """Return `--config.model.depth=50` and so on, for `main.py`."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


def runs_of(scale: Scale, out: str, seeds: Sequence[int]) -> list[Run]:
    """Return all runs, seed by seed: when a table is stopped early, every row has the same number of runs."""
    return [Run(row, seed, f"{out.rstrip('/')}/{row.slug}_seed{seed}") for seed in seeds for row in scale.rows]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
