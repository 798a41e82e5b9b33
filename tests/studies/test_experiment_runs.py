"""Runs of an experiment: skipped, resumed, made again, and one that is really trained and killed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from experiments.common import command, files, runs
from experiments.common.study import Evaluation, Row, Run, Scale, Study
from resnext_jax.errors import UserError
from tests.studies.made_up import FIELDS, SAVED_STEP, STEPS, STUDIES, execute, metrics, study_of

# What a Ctrl-C and a kill are sent to: the command of an experiment of one row.
PROGRAM = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from experiments.common.command import main
from experiments.common.study import Row, Scale, Study
from experiments.table3_cardinality.curves import curves_and_errors
rows = [Row("one", "quickstart", json.loads(sys.argv.pop(1)), {"top-1": 22.5})]
main(Study("two_steps", "Two steps", {"tiny": Scale(rows, (0,), "seconds")}, curves_and_errors), None)
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What the processes see: one device and this package."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))


def start(tmp_path):
    words = [sys.executable, "-c", PROGRAM, json.dumps(FIELDS), f"--out={tmp_path / 'out'}"]
    return subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)


def wait_for(true, process=None, timeout_s=240.0):
    end_s = time.monotonic() + timeout_s
    while not true():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_resumed_skipped_and_refused(tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    workdir, log = out / "one_seed0", out / "one_seed0.log"
    study = study_of(Row("one", "quickstart", FIELDS, {"top-1": 22.5}))

    # While it runs, a second start makes other runs, and is refused for the same ones before anything is written.
    process = start(tmp_path)
    wait_for(log.exists, process)
    with monkeypatch.context() as context:
        started = []
        context.setattr(runs, "start", lambda words, log: started.append(log.name) or 2)
        with pytest.raises(UserError, match=r"already running in .*--out=DIR"):
            execute(study, out)
        assert not started
        assert execute(study, out, "--seeds=1") == command.FAILED_STATUS
        assert started == ["one_seed1.log"]
    # Killed between its first checkpoint and its end, it takes the run with it.
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


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("evaluate.batch_size", 7, True),
        ("conv_impl", "dense", True),
        ("checkpoint.every_steps", 7, True),
        ("evaluate.every_steps", 7, False),  # the best of more evaluations is a better one
        ("weight_decay", 0.5, False),
        ("seed", 7, False),
    ],
)
def test_what_may_differ_between_the_runs_of_a_table(tmp_path, field, value, same):
    run = Run(Row("one", "quickstart"), 0, str(tmp_path))
    config = run.config()
    config.update_from_flattened_dict({field: value})
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    if same:
        runs.same_recipe(run)
    else:
        with pytest.raises(UserError, match=f"another recipe(?s:.*){field} was {value}, is"):
            runs.same_recipe(run)


def test_a_run_whose_last_checkpoint_is_missing_is_resumed(tmp_path, monkeypatch, capsys):
    """Killed between its last evaluation and the end of its last save: its weights are of step 10, its errors of 20."""
    started = []
    monkeypatch.setattr(runs, "start", lambda words, log: started.append(words) or 2)
    scale = Scale(
        [Row("one", "quickstart", {"num_epochs": 2.0})], (0,), "", [Evaluation("32 px", {"data.image_size_px": 32})]
    )
    study = Study("two_steps", "", {"tiny": scale}, STUDIES["table5_resolution"].draw)
    metrics(tmp_path / "out" / "one_seed0", [0.8, 0.9])
    (tmp_path / "out" / "one_seed0" / "checkpoints" / "10" / "variables").mkdir(parents=True)
    files.write_whole(files.epath.Path(tmp_path / "out" / files.MARK), '{"experiment": "two_steps", "scale": "tiny"}')
    assert execute(study, tmp_path / "out") == command.FAILED_STATUS
    (words,) = started  # the training alone: the weights of step 10 are not evaluated
    assert f"--workdir={tmp_path}/out/one_seed0" in words
    assert "--mode=evaluate" not in words
    assert "one seed 0, 32 px" in capsys.readouterr().out  # is missing

    # Saved, or kept without weights, it is not made again.
    (tmp_path / "out" / "one_seed0" / "checkpoints" / "20" / "variables").mkdir(parents=True)
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
    run = Run(Row("one", "quickstart", {"num_epochs": 1.0}), 0, str(tmp_path / "one_seed0"))
    metrics(tmp_path / "one_seed0", [0.8])
    evaluation = Evaluation("32 px", {"data.image_size_px": 32})
    (tmp_path / "one_seed0" / "evaluation_32_px.json").write_text(damage)
    assert runs.evaluated(run, evaluation) is None
    assert runs.make([run], [evaluation], None, tmp_path) == []
    assert runs.evaluated(run, evaluation)["top1"] == 0.7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
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
