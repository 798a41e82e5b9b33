"""A progress line for people and for log files."""

import doctest
import io
import logging
import os
import sys

import pytest

from resnext_jax import progress as progress_module
from resnext_jax.progress import AboveProgress, Progress, Silent, end_line, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(written: str) -> list[str]:
    """The lines that a terminal shows: a carriage return goes back to the beginning of the line."""
    lines = []
    for text in written.split("\n"):
        cells = ""
        for part in text.split("\r"):
            cells = part + cells[len(part) :]
        lines.append(cells.rstrip())
    return lines


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
    monkeypatch.setattr(progress_module.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((30, 24)))
    stream = Terminal()
    progress = Progress("evaluate", 30, "image", stream=stream)
    clock[0] += 1
    progress.update(10, "a long text")
    assert stream.getvalue() == "\revaluate  image 10/30  ETA 0:"  # 29 characters: the cursor stays on the line


def test_what_is_said_and_logged_stands_above_the_live_line(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.Logger("of one test")
    logger.addHandler(AboveProgress(logging.WARNING))
    progress = Progress("train", 30, "step", stream=terminal)
    say("before the first line")
    for step in (10, 20):
        clock[0] += 1
        progress.update(step, "loss 3.5")
        logger.warning("image %d is broken", step)
        logger.info("not worth a line")
    assert screen(terminal.getvalue()) == [
        *("before the first line", "warning: image 10 is broken", "warning: image 20 is broken"),
        "train  step 20/30  ETA 0:01  loss 3.5",
    ]
    progress.update(20, "ok")  # which is shorter
    progress.close()
    say("after it")
    assert screen(terminal.getvalue())[-3:] == ["train  step 20/30  ETA 0:01  ok", "after it", ""]


def test_a_line_that_an_error_cut_short_is_ended(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    end_line()
    first, second = Progress("train", 30, "step", stream=terminal), Progress("evaluate", 9, "image", stream=terminal)
    clock[0] += 1
    first.update(10, "")
    second.update(3, "")  # ends the other's
    end_line()
    print("error: a sentence", file=terminal)
    end_line()
    expected = ["train  step 10/30  ETA 0:02", "evaluate  image 3/9  ETA 0:02", "error: a sentence", ""]
    assert screen(terminal.getvalue()) == expected


def test_silent_says_nothing(capsys):
    Silent().update(1, "text")
    Silent().close()
    assert capsys.readouterr() == ("", "")
