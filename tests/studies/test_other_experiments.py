"""Step times and fine-tuning: what is said of runs that are made up."""

import argparse
import importlib
import json
import re
from pathlib import Path

import pytest

from experiments.common import command, files, runs
from resnext_jax.errors import UserError
from tests.studies.made_up import metrics


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


def test_step_times_of_two_machines_are_not_compared(tmp_path, monkeypatch):
    step_times = importlib.import_module("experiments.step_times.run")
    monkeypatch.setattr(runs, "start", lambda *_: pytest.fail("started again"))
    out = tmp_path / "out"
    out.mkdir()
    (out / files.MARK).write_text('{"experiment": "step_times", "scale": "tiny"}')
    devices = {"resnet101": "abacus", "resnext101_32x4d": "slide rule", "resnext101_64x4d": "abacus"}
    for network, device in devices.items():
        row = {"device": device, "batch_size": 8, "train": {"ours": 1.0}}
        (out / f"{network}.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"resnext101_64x4d on abacus; resnext101_32x4d on slide rule.*--out=DIR"):
        step_times.execute(argparse.Namespace(scale="tiny", out=str(out), run=False))
    assert not (out / "table.md").exists()


@pytest.mark.slow
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
    said = capsys.readouterr().err
    assert re.search(r"failed \(status 2\); the end of .*run1_seed0\.log:\n +error: so it is", said)
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


def test_step_times_by_the_compiler_are_labelled_estimates(tmp_path, monkeypatch, capsys):
    step_times = importlib.import_module("experiments.step_times.run")
    drawn, draw = [], step_times.draw

    def start(words, log):
        log.write_text(json.dumps({"topology": "v9:2x4", "device": "chip", "estimated_cycles": 30_000_000}) + "\n")
        return 0

    monkeypatch.setattr(runs, "start", start)
    monkeypatch.setattr(step_times, "draw", lambda figure, *more: drawn.append(figure) or draw(figure, *more))
    arguments = argparse.Namespace(scale="compiler", out=str(tmp_path / "out"), run=False)
    assert step_times.execute(arguments) == 0
    table = capsys.readouterr().out
    assert "one training step on v9:2x4" in table
    assert "here, M cycles (estimate of the TPU compiler)" in table
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["published", "estimate of the TPU compiler"]
