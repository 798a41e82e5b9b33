"""A progress line for people and for log files."""

import doctest
import io
import os

import pytest

from resnext_jax import progress as progress_module
from resnext_jax.progress import Progress, Silent


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_doctests():
    failed, tried = doctest.testmod(progress_module)
    assert (failed, tried) == (0, 1)


def test_progress_prints_plain_lines_now_and_then_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    progress = Progress("train", 1000, "step", start=100, stream=stream)
    clock[0] += 9
    progress.update(190, "loss 3")
    clock[0] += 1
    progress.update(200, "loss 2")  # 100 steps in 10 s: 800 more take 80 s
    clock[0] += 1
    progress.update(210, "loss 1")
    progress.update(1000, "loss 0")
    progress.close()
    assert stream.getvalue() == "train  step 200/1,000  ETA 1:20  loss 2\ntrain  step 1,000/1,000  in 0:11  loss 0\n"


def test_progress_rewrites_one_line_on_a_terminal(clock):
    stream = Terminal()
    progress = Progress("evaluate", 30, "image", stream=stream)
    clock[0] += 1
    progress.update(10, "a long text")
    clock[0] += 1
    progress.update(20, "short")
    progress.close()
    first, second = "evaluate  image 10/30  ETA 0:02  a long text", "evaluate  image 20/30  ETA 0:01  short"
    assert stream.getvalue() == f"\r{first}\r{second.ljust(len(first))}\n"


def test_progress_keeps_to_the_width_of_the_terminal(clock, monkeypatch):
    monkeypatch.setattr(progress_module.shutil, "get_terminal_size", lambda: os.terminal_size((30, 24)))
    stream = Terminal()
    progress = Progress("evaluate", 30, "image", stream=stream)
    clock[0] += 1
    progress.update(10, "a long text")
    assert stream.getvalue() == "\revaluate  image 10/30  ETA 0:"  # 29 characters: the cursor stays on the line


def test_silent_says_nothing(capsys):
    Silent().update(1, "text")
    Silent().close()
    assert capsys.readouterr() == ("", "")
