"""From the metrics of the runs to one table: mean and standard error over the seeds, beside what is published."""

import functools
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax

from experiments.common.files import markdown
from experiments.common.runs import evaluated
from experiments.common.study import Run, Scale, Study
from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.models import zoo
from resnext_jax.models.complexity import multiply_adds
from resnext_jax.progress import duration
from resnext_jax.runtime.curves import errors_by_epoch
from resnext_jax.runtime.writer import read_metrics

WORDS = (
    "Errors in % on the validation images at the last step, mean ± standard error over the runs; `best epoch` is\n"
    "the smallest of any epoch. Multiply-adds of one image. Time and images/s are of the training steps alone."
)


def rows_of(scale: Scale, runs: Sequence[Run], done: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rows of the table; `done` are those of the runs that have their last evaluation."""
    rows = []
    for row in scale.rows:
        mine = [run for run in runs if run.row is row]
        made = [made_by(run, scale) for run in mine if run in done]
        missing = [f"seed {run.seed}" for run in mine if run not in done]
        missing += [
            f"seed {run['seed']}, {other.column}"
            for other in scale.evaluations
            for run in made
            if f"{other.column} top-1" not in run["errors"]
        ]
        params, products = cost(mine[0].config().to_json_best_effort())
        numbers = {"name": row.name, "stands_for": row.like, "group": row.group, "params": params}
        numbers |= {"multiply_adds": products, "published": dict(row.published)}
        columns = sorted({column for run in made for column in run["errors"]})
        means = {column: mean_and_error(errors_of({"runs": made}, column)) for column in columns}
        numbers["mean"] = {column: mean for column, (mean, _) in means.items()}
        numbers["standard_error"] = {column: error for column, (_, error) in means.items()}
        rows.append({**numbers, "missing": missing, "runs": made})
    return rows


def made_by(run: Run, scale: Scale) -> dict[str, Any]:
    """Return what a run gave: its errors in % by column, the time of its training steps alone, and its curves."""
    rows = read_metrics(run.workdir)
    steps = [row for row in rows if row["phase"] == "train" and row.get("images_per_s")]
    evaluations = [row for row in rows if row["phase"] == "evaluate"]
    train_s, curves = sum(row["images"] / row["images_per_s"] for row in steps), errors_by_epoch(rows)
    last = {"": evaluations[-1]} | {f"{other.column} ": evaluated(run, other) for other in scale.evaluations}
    has_1k = all("top1_present" in row for row in evaluations)
    return {
        "seed": run.seed,
        "errors": {f"{what}top-{k}": 100 * (1 - row[f"top{k}"]) for what, row in last.items() if row for k in (1, 5)},
        "best": 100 * (1 - max(row["top1"] for row in evaluations)),
        "train_s": train_s,
        "images_per_s": sum(row["images"] for row in steps) / max(train_s, 1e-9),
        "training": curves[1][-1],  # top-1 error of the last epoch: running, of augmented images
        "curves": curves,
        "curves_1k": errors_by_epoch(rows, "top1_present") if has_1k else None,
    }


@functools.cache
def cost(config_json: str) -> tuple[int, int]:
    """Return the parameters, and the multiply-adds of one image forward."""
    config = json.loads(config_json)
    data, arch = config["data"], zoo.select(**config["model"])
    kinds: dict[str, Any] = dict(platform="cpu", conv_impl="native", compute_dtype="float32", bn_group_images=0)
    model = zoo.build_model(arch, dataset_info(data["name"]).num_classes, **kinds)
    shape = data["image_size_px"], data["image_size_px"], len(data["mean"])
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), "float32"))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params)), multiply_adds(model, shape)


def errors_of(row: dict[str, Any], column: str) -> list[float]:
    """Return the errors of the runs of a row that have this column."""
    return [run["errors"][column] for run in row["runs"] if column in run["errors"]]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error sqrt(sum((x - mean)^2) / (n - 1) / n), None for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def percent(values: Sequence[float]) -> str:
    """Return `12.34 ± 0.05`, or only the number where there is one."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:.2f}" if error is None else f"{mean:.2f} ± {error:.2f}"


def table(study: Study, name: str, rows: Sequence[dict[str, Any]], num_seeds: int) -> str:
    """Return the table in Markdown; it says which runs and evaluations are missing, or that it is complete."""
    kinds = [column for column in ("top-1", "top-5") if column in study.columns]
    others = [f"{other.column} {kind}" for other in study.scales[name].evaluations for kind in kinds]
    published = {column for row in rows for column in row["published"]}
    stands_for = any(row["stands_for"] for row in rows)
    lines = []
    for row in rows:
        runs = row["runs"]
        line = {"network": row["name"]} | ({"stands for": row["stands_for"]} if stands_for else {})
        line |= {"parameters": f"{row['params']:,}", "multiply-adds": f"{row['multiply_adds'] / 1e6:,.1f} M"}
        for column in (*study.columns, *others):
            if column in published:
                line[f"published {column}{' (ImageNet)' * stands_for}"] = str(row["published"].get(column, ""))
            line[f"{column} here"] = percent(errors_of(row, column))
        if "top-1" in study.columns:
            line["best epoch"] = percent([run["best"] for run in runs])
        line["runs"] = f"{len(runs)} of {num_seeds}"
        line["images/s"] = f"{statistics.fmean(run['images_per_s'] for run in runs):,.0f}" if runs else ""
        line["time of a run"] = duration(statistics.fmean(run["train_s"] for run in runs)) if runs else ""
        lines.append(line)
    text = markdown([list(lines[0]), *(list(line.values()) for line in lines)])
    missing = [f"{row['name']} {what}" for row in rows for what in row["missing"]]
    note = f"**Not complete**: {len(missing)} missing: {'; '.join(missing)}." if missing else "Complete."
    return f"# {study.title}, --scale={name}\n\n{text}\n\n{WORDS}\n\n{note}\n"


def as_json(study: Study, name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return all numbers of the table, without the curves."""
    numbers = [
        {**row, "runs": [{key: run[key] for key in run if "curves" not in key} for run in row["runs"]]} for row in rows
    ]
    complete = not any(row["missing"] for row in rows)
    return {"experiment": study.name, "scale": name, "complete": complete, "rows": numbers}
