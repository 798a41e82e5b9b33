"""A short version of experiments/faults, and whether it would notice."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

from experiments.faults import compare
from tests.checkpoint.test_checkpoint import saved, state_at

BENCH = str(tiny.ROOT / "experiments" / "faults" / "run.py")
ROW = {"step": 4, "epoch": 0.1, "phase": "train", "loss": 2.5, "images": 128, "images_per_s": 1.0, "input_wait": 0.1}


@pytest.mark.slow
def test_four_kills_and_a_change_of_devices():
    # The seed draws few processes, which are slow to start.
    command = [sys.executable, BENCH, "--kills=4", "--terms=0", "--devices=1", "--steps=10", "--seed=8", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["kills"] == {"start-up": 1, "compile": 1, "step": 1, "save": 1}
    assert result["differences"] == result["device_differences"] == []
    assert result["starts"] >= 5
    assert result["layouts"][:2] == ["2x1", "1x4"]
    assert result["largest_loss_difference"] <= 1e-5


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--kills=-1"], "must be 0 or more"),
        (["--steps=0"], "--steps 1 or more"),
        (["--kills=0", "--terms=0"], "nothing would be killed"),
        (["--kill=3", "kills"], "unknown arguments: kills"),
    ],
)
@pytest.mark.slow
def test_a_bench_that_would_show_nothing_is_refused(flags, problem):
    process = subprocess.run([sys.executable, BENCH, *flags], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert problem in process.stderr
    assert "nothing was lost" not in process.stderr


@pytest.mark.slow
def test_ctrl_c_ends_the_bench_and_its_runs(tmp_path):
    command = [sys.executable, "-c", tiny.WITH_CTRL_C, BENCH, f"--workdir={tmp_path / 'bench'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "bench" / "killed").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("interrupted; the next start begins anew\n")
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two workdirs whose checkpoints of step 4 differ in the last bit of one number."""
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    saved(one, state_at(4, weight=0.1))
    saved(other, state_at(4, weight=float(np.nextafter(np.float32(0.1), np.float32(1)))))
    return one, other


def test_the_last_bit_is_noticed(pair):
    one, other = pair
    assert compare.differing_bits(one, one, [ROW], [ROW], 4) == []
    lines = compare.differing_bits(one, other, [ROW], [ROW], 4)
    assert [line.split(":")[0] for line in lines] == ["opt_state/1/trace/conv/kernel", "params/conv/kernel"]


def test_recomputed_statistics_are_compared_too(pair, tmp_path):
    one, other = pair
    ours, theirs = (
        shutil.copytree(workdir / "checkpoints", tmp_path / name / "recomputed_bn" / "checkpoints").parents[1]
        for workdir, name in ((one, "ours"), (other, "theirs"))
    )
    for workdir in (ours, theirs):
        shutil.copytree(one / "checkpoints", workdir / "checkpoints")
    assert compare.differing_bits(ours, ours, [], [], 4) == []
    lines = compare.differing_bits(ours, theirs, [], [], 4)
    assert [line.split(": ")[:2] for line in lines] == [
        ["recomputed_bn", "opt_state/1/trace/conv/kernel"],
        ["recomputed_bn", "params/conv/kernel"],
    ]
    shutil.rmtree(theirs / "recomputed_bn")
    (line,) = compare.differing_bits(ours, theirs, [], [], 4)
    assert line == f"recomputed_bn: {theirs / 'recomputed_bn' / 'checkpoints' / '4'} is missing"


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([ROW | {"images_per_s": 9.0, "input_wait": 0.9}], []),
        ([ROW | {"loss": math.nextafter(2.5, 3)}], ["metrics: step 4 train loss: 2.5000000000000004 against 2.5"]),
        ([ROW, ROW], ["metrics: (4, 'train') is there twice"]),
        ([], ["metrics: (4, 'train') is missing"]),
        ([ROW, ROW | {"step": 8}], ["metrics: (8, 'train') is one too many"]),
    ],
)
def test_every_kind_of_difference_of_rows_is_noticed(pair, rows, found):
    assert compare.differing_bits(pair[0], pair[0], rows, [ROW], 4) == found


def test_losses_within_the_order_of_sums():
    assert compare.differing_losses([ROW | {"loss": 2.500024}], [ROW]) == ([], pytest.approx(0.96e-5))
    lines, _ = compare.differing_losses([ROW | {"loss": 2.50003}], [ROW])
    assert lines == ["step 4 train: loss 2.50003 against 2.5"]
    assert len(compare.differing_losses([ROW | {"loss": float("nan")}], [ROW])[0]) == 1
    assert len(compare.differing_losses([ROW | {"images": 127}], [ROW])[0]) == 1
