"""The rows of every experiment against the paper's tables, and the commands that they become."""

import argparse
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tiny
from flax.traverse_util import flatten_dict

from configs import common
from experiments.common import collect
from experiments.common.study import Run, runs_of, small_row
from resnext_jax.config import command_line
from resnext_jax.config.checks import evaluation_problems, protocol_problems
from resnext_jax.errors import UserError
from tests.studies.made_up import STUDIES, execute_full, metrics

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


@pytest.mark.parametrize("name", STUDIES)
def test_full_rows_are_the_papers(name):
    scale = STUDIES[name].scales["full"]
    columns = ("top-1", "top-5")
    published = {row.config: row.published for row in scale.rows if row.published}
    assert {(config, *(of[c] for c in columns if c in of)) for config, of in published.items()} == PAPER[name]
    assert list(scale.seeds) == (list(range(10)) if name == "table7_cifar" else [0])
    # The recipe to the letter: nothing of it is changed, but for the other networks of Figure 7.
    changed = {field for row in scale.rows for field in row.fields}
    assert changed == ({"model.name"} if name == "table7_cifar" else set())


def test_other_columns_are_the_papers():
    resolution = {row.config: row.published for row in STUDIES["table5_resolution"].scales["full"].rows}
    columns = ("320 px top-1", "320 px top-5", "multi-scale top-1", "multi-scale top-5")
    assert [resolution["resnext101_64x4d"][column] for column in columns] == [19.1, 4.4, 17.7, 3.7]
    assert [resolution["resnet200"][column] for column in columns[:2]] == [20.1, 4.8]
    rows = STUDIES["table6_imagenet5k"].scales["full"].rows
    one_k = [(row.published["1K-way top-1"], row.published["1K-way top-5"]) for row in rows]
    assert one_k == [(27.1, 8.2), (24.4, 6.6), (24.2, 6.8), (22.2, 5.7)]
    step_times = importlib.import_module("experiments.step_times.run")
    assert step_times.PUBLISHED_S == {"resnet101": 0.70, "resnext101_32x4d": 0.95, "resnext101_64x4d": 1.7}


@pytest.mark.parametrize("name", STUDIES)
def test_every_command_makes_the_config_that_its_run_expects(name):
    """What main.py parses from the flags is what a finished run is compared with."""
    for scale in STUDIES[name].scales.values():
        for run in runs_of(scale, "/out", scale.seeds[-1:]):
            with tiny.command_line(*run.flags, "--workdir=/out/x") as (argv, values):
                command_line.parse(argv, values)
            assert values.config.to_json_best_effort() == run.config().to_json_best_effort(), run.name
            assert run.config().seed == scale.seeds[-1]


@pytest.mark.parametrize("name", STUDIES)
def test_every_other_evaluation_is_one_that_there_is(name):
    for scale in STUDIES[name].scales.values():
        for evaluation in scale.evaluations:
            config = runs_of(scale, "/out", [0])[0].config()
            command_line.override(config, [f"{field}={value}" for field, value in evaluation.fields.items()])
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


def test_what_the_pod_commands_made_is_collected(tmp_path, capsys, monkeypatch):
    """Only their workdirs are in the folder that the commands name; one of another experiment is still refused."""
    monkeypatch.setattr(collect, "cost", lambda config: (1, 1))  # to trace the paper's networks takes seconds each
    out = tmp_path / "full"
    assert execute_full("residual_connections", f"--out={out}") == 0
    printed = capsys.readouterr().out
    (workdir,) = set(re.findall(r"--workdir=(\S+resnet_50)_seed", printed))
    metrics(Path(f"{workdir}_seed0"), [0.5] * 99 + [0.76])
    (again,) = [shlex.split(line)[2:] for line in printed.splitlines() if line.endswith("--collect")]
    assert execute_full("residual_connections", *again[1:]) == 0
    collected = capsys.readouterr().out
    assert re.search(r"ResNet-50 +\|.* 24\.00 +\|.* 1 of 1", collected)
    assert "**Not complete**: 3 missing" in collected
    # Printed once more, the table of what is there comes with it.
    assert execute_full("residual_connections", f"--out={out}") == 0
    assert "1 of 1" in capsys.readouterr().out
    metrics(tmp_path / "other" / "resnet_50_seed0", [0.5])
    with pytest.raises(UserError, match="has files in it, and is no results folder"):
        execute_full("table7_cifar", f"--out={tmp_path / 'other'}", "--collect")


def recipe_of(name, config):
    if name != "table7_cifar":
        return common.imagenet5k() if name == "table6_imagenet5k" else common.imagenet()
    return (common.wide_resnet if config.startswith("wrn") else common.cifar)(100 if config.endswith("100") else 10)


@pytest.mark.parametrize("name", STUDIES)
def test_full_runs_are_the_recipe_but_for_the_network(name):
    """What the recipes are is tested field by field in tests/test_configs.py."""
    for run in runs_of(STUDIES[name].scales["full"], "/out", [7]):
        configs = recipe_of(name, run.row.config), run.config()
        recipe, found = (flatten_dict(json.loads(config.to_json_best_effort()), sep=".") for config in configs)
        network = {"model.name", *(["model.shortcut"] if "no shortcuts" in run.name else [])}
        assert {field for field in found if found[field] != recipe[field]} == {*network, "seed"}, run.name


@pytest.mark.slow
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
        costs[shape], more = (
            collect.cost(Run(small_row(depth, *shape), 0, "").config().to_json_best_effort()) for depth in (11, 20)
        )
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


@pytest.mark.slow
def test_the_readme_of_table_2_has_what_the_command_prints(tmp_path, capsys):
    table2 = importlib.import_module("experiments.table2_complexity.run")
    assert table2.execute(argparse.Namespace(scale="full", out=str(tmp_path / "out"))) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    readme = (Path(str(table2.__file__)).parent / "README.md").read_text().splitlines()
    assert [line for line in readme if line.startswith("|")] == printed
