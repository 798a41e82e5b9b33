"""SIGTERM at every moment of a run: it ends with status 75, and run again it is the uninterrupted run."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny

from resnext_jax import errors, metrics
from resnext_jax.checkpoint import read_description
from resnext_jax.runtime import preemption
from resnext_jax.sharding import Place, make_mesh

PREEMPTED = 75
GRACE_S = 30


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One compilation cache for all: what is compiled stays the same, bit for bit."""
    return tiny.compilation_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def start(cache):
    return lambda workdir, *overrides, **environment: tiny.start(workdir, *overrides, **cache, **environment)


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    tiny.finish(start(workdir))
    return workdir


def rows(workdir):
    """All rows without what depends on the speed."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in metrics.TIMED_FIELDS} for line in lines
    ]


def wait_for(reached, *processes):
    until_s = time.monotonic() + 120
    while not reached():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < until_s
        time.sleep(0.001)


def has_row(workdir, step):
    path = workdir / "metrics.jsonl"
    return path.exists() and f'{{"step": {step},' in path.read_text()


def terminate(process, times=1):
    """SIGTERM; what the process said, and how long it took to end."""
    since_s = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=GRACE_S)
    assert process.returncode == PREEMPTED, output
    assert "Traceback" not in output
    return output, time.monotonic() - since_s


def saved_step(output):
    return int(re.search(r"saved at step (\d+); run the same command again", output)[1])


def start_stuck(name, workdir, environment):
    """A run that will hang in one place."""
    command = [sys.executable, "tests/runtime/stuck.py", *tiny.arguments(f"--workdir={workdir}")]
    return subprocess.Popen(
        command,
        cwd=tiny.ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(tiny.ROOT), "STUCK": name, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def when_stuck(process):
    """The same process, when it is there."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("stuck in "):
            return process
    raise AssertionError("".join(lines))


def test_terminated_and_run_again_is_the_uninterrupted_run_bit_for_bit(start, cache, uninterrupted, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    # The main thread is in C and will never come back: nothing to save, it leaves at once.
    output, took_s = terminate(when_stuck(start_stuck("compile", tmp_path, cache)))
    assert "before the first step" in output
    assert took_s < 5
    assert not checkpoints.exists() or not list(checkpoints.iterdir())

    # The batch of step 8 does not come: step 7, between two rows and two checkpoints, is saved.
    output, took_s = terminate(when_stuck(start_stuck("input", tmp_path, cache)))
    assert saved_step(output) == 7
    assert took_s < 15
    progress = read_description(checkpoints / "7")["progress"]
    assert progress["evaluated"]
    assert progress["window"]["images"] == 2 * 32  # rows are due at steps 4, 5 and 8

    # In the evaluation after step 10, in C: the state of step 10 is there; the evaluation is made at the next start.
    output, took_s = terminate(when_stuck(start_stuck("evaluation", tmp_path, cache)))
    assert saved_step(output) == 10
    assert took_s < 10
    assert read_description(checkpoints / "10")["progress"]["evaluated"] is False
    assert [row["step"] for row in rows(tmp_path)] == [4, 5, 8, 10]

    # Among the steps, wherever it is; the second SIGTERM changes nothing.
    process = start(tmp_path)
    wait_for(lambda: has_row(tmp_path, 12), process)
    output, took_s = terminate(process, times=2)
    assert "resuming" in output
    assert took_s < 15
    stopped_at = saved_step(output)
    assert (checkpoints / str(stopped_at)).is_dir()

    output = tiny.finish(start(tmp_path))
    assert f"resuming {tmp_path} at step {stopped_at} of 30" in output
    assert rows(tmp_path) == rows(uninterrupted)
    ours, theirs = tiny.arrays(checkpoints / "30"), tiny.arrays(uninterrupted / "checkpoints" / "30")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def of_two(index, address):
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }


def loopback():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_one_of_two_processes_is_told_and_both_stop_after_the_same_step(start, cache, tmp_path):
    address = loopback()
    both = [start_stuck("compile", tmp_path, {**cache, **of_two(index, address)}) for index in (0, 1)]
    first, second = map(when_stuck, both)
    terminate(second)
    output, _ = first.communicate(timeout=GRACE_S)
    assert first.returncode == PREEMPTED, output
    assert "before the first step" in output

    address = loopback()
    first, second = (start(tmp_path, **of_two(index, address)) for index in (0, 1))
    wait_for(lambda: has_row(tmp_path, 4), first, second)
    silent, _ = terminate(second)
    output, _ = first.communicate(timeout=GRACE_S)
    assert first.returncode == PREEMPTED, output
    assert "preempted" not in silent
    stopped_at = saved_step(output)
    # The very step, by both, or orbax would wait for the other one; the last due row is there, the next one not.
    assert 4 <= stopped_at < 30
    description = read_description(tmp_path / "checkpoints" / str(stopped_at))
    due = [step for step in (4, 5, 8, 10, 12, 15, 16, 20, 24, 25, 28) if step <= stopped_at]
    assert description["progress"]["window"]["images"] == 32 * (stopped_at - due[-1])
    assert [row["step"] for row in rows(tmp_path) if row["phase"] == "train"] == due


class Service:
    """The part of the coordination service's client that is used, in memory."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_try_get(self, key):
        return self.values[key]

    def blocking_key_value_get(self, key, timeout_ms):
        until_s = time.monotonic() + timeout_ms / 1000
        while key not in self.values:
            assert time.monotonic() < until_s
            time.sleep(0.001)
        return self.values[key]


@pytest.fixture
def one_of_three(monkeypatch):
    """The second of three processes, which has begun step 7; the others are the test."""
    import jax

    jax.devices()  # opened before there is a service that is none
    service = Service()
    monkeypatch.setattr(preemption.distributed.global_state, "client", service)
    monkeypatch.setattr(preemption, "LOOK_EVERY_S", 0.01)
    place = Place(make_mesh(jax.devices()[:1]), "cpu", process_index=1, process_count=3)
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Preemption(place) as notice:
        notice.start_steps(6)
        assert notice.take(iter("g"), 7) == "g"
        yield service, notice
        notice._noticed.clear()  # as if nothing had been: the tests go on
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_interrupt_that_a_callback_swallowed_comes_again_at_the_next_step():
    """JAX's hook of the garbage collector, where a Ctrl-C may arrive, ignores every exception."""
    import jax

    place = Place(make_mesh(jax.devices()[:1]), "cpu", process_index=0, process_count=1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with preemption.Preemption(place) as notice:
            notice.start_steps(0)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                notice.take(iter(["batch"]), 1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("others", "last"), [((7, 5), 7), ((9, 8), 9)])
def test_the_foremost_process_decides(one_of_three, monkeypatch, others, last):
    service, notice = one_of_three
    monkeypatch.setattr(preemption.Preemption, "_give_up", lambda self, deadline_s: None)
    service.key_value_set(preemption.NOTICE, "2")
    for index, vote in zip((0, 2), others, strict=True):
        service.key_value_set(f"{preemption.VOTES}/{index}", str(vote))

    def endless():
        """Batches 8 to `last`, and then none: the wait for it is broken off."""
        yield from range(8, last + 1)
        threading.Event().wait(20)
        raise AssertionError("nobody came")

    batches = endless()
    assert service.blocking_key_value_get(f"{preemption.VOTES}/1", 5000) == "7"
    taken = []
    while (batch := notice.take(batches, 8 + len(taken))) is not None:
        taken.append(batch)
    assert taken == list(range(8, last + 1))
    assert notice.last_step == last
    assert notice.with_nothing_at_stake(lambda: "evaluated") is None
    with pytest.raises(errors.Preempted, match=r"^$"):  # only the first process speaks
        notice.end()


def test_a_process_with_nothing_at_stake_takes_all_with_it(one_of_three, monkeypatch):
    service, notice = one_of_three
    ended, finished, left = threading.Event(), [], []
    monkeypatch.setattr(preemption.Preemption, "_give_up", lambda self, deadline_s: None)
    monkeypatch.setattr(preemption.cluster, "leave", left.append)  # which tells the other processes
    monkeypatch.setattr(preemption.os, "_exit", lambda status: ended.set())
    notice.before_leaving.append(lambda: finished.append("save"))
    with notice.saving:
        service.key_value_set(f"{preemption.VOTES}/0", str(preemption.LEAVE_NOW))
        service.key_value_set(f"{preemption.VOTES}/2", "8")
        os.kill(os.getpid(), signal.SIGTERM)  # this very process is told
        assert not ended.wait(0.5)  # what is being saved is saved first
        assert service.values[preemption.NOTICE] == "1"
    assert ended.wait(5)
    assert finished == ["save"]
    assert left == [PREEMPTED]
