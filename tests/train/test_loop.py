"""The loop as its users meet it: a process that is killed, started again, joined by another, or led astray."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

from resnext_jax.api import load

pytestmark = pytest.mark.slow

EQUAL_FIELDS = ("step", "epoch", "phase", "loss", "top1", "top5", "images", "learning_rate")  # whatever the speed
FIRST_PART_STEPS = 10


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The workdir of a run that nothing befell; every checkpoint is kept."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    tiny.finish(tiny.start(workdir))
    return workdir


@pytest.fixture(scope="module")
def first_part(tmp_path_factory):
    """The workdir of a run that was asked for no more than the first steps."""
    workdir = tmp_path_factory.mktemp("first_part")
    tiny.finish(tiny.start(workdir, f"--config.num_steps={FIRST_PART_STEPS}"))
    return workdir


def rows(workdir, fields=EQUAL_FIELDS):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: row[name] for name in fields if name in row} for row in map(json.loads, lines)]


def has_row(workdir, step):
    path = workdir / "metrics.jsonl"
    return path.exists() and f'{{"step": {step},' in path.read_text()


def is_saving(workdir, step):
    return any((workdir / "checkpoints").glob(f"{step}*"))


# In the order of a run; each is watched for, then the process is killed.
MOMENTS = {
    "before the first step": lambda workdir: (workdir / "config.json").exists(),
    "while a checkpoint is written, or right after": lambda workdir: is_saving(workdir, 10),
    "between two checkpoints": lambda workdir: has_row(workdir, 12),
    "in an evaluation": lambda workdir: has_row(workdir, 20),
}


def assert_equal_checkpoints(left, right):
    expected = tiny.arrays(left)
    actual = tiny.arrays(right)
    assert len(expected) == 110  # 13 convolutions, 13 batch norms (4 arrays), the classifier; momentum; two counts
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        assert array.dtype == actual[name].dtype, name
        np.testing.assert_array_equal(array, actual[name], err_msg=name)


def test_killed_and_run_again_is_the_uninterrupted_run_bit_for_bit(uninterrupted, tmp_path):
    for moment, reached in MOMENTS.items():
        process = tiny.start(tmp_path)
        while not reached(tmp_path):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, moment
        assert not (tmp_path / "checkpoints" / str(tiny.NUM_STEPS)).exists(), moment
    output = tiny.finish(tiny.start(tmp_path))
    assert "resuming" in output
    assert_equal_checkpoints(uninterrupted / "checkpoints" / "30", tmp_path / "checkpoints" / "30")
    assert rows(tmp_path) == rows(uninterrupted)


def test_rows_of_metrics(uninterrupted):
    """Every 4 steps, at every checkpoint (5) and evaluation (10); each once; a row covers the steps since the last."""
    trained = [4, 5, 8, 10, 12, 15, 16, 20, 24, 25, 28, 30]
    assert [row["step"] for row in rows(uninterrupted) if row["phase"] == "train"] == trained
    counts = [row["images"] for row in rows(uninterrupted) if row["phase"] == "train"]
    assert counts == [32 * steps for steps in np.diff([0, *trained])]
    evaluated = [(row["step"], row["images"]) for row in rows(uninterrupted) if row["phase"] == "evaluate"]
    assert evaluated == [(10, 3000), (20, 3000), (30, 3000)]
    every = ("step", "epoch", "phase", "loss", "top1", "top5", "learning_rate", "images_per_s", "input_wait")
    assert all(set(every) <= row.keys() for row in rows(uninterrupted, every) if row["phase"] == "train")


def test_workdir_is_complete(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    expected = {"config.json", "environment.json", "parameters.txt", "metrics.jsonl", "curves.png", "heartbeats.json"}
    assert names == expected | {"checkpoints", "tensorboard"}


def test_asynchronous_save_holds_the_state_of_its_step(uninterrupted, first_part):
    """The long run went on, into the same donated buffers, while it saved; the short one ended there."""
    name = str(FIRST_PART_STEPS)
    assert_equal_checkpoints(first_part / "checkpoints" / name, uninterrupted / "checkpoints" / name)
    assert rows(first_part) == [row for row in rows(uninterrupted) if row["step"] <= FIRST_PART_STEPS]


def test_run_again_when_done_changes_nothing(first_part):
    before = tiny.digests(first_part)
    output = tiny.finish(tiny.start(first_part, f"--config.num_steps={FIRST_PART_STEPS}"))
    assert f"is done: {FIRST_PART_STEPS} of {FIRST_PART_STEPS} steps" in output
    assert tiny.digests(first_part) == before


def test_not_finite_stops_with_the_step_and_keeps_the_last_good_checkpoint(first_part, tmp_path):
    workdir = shutil.copytree(first_part, tmp_path / "run")
    before = tiny.digests(workdir / "checkpoints")
    output = tiny.finish(tiny.start(workdir, "--config.learning_rate=1e30", "--config.resume_changed=true"), status=2)
    # Step 11 still starts from good weights; its update ruins them.
    assert "not finite at step 12" in output
    assert "learning_rate" in output
    assert "Traceback" not in output
    assert tiny.digests(workdir / "checkpoints") == before
    assert np.isfinite(load(str(workdir))(np.zeros((1, 28, 28, 1), np.uint8))).all()

    # Its advice, followed to the letter, in the very command of this run: which had not asked for any change.
    advice = re.findall(r"--config\.\S+=[^\s,()]+", output)
    assert "--config.learning_rate=VALUE" in advice
    assert "--config.resume_changed=true" in advice
    followed = ["--config.learning_rate=0.00005", "--config.resume_changed=true"]
    output = tiny.finish(tiny.start(workdir, *followed, "--config.num_steps=15"))
    assert "learning_rate was 0.0001 at the last start, and is 5e-05 from here on" in output
    assert f"resuming {workdir} at step {FIRST_PART_STEPS} of 15" in output


def two_processes(workdir, *overrides, environments=({}, {})):
    """Two processes on a free loopback port, each with its own environment."""
    address = tiny.free_address()
    return [
        tiny.start(workdir, *overrides, **tiny.part(address, 2, index), **environment)
        for index, environment in enumerate(environments)
    ]


def test_two_processes_do_as_one(uninterrupted, tmp_path):
    spoken, silent = map(tiny.finish, two_processes(tmp_path, "--config.num_steps=20"))
    assert "compiling the step for 2 cpu device(s)" in spoken
    assert "step" not in silent  # the second process says nothing
    one = [row for row in rows(uninterrupted) if row["step"] <= 20]
    two = rows(tmp_path)
    assert [(row["step"], row["phase"], row["images"]) for row in two] == [
        (row["step"], row["phase"], row["images"]) for row in one
    ]
    np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-5)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # one writer
    ours = tiny.arrays(tmp_path / "checkpoints" / "20")
    theirs = tiny.arrays(uninterrupted / "checkpoints" / "20")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_mistake_of_one_process_ends_both_with_a_sentence(tmp_path):
    """The same command, but what it names is not there on one host."""
    homes = [{"HOME": str(tmp_path)}, {"HOME": os.devnull}]
    processes = two_processes("~/run", environments=homes)
    first, second = (tiny.finish(process, status=2) for process in processes)
    assert "process 1 stopped with an error of its own" in first
    assert f"the workdir {os.devnull}/run cannot be written" in second
    assert "Traceback" not in first + second


def test_processes_must_share_the_workdir(tmp_path):
    for home in ("a", "b"):
        (tmp_path / home).mkdir()
    homes = [{"HOME": str(tmp_path / home)} for home in ("a", "b")]
    processes = two_processes("~/run", environments=homes)
    first, second = (tiny.finish(process, status=2) for process in processes)
    assert "process 1 stopped with an error of its own" in first
    assert f"the workdir {tmp_path / 'b' / 'run'} of process 1 is not that of process 0" in second
    assert "Traceback" not in first + second
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == []


def test_a_hanging_read_does_not_outlive_ctrl_c(tmp_path):
    hangs = (
        "import runpy, signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from resnext_jax.data import pipeline; pipeline._gather = lambda *_: time.sleep(1000); "
        "sys.argv = ['main.py', *sys.argv[1:]]; runpy.run_path('main.py', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hangs, *tiny.arguments(f"--workdir={tmp_path}")],
        cwd=tiny.ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(tiny.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert "parameters.txt" in process.stdout.readline()  # the next thing is the first batch
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in tiny.finish(process, status=130)
