"""Experiments of one or two rows, runs that are only their metrics, and how a test calls the command."""

import importlib
import json

from experiments.common import command
from experiments.common.study import Scale, Study
from experiments.table3_cardinality.curves import curves_and_errors

STUDIES = {
    name: importlib.import_module(f"experiments.{name}.run").STUDY
    for name in (
        *("table3_cardinality", "table4_capacity", "residual_connections"),
        *("table5_resolution", "table6_imagenet5k", "table7_cifar"),
    )
}
STEPS, SAVED_STEP = 30, 10
FIELDS = {
    "model.name": "resnext11_4x2d_tiny",
    "batch_size": 32,
    "bn_group_images": 8,
    "schedule.name": "step",
    "schedule.warmup_epochs": 0.0,
    "num_steps": STEPS,
    "evaluate.every_steps": STEPS,
    "checkpoint.every_steps": SAVED_STEP,
}


def study_of(*rows, seeds=(0,)):
    return Study("two_steps", "Two steps", {"tiny": Scale(rows, seeds, "seconds")}, curves_and_errors)


def execute(study, out, *flags):
    return command.execute(study, command.flags(study, None).parse_args([f"--out={out}", *flags]))


def metrics(workdir, top1s):
    """A run of 10 steps an epoch, evaluated at the end of each, with these accuracies."""
    workdir.mkdir(parents=True)
    rows = []
    for epoch, top1 in enumerate(top1s, start=1):
        rows.append({"step": 10 * epoch, "epoch": epoch, "phase": "train", "images": 320, "top1": 0.5})
        rows[-1]["images_per_s"] = 40.0
        rows.append({"step": 10 * epoch, "epoch": epoch, "phase": "evaluate", "top1": top1, "top5": 0.99})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def execute_full(name, *flags):
    study = STUDIES[name]
    return command.execute(study, command.flags(study, None).parse_args(["--scale=full", *flags]))
