"""From the metrics of the runs to one table: mean and standard error over the seeds, beside what is published."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from experiments.common import files
from experiments.common.study import Evaluation, Row, Run, Scale, Study
from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.models import zoo
from resnext_jax.models.complexity import multiply_adds
from resnext_jax.progress import duration
from resnext_jax.runtime.curves import errors_by_epoch
from resnext_jax.runtime.writer import read_metrics

Curves = tuple[list[float], list[float], list[float]]


@dataclasses.dataclass(frozen=True)
class Made:
    """What one run gave.

    Attributes:
      seed: of the run.
      errors: in %, by column: of the last evaluation, and of the others (`study.Evaluation`).
      best: the smallest top-1 error of any epoch, in %.
      train_s: seconds of its steps alone.
      images_per_s: of these.
      curves: epochs, training and validation errors in % there (`curves.errors_by_epoch`).
      curves_1k: the same with 1K-way validation errors; None where the run has none.
    """

    seed: int
    errors: Mapping[str, float]
    best: float
    train_s: float
    images_per_s: float
    curves: Curves
    curves_1k: Curves | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of the table: its runs, what is missing of them (`seed 1`, `seed 0, 320 px`), what the network costs."""

    row: Row
    made: Sequence[Made]
    missing: Sequence[str]
    params: int
    multiply_adds: int

    def values(self, column: str) -> list[float]:
        """The errors of the runs that have this column."""
        return [made.errors[column] for made in self.made if column in made.errors]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error sqrt(sum((x - mean)^2) / (n - 1) / n); None of one value alone.

    >>> mean_and_error([1.0, 2.0, 3.0, 6.0])  # the squares sum to 14: sqrt(14 / 3 / 4)
    (3.0, 1.0801234497346435)
    """
    if len(values) < 2:
        return statistics.fmean(values), None
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def percent(values: Sequence[float]) -> str:
    """`12.34 ± 0.05`; the number alone where there is one."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:.2f}" if error is None else f"{mean:.2f} ± {error:.2f}"


def digits(published: float) -> str:
    """With one digit behind the point, or two where it has them."""
    return f"{published:.1f}" if round(10 * published) == 10 * published else f"{published:.2f}"


def result_of(
    row: Row,
    runs: Sequence[Run],
    done: Sequence[Run],
    others: Mapping[str, Mapping[str, float]],
    evaluations: Sequence[Evaluation] = (),
) -> Result:
    """The row of the table.

    Args:
      row: of the study.
      runs: those that belong to the row.
      done: those of them that have their last evaluation.
      others: errors of other evaluations, by workdir and column.
      evaluations: those that every run should have.
    """
    made = []
    for run in done:
        rows = read_metrics(run.workdir)
        steps = [row for row in rows if row["phase"] == "train" and row.get("images_per_s")]
        evaluated = [row for row in rows if row["phase"] == "evaluate"]
        images, train_s = sum(row["images"] for row in steps), sum(row["images"] / row["images_per_s"] for row in steps)
        last = {f"top-{k}": 100 * (1 - evaluated[-1][f"top{k}"]) for k in (1, 5)}
        best = 100 * (1 - max(row["top1"] for row in evaluated))
        errors = last | dict(others.get(run.workdir, {}))
        one_k = all("top1_present" in row for row in evaluated)
        curves = errors_by_epoch(rows), errors_by_epoch(rows, "top1_present") if one_k else None
        made.append(Made(run.seed, errors, best, train_s, images / max(train_s, 1e-9), *curves))
    missing = [f"seed {run.seed}" for run in runs if run not in done]
    missing += [
        f"seed {run.seed}, {evaluation.column}"
        for evaluation in evaluations
        for run in done
        if f"{evaluation.column} top-1" not in others.get(run.workdir, {})
    ]
    return Result(row, made, missing, *cost(runs[0].config()))


def cost(config: Any) -> tuple[int, int]:
    """Parameters, and multiply-adds of one image forward."""
    model = zoo.build_model(
        zoo.select(**config.model),
        dataset_info(config.data.name).num_classes,
        platform="cpu",
        conv_impl="native",
        compute_dtype="float32",
        bn_group_images=0,
    )
    shape = config.data.image_size_px, config.data.image_size_px, len(config.data.mean)
    images = jax.ShapeDtypeStruct((1, *shape), "float32")
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params)), multiply_adds(model, shape)


# --------------------------------------------------------------------------------------------------------- The table


def table(study: Study, name: str, results: Sequence[Result], seeds: Sequence[int]) -> str:
    """The table in Markdown, columns aligned; it says what runs and evaluations are missing, or that it is complete."""
    scale = study.scales[name]
    columns = columns_of(study, scale)
    stands_for = any(result.row.like for result in results)
    head = ["network", *(["stands for"] if stands_for else []), "parameters", "multiply-adds"]
    published = {column for result in results for column in result.row.published}
    where = " (ImageNet)" if stands_for else ""
    for column in columns:
        head += [*([f"published {column}{where}"] if column in published else []), f"{column} here"]
    head += [*(["best epoch"] if "top-1" in columns else []), "runs", "images/s", "time of a run"]
    lines = [head]
    for result in results:
        line = [result.row.name, *([result.row.like] if stands_for else [])]
        line += [f"{result.params:,}", f"{result.multiply_adds / 1e6:,.1f} M"]
        for column in columns:
            error = result.row.published.get(column)
            line += ["" if error is None else digits(error)] if column in published else []
            line += [percent(result.values(column))]
        made = result.made
        line += [percent([one.best for one in made])] if "top-1" in columns else []
        line += [f"{len(made)} of {len(seeds)}"]
        line += [f"{statistics.fmean(one.images_per_s for one in made):,.0f}" if made else ""]
        line += [duration(statistics.fmean(one.train_s for one in made)) if made else ""]
        lines.append(line)
    missing = [f"{result.row.name} {what}" for result in results for what in result.missing]
    note = f"**Not complete**: {len(missing)} missing: {'; '.join(missing)}." if missing else "Complete."
    words = (
        "Errors in % on the validation images at the last step, mean ± standard error over the runs; `best epoch` is\n"
        "the smallest of any epoch. Multiply-adds of one image. Time and images/s are of the training steps alone."
    )
    return f"# {study.title}, --scale={name}\n\n{files.markdown(lines)}\n\n{words}\n\n{note}\n"


def columns_of(study: Study, scale: Scale) -> list[str]:
    """Of errors: those of the study, then top-1 and top-5 of every other evaluation that is published or made."""
    kinds = [column for column in ("top-1", "top-5") if column in study.columns]
    return [*study.columns, *(f"{other.column} {kind}" for other in scale.evaluations for kind in kinds)]


def as_json(study: Study, name: str, results: Sequence[Result]) -> dict[str, Any]:
    """All numbers of the table, for programs."""
    rows = []
    for result in results:
        columns = sorted({column for made in result.made for column in made.errors})
        means = {column: mean_and_error(result.values(column)) for column in columns}
        rows.append(
            {
                "name": result.row.name,
                "stands_for": result.row.like,
                "group": result.row.group,
                "params": result.params,
                "multiply_adds": result.multiply_adds,
                "published": dict(result.row.published),
                "mean": {column: mean for column, (mean, _) in means.items()},
                "standard_error": {column: error for column, (_, error) in means.items()},
                "missing": list(result.missing),
                "runs": [
                    {
                        **{key: value for key, value in dataclasses.asdict(made).items() if "curves" not in key},
                        "training": made.curves[1][-1],  # top-1 error of the last epoch, running, of augmented images
                    }
                    for made in result.made
                ],
            }
        )
    complete = not any(result.missing for result in results)
    return {"experiment": study.name, "scale": name, "complete": complete, "rows": rows}
