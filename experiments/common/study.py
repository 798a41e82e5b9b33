"""What an experiment is, as data: the rows of a table, the scales at which they are trained, the flags that follow."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnext_jax.config import command_line
from resnext_jax.errors import raise_all, unknown

ROOT = Path(__file__).resolve().parents[2]
Fields = Mapping[str, Any]  # of a config, by their dotted names
NOTHING: Fields = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One network, trained once for every seed.

    Attributes:
      name: as the paper's table has it, or of the small network that stands for one of it.
      config: file of configs/, without `.py`.
      fields: of that config, changed.
      published: errors in %, by column ("top-1", "top-5", or that of an `Evaluation`).
      group: rows of one group are compared with each other; a figure has a panel for each.
      like: the row of the paper that a small network stands for, with its published number.
    """

    name: str
    config: str
    fields: Fields = dataclasses.field(default_factory=dict)
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    group: str = ""
    like: str = ""

    @property
    def slug(self) -> str:
        """Of workdirs and flags: `resnext_50_32x4d`."""
        return _slug(self.name)

    def trained(self, config: str, num_epochs: float) -> "Row":
        """The same network with another config, for so many epochs."""
        return dataclasses.replace(self, config=config, fields={**self.fields, "num_epochs": num_epochs})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Another evaluation of the trained networks: `--mode=evaluate` with `fields` changed.

    Attributes:
      column: of the table; "320 px" has the columns "320 px top-1" and "320 px top-5".
      fields: of the config.
    """

    column: str
    fields: Fields

    @property
    def slug(self) -> str:
        """Of files."""
        return _slug(self.column)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the networks and the data are, and how often each is trained.

    Attributes:
      rows: of the table, in its order.
      seeds: of the runs of each row.
      takes: how long, in words, and on what.
      evaluations: besides that at the end of training.
      on_pod: the commands are printed, and run here only where that is asked for.
    """

    rows: Sequence[Row]
    seeds: Sequence[int]
    takes: str
    evaluations: Sequence[Evaluation] = ()
    on_pod: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """One table or figure of the paper.

    Attributes:
      name: of its folder in experiments/.
      title: of its table.
      scales: by name.
      draw: makes its picture of a matplotlib figure and the results (`draw`).
      columns: of published errors, those that every table has.
    """

    name: str
    title: str
    scales: Mapping[str, Scale]
    draw: Callable[[Any, Sequence[Any]], None]
    columns: Sequence[str] = ("top-1",)


@dataclasses.dataclass(frozen=True)
class Run:
    """One row with one seed: where it lies, and the flags that `main.py` trains it with."""

    row: Row
    seed: int
    workdir: str
    fields: Fields

    @property
    def name(self) -> str:
        return f"{self.row.name} seed {self.seed}"

    @property
    def flags(self) -> list[str]:
        """Of the config; the workdir comes beside them."""
        return [f"--config=configs/{self.row.config}.py", *flags_of(self.fields)]

    def config(self) -> Any:
        """The config that these flags make."""
        config = command_line.load(str(ROOT / "configs" / f"{self.row.config}.py"))
        config.update_from_flattened_dict(dict(self.fields))
        return config


def flags_of(fields: Fields) -> list[str]:
    """`--config.model.depth=50` and so on, for `main.py`."""
    return [f"--config.{name}={_text(value)}" for name, value in fields.items()]


def runs_of(scale: Scale, out: str, seeds: Sequence[int], extra: Fields = NOTHING) -> list[Run]:
    """All runs, seed by seed: of a table that is stopped early every row has as many.

    Args:
      scale: of the study.
      out: the results folder.
      seeds: of each row.
      extra: fields that all runs get besides.
    """
    return [
        Run(row, seed, f"{out.rstrip('/')}/{row.slug}_seed{seed}", {**row.fields, **extra, "seed": seed})
        for seed in seeds
        for row in scale.rows
    ]


def chosen(study: Study, scale: str, names: Sequence[str]) -> list[Row]:
    """The rows of a scale with these names (or slugs); all, where none is named.

    Raises:
      UserError: there is no such scale or row.
    """
    raise_all([unknown("scale", scale, study.scales)] if scale not in study.scales else [])
    rows = study.scales[scale].rows
    slugs = {row.slug for row in rows}
    raise_all([unknown("row", name, slugs) for name in names if name not in slugs | {row.name for row in rows}])
    return [row for row in rows if not names or row.name in names or row.slug in names]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
