"""Which configs may go on from a checkpoint, what the others are told, and who may write into a workdir."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import tiny

from resnext_jax.errors import UserError
from resnext_jax.files import write_whole
from resnext_jax.runtime import lock as lock_module
from resnext_jax.runtime.lock import Lock
from resnext_jax.train.resume import check_resumable

# ------------------------------------------------------------------------------------------------- Changed configs


def changed(schedule="step", allow=False, num_images=15_000, **fields):
    """What `check_resumable` says, and the problems it raises, where these fields (`a__b` for a.b) are new."""
    before = json.loads(json.dumps(tiny.description(f"--config.schedule.name={schedule}")))
    before["dataset"]["num_images"] = 15_000
    now = copy.deepcopy(before)
    now["dataset"]["num_images"] = num_images
    for name, value in fields.items():
        *parents, leaf = name.split("__")
        place = now["config"]
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    said = []
    try:
        check_resumable(now, before, "of step 8", allow=allow, say=said.append)
    except UserError as error:
        return said, error.problems
    return said, []


def test_what_changes_the_trajectory_is_refused_with_both_values_and_the_remedy():
    fields: dict[str, Any] = dict(batch_size=64, seed=7, model__name="resnet50", data__crop="random_sized")
    said, problems = changed(**fields, log__every_steps=9)
    assert said == []
    assert "the checkpoint of step 8 was trained with another config" in problems[0]
    assert [re.sub(" +", " ", line.strip()) for line in problems[1:-1]] == [
        "batch_size was 32, is 64",
        "data.crop was 'none', is 'random_sized'",
        "model.name was 'resnext11_4x2d_tiny', is 'resnet50'",
        "seed was 0, is 7",
    ]
    assert all(words in problems[-1] for words in ("Go back", "--workdir=DIR", "--config.resume_changed=true"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.2),
        ("momentum", 0.8),
        ("weight_decay", 0.0),
        ("label_smoothing", 0.1),
        ("bn_group_images", 16),
        ("compute_dtype", "bfloat16"),
        ("schedule__boundaries_epochs", [1.0]),
        ("augment__flip", False),
        ("data__name", "fashion_mnist"),
        ("data__mean", [1.0]),
        ("num_images", 14_000),
    ],
)
def test_every_field_of_the_trajectory_matters(name, value):
    assert len(changed(**{name: value})[1]) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log__every_steps", 9),
        ("evaluate__batch_size", 99),
        ("checkpoint__keep_newest", 1),
        ("data__dir", "/elsewhere"),
        ("data__num_threads", 3),
        ("conv_impl", "dense"),
        ("accumulation_steps", 2),
        ("num_steps", 60),
        ("num_epochs", 7.0),
        ("a_field_of_a_newer_version", 1),
    ],
)
def test_the_others_are_reported(name, value):
    (line,), problems = changed(**{name: value})
    assert line.startswith(f"note: {name.replace('__', '.')} was ")
    assert line.endswith(f"and is {value!r} from here on")
    assert problems == ()


def test_the_length_matters_where_the_rate_depends_on_it():
    assert len(changed(schedule="cosine", num_steps=60)[1]) == 3


def test_on_purpose_all_is_reported_and_nothing_refused():
    said, problems = changed(allow=True, batch_size=64, resume_changed=True)
    assert said == ["note: batch_size was 32 at the last start, and is 64 from here on"]
    assert problems == ()


# ----------------------------------------------------------------------------------------------------------- The lock

HOLDER = """
import sys, time
from resnext_jax.runtime.lock import Lock
with Lock(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock_module, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(lock_module, "RENEW_EVERY_S", 0.05)
    monkeypatch.setattr(lock_module, "STALE_AFTER_S", 0.5)


def foreign(workdir, renewed=0):
    """A lock of another machine."""
    write_whole(
        Lock(str(workdir), print)._path,
        json.dumps({"host": "tpu-7", "kernel": "other", "pid": 1, "token": "t", "renewed": renewed}),
    )


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=tiny.ROOT,
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another run is at work in {tmp_path}: process {process.pid} on "):
            Lock(str(tmp_path), pytest.fail).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "run.lock").exists()
    with Lock(str(tmp_path), pytest.fail):  # at once, without a word
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_belongs_to_another_now(tmp_path):
    gone = {**lock_module._this_process(), "started": "1", "token": "t"}
    (tmp_path / "run.lock").write_text(json.dumps(gone))
    with Lock(str(tmp_path), pytest.fail) as lock:
        lock.check()


def test_another_machine_that_renews_its_lock(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE_AFTER_S", 60.0)
    foreign(tmp_path)
    said = []
    renewal = threading.Timer(0.1, foreign, (tmp_path, 1))
    renewal.start()
    with pytest.raises(UserError, match="process 1 on tpu-7"):
        Lock(str(tmp_path), said.append).__enter__()
    renewal.join()
    assert "waiting a minute whether that run is still alive" in said[0]


def test_another_machine_that_has_died(tmp_path, quick):
    foreign(tmp_path)
    said = []
    with Lock(str(tmp_path), said.append):
        pass
    assert len(said) == 1


def test_another_machine_that_died_long_ago_is_not_waited_for(tmp_path):
    foreign(tmp_path)
    os.utime(tmp_path / "run.lock", (time.time() - 61, time.time() - 61))
    with Lock(str(tmp_path), pytest.fail):
        pass


def test_a_torn_lock_is_like_that_of_another_machine(tmp_path, quick):
    (tmp_path / "run.lock").write_text('{"host"')
    with Lock(str(tmp_path), [].append) as lock:
        lock.check()


def test_a_run_that_was_thought_dead_stops(tmp_path, quick):
    lock = Lock(str(tmp_path), pytest.fail)
    with lock:
        lock.check()
        foreign(tmp_path)
        lock._thread.join(timeout=10)
        with pytest.raises(UserError, match="process 1 on tpu-7"):
            lock.check()
    assert json.loads((tmp_path / "run.lock").read_text())["host"] == "tpu-7"  # left to its new holder
