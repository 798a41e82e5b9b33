"""runtime/lock.py: one run per workdir, and a dead run stops no other."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny

from resnext_jax.errors import UserError
from resnext_jax.files import write_whole
from resnext_jax.runtime import lock as lock_module
from resnext_jax.runtime.lock import Lock

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
    """Writes the lock of a run on another machine."""
    holder = {"host": "tpu-7", "machine": "other", "pid": 1, "token": "t", "renewed": renewed}
    write_whole(Lock(str(workdir), print)._path, json.dumps(holder))


@pytest.mark.slow
def test_killed_run_on_this_machine_is_replaced_at_once(tmp_path):
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
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but a zombie
        assert (tmp_path / "run.lock").exists()
        for _ in range(2):
            before = (tmp_path / "run.lock").read_text()
            with Lock(str(tmp_path), pytest.fail) as lock:  # without a word
                lock.check()
            assert list(tmp_path.iterdir()) == []
            (tmp_path / "run.lock").write_text(before)
            process.wait()  # now it is gone altogether


def test_second_run_is_refused_at_once_with_pid_and_host(tmp_path):
    with Lock(str(tmp_path), print) as lock, pytest.raises(UserError) as error:
        Lock(str(tmp_path), pytest.fail).__enter__()
    for words in (f"another run is at work in {tmp_path}: process {os.getpid()} on {lock._own['host']}", "--workdir"):
        assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_second_run_that_starts_at_the_same_moment(tmp_path, monkeypatch):
    """It saw no lock, and then finds one when it creates its own."""
    lock = Lock(str(tmp_path), pytest.fail)
    monkeypatch.setattr(lock, "_other", lambda: None)
    foreign(tmp_path)
    with pytest.raises(UserError, match="another run is at work"):
        lock.__enter__()
    assert json.loads((tmp_path / "run.lock").read_text())["host"] == "tpu-7"


def test_process_number_that_another_process_has_now(tmp_path):
    gone = Lock(str(tmp_path), print)._own | {"command": "python\0main.py\0", "token": "t"}
    (tmp_path / "run.lock").write_text(json.dumps(gone))
    with Lock(str(tmp_path), pytest.fail) as lock:
        lock.check()


def test_other_machine_that_renews_its_lock_refuses(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE_AFTER_S", 60.0)
    foreign(tmp_path)
    said = []
    renewal = threading.Timer(0.1, foreign, (tmp_path, 1))
    renewal.start()
    with pytest.raises(UserError, match="process 1 on tpu-7"):
        Lock(str(tmp_path), said.append).__enter__()
    renewal.join()
    assert "waiting a minute to see whether the run on tpu-7 is alive" in said[0]


def test_other_machine_that_is_dead_is_waited_for(tmp_path, quick):
    foreign(tmp_path)
    said = []
    with Lock(str(tmp_path), said.append) as lock:
        lock.check()
    assert len(said) == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\0" * 200,
        "[" * 5000,
        "7",
        '{"pid": "../*"}',
        '{"token": "t", "host": "x", "pid": "**", "machine": "other"}',
    ],
)
def test_an_empty_or_damaged_lock_is_waited_for(tmp_path, quick, content):
    """It is empty if its run was killed while it created it, and full of zeros after some power failures."""
    (tmp_path / "run.lock").write_text(content)
    with Lock(str(tmp_path), print) as lock:
        lock.check()


def test_run_whose_lock_was_taken_over_must_not_write(tmp_path, quick):
    lock = Lock(str(tmp_path), pytest.fail)
    with lock:
        lock.check()
        foreign(tmp_path)
        with pytest.raises(UserError, match="process 1 on tpu-7"):
            lock.check()
        assert json.loads((tmp_path / "run.lock").read_text())["host"] == "tpu-7"  # left to its new holder
        (tmp_path / "run.lock").unlink()  # when that has ended
        with pytest.raises(UserError, match="process 1 on tpu-7"):
            lock.check()


def test_lock_is_renewed_while_the_run_lives(tmp_path, quick):
    with Lock(str(tmp_path), print):
        renewed, began_s = threading.Event(), time.time()
        for _ in range(1000):
            if json.loads((tmp_path / "run.lock").read_text()).get("renewed", 0) > began_s:
                renewed.set()
                break
            threading.Event().wait(0.01)
    assert renewed.is_set()


def test_second_run_in_a_bucket_is_refused(bucket, quick):
    with Lock("gs://bucket/run", print), pytest.raises(UserError, match="another run is at work in gs://bucket/run"):
        Lock("gs://bucket/run", print).__enter__()
    assert bucket.find("gs://bucket/run") == []


def test_last_writer_in_a_bucket_has_the_lock(bucket, monkeypatch):
    def the_other_writes(_):
        write_whole(lock._path, json.dumps({"pid": 7, "host": "other", "token": "theirs"}))

    monkeypatch.setattr("resnext_jax.runtime.lock.time.sleep", the_other_writes)
    lock = Lock("gs://bucket/run", print)
    with pytest.raises(UserError, match="process 7 on other"):
        lock.__enter__()
    assert json.loads(bucket.cat_file("gs://bucket/run/run.lock"))["token"] == "theirs"
