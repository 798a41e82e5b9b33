"""The experiments: their rows against the paper's tables, and a small one that is trained, killed and resumed."""

import argparse
import dataclasses
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import tiny
from PIL import Image

from configs import common
from experiments.common import collect, command, draw, files, runs, small
from experiments.common.study import Evaluation, Row, Run, Scale, Study, chosen, runs_of
from resnext_jax import config_file
from resnext_jax.errors import UserError
from resnext_jax.train.problems import evaluation_problems
from resnext_jax.train.protocol import protocol_problems
from resnext_jax.train.resume import flat

STUDIES = {
    name: importlib.import_module(f"experiments.{name}.run").STUDY
    for name in (
        *("table3_cardinality", "table4_capacity", "residual_connections"),
        *("table5_resolution", "table6_imagenet5k", "table7_cifar"),
    )
}
# By hand from the paper: config, top-1 error in %, and top-5 where the table has it.
PAPER = {
    "table3_cardinality": {
        ("resnet50", 23.9), ("resnext50_2x40d", 23.0), ("resnext50_4x24d", 22.6), ("resnext50_8x14d", 22.3),
        ("resnext50_32x4d", 22.2), ("resnet101", 22.0), ("resnext101_2x40d", 21.7), ("resnext101_4x24d", 21.4),
        ("resnext101_8x14d", 21.3), ("resnext101_32x4d", 21.2),
    },
    "table4_capacity": {
        ("resnet101", 22.0, 6.0), ("resnext101_32x4d", 21.2, 5.6), ("resnet200", 21.7, 5.8),
        ("resnet101_1x100d", 21.3, 5.7), ("resnext101_2x64d", 20.7, 5.5), ("resnext101_64x4d", 20.4, 5.3),
    },
    "residual_connections": {
        ("resnet50", 23.9), ("resnet50_no_shortcut", 31.2), ("resnext50_32x4d", 22.2),
        ("resnext50_32x4d_no_shortcut", 26.1),
    },
    "table5_resolution": {("resnet200", 21.7, 5.8), ("resnext101_64x4d", 20.4, 5.3)},
    "table6_imagenet5k": {
        ("resnet50_imagenet5k", 45.5, 19.4), ("resnext50_32x4d_imagenet5k", 42.3, 16.8),
        ("resnet101_imagenet5k", 42.4, 16.9), ("resnext101_32x4d_imagenet5k", 40.1, 15.1),
    },
    "table7_cifar": {
        ("wrn28_10_cifar10", 4.17), ("wrn28_10_cifar100", 20.50), ("resnext29_8x64d_cifar10", 3.65),
        ("resnext29_8x64d_cifar100", 17.77), ("resnext29_16x64d_cifar10", 3.58), ("resnext29_16x64d_cifar100", 17.31),
    },
}  # fmt: skip
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
# What a Ctrl-C and a kill are sent to: the command of an experiment of one row.
PROGRAM = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from experiments.common import draw
from experiments.common.command import main
from experiments.common.study import Row, Scale, Study
rows = [Row("one", "quickstart", json.loads(sys.argv.pop(1)), {"top-1": 22.5})]
main(Study("two_steps", "Two steps", {"tiny": Scale(rows, (0,), "seconds")}, draw.curves_and_errors), None)
"""


def study_of(*rows, seeds=(0,)):
    return Study("two_steps", "Two steps", {"tiny": Scale(rows, seeds, "seconds")}, draw.curves_and_errors)


def execute(study, out, *flags):
    parser = command.parser_of(study.name, {"tiny": ""}, None)
    command.add_flags(parser, study)
    return command.execute(study, parser.parse_args([f"--out={out}", *flags]))


def metrics(workdir, top1s):
    """A run of 10 steps an epoch, evaluated at the end of each, with these accuracies."""
    workdir.mkdir(parents=True)
    rows = []
    for epoch, top1 in enumerate(top1s, start=1):
        rows.append({"step": 10 * epoch, "epoch": epoch, "phase": "train", "images": 320, "top1": 0.5})
        rows[-1]["images_per_s"] = 40.0
        rows.append({"step": 10 * epoch, "epoch": epoch, "phase": "evaluate", "top1": top1, "top5": 0.99})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))


# ------------------------------------------------------------------------------------------------ The paper's tables


@pytest.mark.parametrize("name", STUDIES)
def test_full_rows_are_the_papers(name):
    scale = STUDIES[name].scales["full"]
    rows = {
        (row.config, *(row.published[column] for column in ("top-1", "top-5") if column in row.published))
        for row in scale.rows
        if row.published
    }
    assert rows == PAPER[name]
    assert list(scale.seeds) == (list(range(10)) if name == "table7_cifar" else [0])
    # The recipe to the letter: nothing of it is changed, but for the other networks of Figure 7.
    changed = {field for row in scale.rows for field in row.fields}
    assert changed == ({"model.name"} if name == "table7_cifar" else set())


def test_other_columns_are_the_papers():
    resolution = {row.config: row.published for row in STUDIES["table5_resolution"].scales["full"].rows}
    columns = ("320 px top-1", "320 px top-5", "multi-scale top-1", "multi-scale top-5")
    assert [resolution["resnext101_64x4d"][column] for column in columns] == [19.1, 4.4, 17.7, 3.7]
    assert [resolution["resnet200"][column] for column in columns[:2]] == [20.1, 4.8]
    one_k = [
        (row.published["1K-way top-1"], row.published["1K-way top-5"])
        for row in STUDIES["table6_imagenet5k"].scales["full"].rows
    ]
    assert one_k == [(27.1, 8.2), (24.4, 6.6), (24.2, 6.8), (22.2, 5.7)]
    step_times = importlib.import_module("experiments.step_times.run")
    assert step_times.PUBLISHED_S == {"resnet101": 0.70, "resnext101_32x4d": 0.95, "resnext101_64x4d": 1.7}


@pytest.mark.parametrize("name", STUDIES)
def test_every_command_makes_the_config_that_its_run_expects(name):
    """What main.py parses from the flags is what a finished run is compared with."""
    for scale in STUDIES[name].scales.values():
        for run in runs_of(scale, "/out", scale.seeds[-1:]):
            with tiny.command_line(*run.flags, "--workdir=/out/x") as (argv, values):
                config_file.parse(argv, values)
            assert values.config.to_json_best_effort() == run.config().to_json_best_effort(), run.name
            assert run.config().seed == scale.seeds[-1]


@pytest.mark.parametrize("name", STUDIES)
def test_every_other_evaluation_is_one_that_there_is(name):
    for scale in STUDIES[name].scales.values():
        for evaluation in scale.evaluations:
            config = runs_of(scale, "/out", [0])[0].config()
            config_file.override(config, [f"{field}={value}" for field, value in evaluation.fields.items()])
            assert evaluation_problems(config, 1) + protocol_problems(config) == [], evaluation.column


@pytest.mark.parametrize("name", STUDIES)
def test_names_are_unique(name):
    for scale in STUDIES[name].scales.values():
        assert len({row.slug for row in scale.rows}) == len(scale.rows)


def test_printed_commands_are_for_the_pod(tmp_path, capsys):
    assert execute_full("table7_cifar", f"--out={tmp_path}/none", "--data_dir=/data/it's") == 0
    printed = capsys.readouterr().out
    assert printed.count("gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command=") == 11
    assert not (tmp_path / "none").exists()
    first = printed[printed.index("gcloud") : printed.index("\n\n", printed.index("gcloud"))]
    words = shlex.split(first)
    script = words[-1].removeprefix("--command=")
    # The shell of the host: what run.sh is called with for every seed.
    shell = script.replace("cd resnext_jax", "true").replace("bash run.sh", "printf '<%s>'; echo; printf '<%s>'")
    said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert "<--config=configs/wrn28_10_cifar10.py><--config.data.dir=/data/it's><--config.seed=9>" in said
    assert f"<--workdir={tmp_path}/none/wrn_28_10_cifar_10_seed9>" in said


def test_the_commands_that_go_on_ask_for_the_same(tmp_path, capsys):
    """With --run alone, ten seeds of eleven rows would be trained where one of one was asked for."""
    flags = [f"--out={tmp_path}/none", "--data_dir=/data/it's", "--seeds=3", "--rows=8x64d_cifar_10"]
    assert execute_full("table7_cifar", *flags) == 0
    printed = capsys.readouterr().out
    again = [shlex.split(line) for line in printed.splitlines() if line.startswith("python ")]
    assert [words[-1] for words in again] == ["--collect", "--run"]
    for words in again:
        assert words[2:-1] == ["--scale=full", *flags]


def recipe_of(name, config):
    if name != "table7_cifar":
        return common.imagenet5k() if name == "table6_imagenet5k" else common.imagenet()
    return (common.wide_resnet if config.startswith("wrn") else common.cifar)(100 if config.endswith("100") else 10)


@pytest.mark.parametrize("name", STUDIES)
def test_full_runs_are_the_recipe_but_for_the_network(name):
    """What the recipes are is tested field by field in tests/test_configs.py."""
    for run in runs_of(STUDIES[name].scales["full"], "/out", [7]):
        configs = recipe_of(name, run.row.config), run.config()
        recipe, found = (flat(json.loads(config.to_json_best_effort())) for config in configs)
        network = {"model.name", *(["model.shortcut"] if "no shortcuts" in run.name else [])}
        assert {field for field in found if found[field] != recipe[field]} == {*network, "seed"}, run.name


def execute_full(name, *flags):
    study = STUDIES[name]
    parser = command.parser_of(study.name, {"full": ""}, None)
    command.add_flags(parser, study)
    return command.execute(study, parser.parse_args(["--scale=full", *flags]))


def test_small_networks_cost_the_same():
    """By hand, at 14 px: 1x1 of 128 to C d channels, grouped 3x3, 1x1 back to 128."""
    by_hand = {
        (1, 32): 128 * 32 + 9 * 32 * 32 + 32 * 128,
        (2, 20): 128 * 40 + 9 * 40 * 20 + 40 * 128,
        (4, 12): 128 * 48 + 9 * 48 * 12 + 48 * 128,
        (8, 7): 128 * 56 + 9 * 56 * 7 + 56 * 128,
        (32, 2): 128 * 64 + 9 * 64 * 2 + 64 * 128,
    }
    assert list(by_hand.values()) == [17408, 17440, 17472, 17864, 17536]
    costs = {}
    for shape in by_hand:
        row = small.row(11, *shape).trained(small.BUILTIN, 1.0)
        costs[shape] = collect.cost(Run(row, 0, "", row.fields).config())
        more = collect.cost(Run(row, 0, "", {**row.fields, "model.depth": 20}).config())
        # One more block in each stage, of 1, 4 and 16 times the weights on 14, 7 and 4 px.
        assert more[1] - costs[shape][1] == by_hand[shape] * (14 * 14 + 4 * 7 * 7 + 16 * 4 * 4)
    params, multiply_adds = zip(*costs.values(), strict=True)
    assert max(params) < 1.10 * min(params)
    assert max(multiply_adds) < 1.06 * min(multiply_adds)


def test_complexity_of_the_papers_blocks():
    table2 = importlib.import_module("experiments.table2_complexity.run")
    row = table2.row_of(table2.Complexity("resnext50_32x4d"), table2.PAPER["resnext50_32x4d"])
    assert row["block_weights"] == 256 * 128 + 9 * 128 * 4 + 128 * 256
    assert row["block_multiply_adds"] == 56 * 56 * row["block_weights"]
    assert row["params"] == 25_028_904
    assert [figures.width for figures in table2.PAPER.values()] == [64, 80, 96, 112, 128]


def test_the_readme_of_table_2_has_what_the_command_prints(tmp_path, capsys):
    table2 = importlib.import_module("experiments.table2_complexity.run")
    assert table2.execute(argparse.Namespace(scale="full", out=str(tmp_path / "out"))) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    readme = (Path(table2.__file__).parent / "README.md").read_text().splitlines()
    assert [line for line in readme if line.startswith("|")] == printed


# ------------------------------------------------------------------------------------------------------- Collecting


def test_mean_and_standard_error_by_hand():
    # Mean 3; squares 4 + 1 + 0 + 9 = 14; sqrt(14 / 3) = 2.1602; / sqrt(4) = 1.0801.
    assert collect.mean_and_error([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(1.0801234))
    assert collect.mean_and_error([5.0]) == (5.0, None)
    assert collect.percent([20.0, 21.0]) == "20.50 ± 0.50"
    assert [collect.percent([20.0]), collect.percent([])] == ["20.00", ""]


def test_table_of_made_up_runs(tmp_path):
    rows = [
        Row("1x32d, a", "quickstart", {"num_epochs": 2.0}, {"top-1": 23.9}, like="50 layers"),
        Row("b", "quickstart", {"num_epochs": 2.0, "seed": 1}),
    ]
    study = study_of(*rows, seeds=(0, 1))
    metrics(tmp_path / "1x32d_a_seed0", [0.90, 0.80])
    metrics(tmp_path / "1x32d_a_seed1", [0.70, 0.82])
    metrics(tmp_path / "b_seed0", [0.75])  # one epoch of two
    files.write_whole(files.epath.Path(tmp_path / files.MARK), '{"experiment": "two_steps", "scale": "tiny"}')
    assert execute(study, tmp_path, "--collect", "--seeds=0,1") == 0
    table = (tmp_path / "table.md").read_text()
    (line,) = [line for line in table.splitlines() if line.startswith("| 1x32d, a")]
    cells = [cell.strip() for cell in line.split("|")]
    # Errors 20 and 18: mean 19, deviation sqrt(2), / sqrt(2) = 1. Best 10 and 18. 640 images at 40/s.
    assert cells[2] == "50 layers"
    assert cells[5:] == ["23.9", "19.00 ± 1.00", "14.00 ± 4.00", "2 of 2", "40", "0:16", ""]
    assert "**Not complete**: 2 missing: b seed 0; b seed 1." in table
    assert "Complete." not in table
    result = json.loads((tmp_path / "results.json").read_text())
    assert not result["complete"]
    assert result["rows"][0]["mean"] == {"top-1": pytest.approx(19.0), "top-5": pytest.approx(1.0)}
    assert result["rows"][0]["standard_error"]["top-1"] == pytest.approx(1.0)
    assert result["rows"][1]["missing"] == ["seed 0", "seed 1"]


def test_a_table_with_an_evaluation_missing_is_not_complete(tmp_path):
    """And the figure has what is there where it belongs."""
    evaluations = [Evaluation("32 px", {"data.image_size_px": 32}), Evaluation("40 px", {"data.image_size_px": 40})]
    scale = Scale([Row("one", "quickstart", {"num_epochs": 1.0})], (0, 1), "", evaluations)
    figures = []
    study = Study("two_steps", "", {"tiny": scale}, lambda *args, **named: figures.append((args, named)))
    for seed, sizes_px in ((0, [40]), (1, [32, 40])):
        metrics(tmp_path / f"one_seed{seed}", [0.8])
        for size_px in sizes_px:
            kept = {"fields": {"data.image_size_px": size_px}, "top1": 1 - size_px / 100, "top5": 1.0}
            (tmp_path / f"one_seed{seed}" / f"evaluation_{size_px}_px.json").write_text(json.dumps(kept))
    files.write_whole(files.epath.Path(tmp_path / files.MARK), '{"experiment": "two_steps", "scale": "tiny"}')
    assert execute(study, tmp_path, "--collect", "--seeds=0,1") == 0
    assert "**Not complete**: 1 missing: one seed 0, 32 px." in (tmp_path / "table.md").read_text()
    result = json.loads((tmp_path / "results.json").read_text())
    assert (result["complete"], result["rows"][0]["missing"]) == (False, ["seed 0, 32 px"])

    (((_,), named),) = figures
    (of_both,) = named["results"]
    first = dataclasses.replace(of_both, made=of_both.made[:1], row=dataclasses.replace(of_both.row, name="half"))
    figure = matplotlib.figure.Figure()
    draw.sizes(figure, [first, of_both])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["as trained", "32 px", "40 px"]
    for bars, errors in zip(axes.containers, ([20, np.nan, 40], [20, 32, 40]), strict=True):
        np.testing.assert_allclose(np.asarray(bars.lines[0].get_ydata(), float), errors)


@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_has_something_on_it(name, tmp_path):
    scale = STUDIES[name].scales["tiny"]
    for index, run in enumerate(runs_of(scale, str(tmp_path), scale.seeds)):
        num_epochs = int(run.config().num_epochs)
        metrics(Path(run.workdir), np.linspace(0.5, 0.8 + 0.001 * index, num_epochs))
        for evaluation in scale.evaluations:
            kept = {"fields": dict(evaluation.fields), "top1": 0.81, "top5": 0.9}
            (Path(run.workdir) / f"evaluation_{evaluation.slug}.json").write_text(json.dumps(kept))
    files.write_whole(files.epath.Path(tmp_path / files.MARK), json.dumps({"experiment": name, "scale": "tiny"}))
    assert execute(STUDIES[name], tmp_path, "--collect") == 0
    assert (tmp_path / "table.md").read_text().endswith("\nComplete.\n")
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert picture.shape[1] > 600
    for color in draw.COLORS[: min(2, len(scale.rows))]:
        rgb = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(picture - np.array(rgb)).max(-1) < 8).sum() > 30, color


def test_figure_6_has_the_1k_way_errors_while_training(tmp_path):
    """Where the runs have them, as those of ImageNet-5K do; at small scale, without, it is as Figure 5."""
    study = STUDIES["table6_imagenet5k"]
    for name, has in (("full", True), ("tiny", False)):
        runs_here = runs_of(study.scales[name], str(tmp_path / name), [0])
        for run in runs_here:
            metrics(Path(run.workdir), [0.3, 0.5, 0.6])
            if has:
                path = Path(run.workdir) / "metrics.jsonl"
                path.write_text(path.read_text().replace('"top5": 0.99', '"top5": 0.99, "top1_present": 0.7'))
        results = [collect.result_of(run.row, [run], [run], {}) for run in runs_here]
        figure = matplotlib.figure.Figure()
        study.draw(figure, results)
        left = figure.axes[0]
        # Two networks of each depth; in Figure 6 their validation errors alone, 30 % throughout.
        lines = [line.get_ydata().tolist() for line in left.get_lines() if len(line.get_ydata())]
        assert left.get_ylabel() == ("1K-way top-1 error (%)" if has else "top-1 error (%)")
        assert lines == (
            [[pytest.approx(30.0)] * 3] * 2
            if has
            else [pytest.approx([50.0] * 3), pytest.approx([70.0, 50.0, 40.0])] * 2
        )


def test_step_times_beside_resnet101(tmp_path, monkeypatch, capsys):
    """Batches of 8 at 10, 8 and 4 images/s take 0.8, 1 and 2 s. One that failed is made at the next start, alone."""
    step_times = importlib.import_module("experiments.step_times.run")
    images_per_s, started = {"resnet101": 10.0, "resnext101_32x4d": 8.0, "resnext101_64x4d": 4.0}, []

    def start(words, log):
        (config,) = [word for word in words if word.startswith("--config=")]
        network = Path(config).stem
        started.append(network)
        fields = [word for word in words if word.startswith("--config.")]
        assert fields
        assert words.index(config) < min(map(words.index, fields))  # as the command wants
        if network == "resnext101_32x4d" and started.count(network) == 1:
            log.write_text("Killed")
            return 137
        line = json.dumps({"device": "abacus", "batch_size": 8, "train": {"ours": images_per_s[network]}})
        log.write_text(f"some words\n{line}\n")
        return 0

    monkeypatch.setattr(runs, "start", start)
    arguments = argparse.Namespace(scale="tiny", out=str(tmp_path / "out"), run=False)
    assert step_times.execute(arguments) == command.FAILED_STATUS
    said = capsys.readouterr()
    assert "resnext101_32x4d: failed (status 137)" in said.err
    assert "missing" in said.out
    assert step_times.execute(arguments) == 0
    assert started == ["resnet101", "resnext101_32x4d", "resnext101_64x4d", "resnext101_32x4d"]
    table = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "| res" in line]
    assert cells == [
        ["resnet101", "0.70 s", "1.00", "0.80", "1.00"],
        ["resnext101_32x4d", "0.95 s", "1.36", "1.00", "1.25"],
        ["resnext101_64x4d", "1.70 s", "2.43", "2.00", "2.50"],
    ]
    assert "on abacus" in table


def test_step_times_of_two_machines_are_not_set_beside_each_other(tmp_path, monkeypatch):
    step_times = importlib.import_module("experiments.step_times.run")
    monkeypatch.setattr(runs, "start", lambda *_: pytest.fail("started again"))
    out = tmp_path / "out"
    out.mkdir()
    (out / files.MARK).write_text('{"experiment": "step_times", "scale": "tiny"}')
    for network, device in (
        ("resnet101", "abacus"),
        ("resnext101_32x4d", "slide rule"),
        ("resnext101_64x4d", "abacus"),
    ):
        row = {"device": device, "batch_size": 8, "train": {"ours": 1.0}}
        (out / f"{network}.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"resnext101_64x4d on abacus; resnext101_32x4d on slide rule.*--out=DIR"):
        step_times.execute(argparse.Namespace(scale="tiny", out=str(out), run=False))
    assert not (out / "table.md").exists()


def test_fine_tuning_from_start_to_end(tmp_path, monkeypatch, capsys):
    """Accuracies by hand; one that fails ends it, with what to read. The training itself: train/test_finetune.py."""
    finetune = importlib.import_module("experiments.finetune.run")
    top1s, started = {"first": 0.9, "run0_seed0": 0.5, "run1_seed0": 0.25, "run2_seed0": 0.75, "run3_seed0": 0.8}, []
    broken = ["run1_seed0"]

    def start(words, log):
        workdir = Path(next(word for word in words if word.startswith("--workdir=")).removeprefix("--workdir="))
        started.append(workdir.name)
        if workdir.name in broken:
            log.write_text("error: so it is")
            return 2
        if not workdir.exists():
            metrics(workdir, [top1s[workdir.name]])
        return 0

    monkeypatch.setattr(runs, "start", start)
    arguments = argparse.Namespace(scale="tiny", out=str(tmp_path / "out"))
    assert finetune.execute(arguments) == command.FAILED_STATUS
    assert "run1_seed0: failed (status 2); the end of" in (said := capsys.readouterr().err)
    assert "error: so it is" in said
    assert started == ["first", "run0_seed0", "run1_seed0"]
    broken.clear()
    assert finetune.execute(arguments) == 0
    printed = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert printed == ["(50.00%)", "(25.00%)", "(75.00%)", "(80.00%)"]
    # Ten images of each of the five other classes, and the 300 for validation.
    assert len(list((tmp_path / "out" / "images" / "train").glob("*/*.png"))) == 50
    assert len(list((tmp_path / "out" / "images" / "validation").glob("*/*.png"))) == 1500
    with pytest.raises(UserError, match="has the results of finetune --scale=tiny, not of finetune --scale=full"):
        finetune.execute(argparse.Namespace(scale="full", out=str(tmp_path / "out")))


def test_what_the_compiler_says_of_step_times_is_labelled_an_estimate(tmp_path, monkeypatch, capsys):
    step_times = importlib.import_module("experiments.step_times.run")
    drawn, draw = [], step_times.draw

    def start(words, log):
        log.write_text(json.dumps({"topology": "v9:2x4", "device": "chip", "estimated_cycles": 30_000_000}) + "\n")
        return 0

    monkeypatch.setattr(runs, "start", start)
    monkeypatch.setattr(step_times, "draw", lambda figure, **more: drawn.append(figure) or draw(figure, **more))
    arguments = argparse.Namespace(scale="compiler", out=str(tmp_path / "out"), run=False)
    assert step_times.execute(arguments) == 0
    table = capsys.readouterr().out
    assert "one training step on v9:2x4" in table
    assert "here, M cycles (estimate of the TPU compiler)" in table
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["published", "estimate of the TPU compiler"]


# --------------------------------------------------------------------------------------------- Runs, really trained


def start(tmp_path, **environment):
    words = [sys.executable, "-c", PROGRAM, json.dumps(FIELDS), f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(tiny.ROOT), **environment}
    return subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(true, process=None, timeout_s=240.0):
    end_s = time.monotonic() + timeout_s
    while not true():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_killed_resumed_skipped_and_refused(tmp_path, one_device, monkeypatch, capfd):
    out = tmp_path / "out"
    workdir, log = out / "one_seed0", out / "one_seed0.log"
    study = study_of(Row("one", "quickstart", FIELDS, {"top-1": 22.5}))

    # Killed between its first checkpoint and its end, it takes the run with it.
    process = start(tmp_path)
    wait_for(lambda: (workdir / "checkpoints" / str(SAVED_STEP)).exists(), process)
    holder = json.loads((workdir / "run.lock").read_text())["pid"]
    process.kill()
    process.communicate()
    wait_for(lambda: is_gone(holder))
    assert not [row for row in rows_of(workdir) if row["phase"] == "evaluate"]

    assert execute(study, out) == 0
    assert f"resuming {workdir} at step {SAVED_STEP} of {STEPS}" in log.read_text()
    table = (out / "table.md").read_text()
    error = 100 * (1 - rows_of(workdir)[-1]["top1"])
    assert f"| {error:.2f} " in table
    assert "1 of 1" in table
    assert (out / "figure.png").stat().st_size > 5000
    capfd.readouterr()

    # Done, it is not started again; nor is it where the images lie elsewhere.
    with monkeypatch.context() as context:
        context.setattr(runs, "start", lambda *_: pytest.fail("started again"))
        assert execute(study, out, "--data_dir=/elsewhere") == 0
        assert "1 of 1 runs are done" in capfd.readouterr().err
        other = study_of(Row("one", "quickstart", {**FIELDS, "learning_rate": 0.2}))
        with pytest.raises(UserError, match="another recipe than 'one seed 0'") as caught:
            execute(other, out)
        assert "learning_rate was 0.1, is 0.2" in str(caught.value)
        assert "--out=DIR" in str(caught.value)

    # One that fails is named with its log, the others go on, and the table is not complete.
    broken = study_of(
        Row("broken", "quickstart", {**FIELDS, "num_steps": -1}), Row("one", "quickstart", FIELDS), seeds=(0,)
    )
    assert execute(broken, out) == command.FAILED_STATUS
    said = capfd.readouterr()
    assert f"failed (status 2); the end of {out / 'broken_seed0.log'}:" in said.err
    assert "error: num_steps=-1 must be positive" in said.err
    assert "**Not complete**: 1 missing: broken seed 0." in said.out


def test_a_run_whose_last_checkpoint_is_missing_is_resumed(tmp_path, monkeypatch, capsys):
    """Killed between its last evaluation and the end of its last save: its weights are of step 10, its errors of 20."""
    started = []
    monkeypatch.setattr(runs, "start", lambda words, log: started.append(words) or 2)
    scale = Scale(
        [Row("one", "quickstart", {"num_epochs": 2.0})], (0,), "", [Evaluation("32 px", {"data.image_size_px": 32})]
    )
    study = Study("two_steps", "", {"tiny": scale}, draw.sizes)
    metrics(tmp_path / "out" / "one_seed0", [0.8, 0.9])
    (tmp_path / "out" / "one_seed0" / "checkpoints" / "10").mkdir(parents=True)
    files.write_whole(files.epath.Path(tmp_path / "out" / files.MARK), '{"experiment": "two_steps", "scale": "tiny"}')
    assert execute(study, tmp_path / "out") == command.FAILED_STATUS
    (words,) = started  # the training alone: the weights of step 10 are not evaluated
    assert f"--workdir={tmp_path}/out/one_seed0" in words
    assert "--mode=evaluate" not in words
    assert "one seed 0 32 px: not evaluated: the last checkpoint of" in capsys.readouterr().err

    # Saved, or kept without weights, it is not made again.
    (tmp_path / "out" / "one_seed0" / "checkpoints" / "20").mkdir()
    assert execute(study, tmp_path / "out") == command.FAILED_STATUS
    assert "--mode=evaluate" in started.pop()
    shutil.rmtree(tmp_path / "out" / "one_seed0" / "checkpoints")
    assert execute(study, tmp_path / "out") == command.FAILED_STATUS
    assert "--mode=evaluate" in started.pop()


@pytest.mark.parametrize("damage", ["", "[]", "{}", "{"])
def test_a_damaged_evaluation_is_made_again(tmp_path, monkeypatch, damage):
    def start(words, log):
        log.write_text('{"checkpoint": "10", "top1": 0.7, "top5": 0.9}\n')
        return 0

    monkeypatch.setattr(runs, "start", start)
    run = Run(Row("one", "quickstart"), 0, str(tmp_path / "one_seed0"), {})
    metrics(tmp_path / "one_seed0", [0.8])
    evaluation = Evaluation("32 px", {"data.image_size_px": 32})
    (tmp_path / "one_seed0" / "evaluation_32_px.json").write_text(damage)
    assert runs.evaluate(run, evaluation, None, tmp_path / "log", makes=False) is None
    made = runs.evaluate(run, evaluation, None, tmp_path / "log", makes=True)
    assert isinstance(made, dict)
    assert made["top1"] == 0.7
    assert runs.evaluate(run, evaluation, None, tmp_path / "log", makes=False) == made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_at_once_and_says_how_to_go_on(tmp_path, number):
    process = start(tmp_path)
    wait_for(lambda: (tmp_path / "out" / "one_seed0.log").exists(), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted; what is done stays done, and this goes on with the rest: ")
    assert "Traceback" not in said


def is_gone(pid):
    """Also where nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def rows_of(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -------------------------------------------------------------------------------------------------------- Bad input


def test_folders_of_others_are_refused(tmp_path):
    study = study_of(Row("one", "quickstart", FIELDS))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / files.MARK).write_text('{"experiment": "table3_cardinality", "scale": "full"}')
    both = "the results of table3_cardinality --scale=full, not of two_steps --scale=tiny"
    with pytest.raises(UserError, match=both):
        execute(study, tmp_path / "theirs", "--collect")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(UserError, match="photos has files in it, and is no results folder"):
        execute(study, tmp_path / "photos", "--collect")
    with pytest.raises(UserError, match=r"cat\.jpg is no folder"):
        execute(study, tmp_path / "photos" / "cat.jpg", "--collect")
    assert {path.name for path in tmp_path.rglob("*")} == {files.MARK, "cat.jpg", "photos", "theirs"}
    (tmp_path / "theirs" / files.MARK).write_text("[]")
    with pytest.raises(UserError, match=r"experiment\.json cannot be read \(it is no JSON object\)"):
        execute(study, tmp_path / "theirs", "--collect")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--scale=tny"], "unknown scale 'tny'. Did you mean 'tiny'"),
        (["--rows=two"], "unknown row 'two'.*Known: one"),
        (["--rows="], "--rows= names no row"),
        (["--seeds="], "--seeds= must be different whole numbers"),
        (["--collect"], "there is no results folder .*/out to collect"),
        (["--seeds=0,a"], "--seeds=0,a must be different whole numbers"),
        (["--seeds=1,1"], "--seeds=1,1 must be different whole numbers"),
        (["--seeds=-1"], "--seeds=-1 must be different whole numbers"),
    ],
)
def test_mistakes(tmp_path, flags, problem):
    with pytest.raises(UserError, match=problem):
        execute(study_of(Row("one", "quickstart", FIELDS)), tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_paths_are_meant_where_the_command_was_typed(tmp_path, monkeypatch):
    """The runs are started in the repository."""
    started = []
    monkeypatch.setattr(runs, "start", lambda words, log: started.append(words) or 2)
    monkeypatch.chdir(tmp_path)
    assert execute(study_of(Row("one", "quickstart", FIELDS)), "out", "--data_dir=images") == command.FAILED_STATUS
    assert f"--workdir={tmp_path}/out/one_seed0" in started[0]
    assert f"--config.data.dir={tmp_path}/images" in started[0]
    assert files.folder_of("gs://bucket/out", "", "") == "gs://bucket/out"
    assert files.folder_of(None, "two_steps", "tiny") == str(tiny.ROOT / "runs" / "two_steps_tiny")


def test_rows_are_chosen_by_name_or_slug():
    names = [
        row.name for row in chosen(STUDIES["table3_cardinality"], "full", ["ResNet-50 1x64d", "resnext_101_32x4d"])
    ]
    assert names == ["ResNet-50 1x64d", "ResNeXt-101 32x4d"]


@pytest.mark.parametrize("name", [*STUDIES, "table2_complexity", "step_times", "finetune"])
def test_help(name, monkeypatch, capsys):
    script = str(tiny.ROOT / "experiments" / name / "run.py")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(script, run_name="__main__")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert f"python experiments/{name}/run.py --scale=" in printed
    assert "--out" in printed


def test_the_command_from_anywhere(tmp_path):
    """In a process of its own, that of the experiment without training."""
    script = tiny.ROOT / "experiments" / "table2_complexity" / "run.py"
    command_line = [sys.executable, script, "--scale=tiny", "--out=results"]
    process = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert [row["block_weights"] for row in rows] == [17408, 17440, 17472, 17864, 17536]
    assert (tmp_path / "results" / "figure.png").stat().st_size > 5000
    process = subprocess.run(
        [*command_line[:2], "--scale=full", "--out=results"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "not of table2_complexity --scale=full" in process.stderr
    assert "Traceback" not in process.stderr
