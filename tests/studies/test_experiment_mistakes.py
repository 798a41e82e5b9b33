"""Experiments told wrong things, and where what they are told is meant."""

import argparse
import importlib
import json
import runpy
import signal
import subprocess
import sys

import pytest
import tiny

from experiments.common import command, files, runs
from experiments.common.study import Row
from resnext_jax.errors import UserError
from tests.studies.made_up import FIELDS, STUDIES, execute, study_of


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
    with pytest.raises(UserError, match=r"experiment\.json cannot be read \(it is \[\], not an object\)"):
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
    flags = argparse.Namespace(scale="tiny", out="gs://bucket/out")
    assert files.folder_of(flags, "two_steps", ["tiny"]) == "gs://bucket/out"
    flags.out = None
    assert files.folder_of(flags, "two_steps", ["tiny"]) == str(tiny.ROOT / "runs" / "two_steps_tiny")


def test_rows_are_chosen_by_name_or_slug():
    scale = STUDIES["table3_cardinality"].scales["full"]
    names = [row.name for row in command.chosen(scale, "ResNet-50 1x64d,resnext_101_32x4d")]
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


@pytest.mark.slow
def test_the_command_from_anywhere(tmp_path, monkeypatch, capsys):
    """In its own process, that of the experiment without training."""
    script = tiny.ROOT / "experiments" / "table2_complexity" / "run.py"
    command_line = [sys.executable, script, "--scale=tiny", "--out=results"]
    process = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert [row["block_weights"] for row in rows] == [17408, 17440, 17472, 17864, 17536]
    assert (tmp_path / "results" / "figure.png").stat().st_size > 5000
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its handlers
    arguments = argparse.Namespace(scale="full", out=str(tmp_path / "results"))
    with pytest.raises(SystemExit) as caught:
        command.end(lambda: importlib.import_module("experiments.table2_complexity.run").execute(arguments))
    assert caught.value.code == 2
    assert "not of table2_complexity --scale=full" in capsys.readouterr().err
