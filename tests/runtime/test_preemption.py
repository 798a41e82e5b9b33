"""SIGTERM at several moments of a run: it ends with status 75, and run again it is the uninterrupted run."""

import json
import re
import signal
import threading
import time

import numpy as np
import pytest
import tiny
from etils import epath

from resnext_jax import metrics
from resnext_jax.checkpoint import read_description
from resnext_jax.runtime import preemption
from resnext_jax.runtime.preemption import Preemption

PREEMPTED = 75
LIMIT_S = 250

# ------------------------------------------------------------------------------------------------ In this process


@pytest.fixture(autouse=True)
def handler():
    """The handler of SIGTERM is put back after a test."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def test_lone_process_stops_after_a_notice(handler):
    with Preemption(1) as notice:
        assert not notice.requested()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert notice.requested()
        assert notice.requested()
    signal.raise_signal(signal.SIGTERM)  # at the end of the process: without effect on its status
    assert signal.getsignal(signal.SIGTERM) != handler


def test_without_a_notice_the_handler_is_put_back(handler):
    with Preemption(1) as notice:
        assert not notice.requested()
    assert signal.getsignal(signal.SIGTERM) == handler


def test_other_threads_do_not_listen(handler):
    def listen():
        with Preemption(1) as notice:
            seen.append((signal.getsignal(signal.SIGTERM), notice.requested()))

    seen = []
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(handler, False)]


def test_several_processes_ask_jax_and_count_from_one(handler, monkeypatch):
    """JAX stops all at the largest number so far plus one, which is 1 before the first call."""
    asked = []
    monkeypatch.setattr(
        preemption.multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or step == 3
    )
    with Preemption(2) as notice:
        assert [notice.requested() for _ in range(3)] == [False, False, True]
        assert signal.getsignal(signal.SIGTERM) == handler  # which is JAX's in a run of several
    assert asked == [1, 2, 3]


# ------------------------------------------------------------------------------------------------- Real processes


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    tiny.finish(tiny.start(workdir))
    return workdir


def rows(workdir):
    """All rows without the fields that depend on the speed."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in metrics.TIMED_FIELDS} for line in lines
    ]


def wait_for(reached, *processes):
    until_s = time.monotonic() + LIMIT_S
    while not reached():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < until_s
        time.sleep(0.001)


def has_row(workdir, step):
    path = workdir / "metrics.jsonl"
    return path.exists() and f'{{"step": {step},' in path.read_text()


def wait_for_compilation(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("compiling the step"):
            return
    raise AssertionError("".join(lines))


def terminate(process, times=1):
    """SIGTERM; what the process said until its end."""
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    return ended(process)


def ended(process):
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == PREEMPTED, output
    assert "Traceback" not in output
    return output


def saved_step(output):
    found = re.search(r"saved at step (\d+); run the same command again", output)
    assert found, output
    return int(found[1])


@pytest.mark.slow
def test_terminated_and_run_again_is_the_uninterrupted_run(uninterrupted, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    process = tiny.start(tmp_path)
    wait_for_compilation(process)
    assert saved_step(terminate(process)) == 1  # compiled, and one step made
    assert [path.name for path in checkpoints.iterdir()] == ["1"]

    # Among the steps, wherever it is; the second SIGTERM changes nothing.
    process = tiny.start(tmp_path)
    wait_for(lambda: has_row(tmp_path, 8), process)
    stopped_at = saved_step(terminate(process, times=2))
    assert (checkpoints / str(stopped_at)).is_dir()
    assert not (tmp_path / "run.lock").exists()

    output = tiny.finish(tiny.start(tmp_path))
    assert f"resuming {tmp_path} at step {stopped_at} of 30" in output
    assert rows(tmp_path) == rows(uninterrupted)
    ours, theirs = tiny.arrays(checkpoints / "30"), tiny.arrays(uninterrupted / "checkpoints" / "30")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.slow
def test_notice_to_one_of_two_stops_both_after_the_same_step(tmp_path):
    address = tiny.free_address()
    first, second = (tiny.start(tmp_path, **tiny.part(address, 2, index)) for index in (0, 1))
    wait_for(lambda: has_row(tmp_path, 4), first, second)
    silent, output = terminate(second), ended(first)
    assert "preempted" not in silent
    stopped_at = saved_step(output)
    # Orbax would wait for a process at another step. The last row that was due is there, the next one is not.
    assert 4 <= stopped_at < 30
    description = read_description(epath.Path(tmp_path) / "checkpoints" / str(stopped_at))
    due = [step for step in (4, 5, 8, 10, 12, 15, 16, 20, 24, 25, 28) if step <= stopped_at]
    assert description["progress"]["window"]["images"] == 32 * (stopped_at - due[-1])
    assert [row["step"] for row in rows(tmp_path) if row["phase"] == "train"] == due

    # Resumed, and told while it compiles: JAX's count begins anew, and one more step is made.
    address = tiny.free_address()
    first, second = (tiny.start(tmp_path, **tiny.part(address, 2, index)) for index in (0, 1))
    wait_for_compilation(first)
    terminate(second)
    assert saved_step(ended(first)) == stopped_at + 1
