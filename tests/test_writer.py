"""Rows that are never torn or doubled, and a progress line for people and for log files."""

import doctest
import io
import json
import os

import pytest

from resnext_jax import writer
from resnext_jax.writer import MetricsWriter, Progress, Silent, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    return now


def test_doctests():
    failed, tried = doctest.testmod(writer)
    assert (failed, tried) == (0, 1)


def test_rows_and_events(tmp_path):
    metrics = MetricsWriter(str(tmp_path), 0)
    metrics.write(5, 0.1234567, "train", {"loss": 2.5, "top1": 0.25})
    metrics.write(5, 0.1234567, "evaluate", {"loss": 2.0})
    on_disk = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before close: a kill loses nothing
    metrics.close()
    assert [json.loads(line) for line in on_disk] == [
        {"step": 5, "epoch": 0.123457, "phase": "train", "loss": 2.5, "top1": 0.25},
        {"step": 5, "epoch": 0.123457, "phase": "evaluate", "loss": 2.0},
    ]
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert all(tag in content for tag in (b"train/loss", b"train/top1", b"evaluate/loss"))


def test_resumed_run_drops_the_rows_that_it_makes_again(tmp_path):
    lines = [json.dumps({"step": step, "phase": "train"}) for step in (5, 10, 10, 15)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    metrics = MetricsWriter(str(tmp_path), 10)
    metrics.write(15, 1.0, "train", {})
    metrics.close()
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [5, 10, 10, 15]
    assert read_metrics(str(tmp_path))[-1] == {"step": 15, "epoch": 1.0, "phase": "train"}


def test_torn_last_line_is_left_out_and_written_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 10, "lo')
    assert read_metrics(str(tmp_path)) == [{"step": 5}]
    metrics = MetricsWriter(str(tmp_path), 10)
    metrics.write(15, 1.0, "train", {})
    metrics.close()
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [5, 15]


def test_no_file_no_rows(tmp_path):
    assert read_metrics(str(tmp_path)) == []


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
    monkeypatch.setattr(writer.shutil, "get_terminal_size", lambda: os.terminal_size((30, 24)))
    stream = Terminal()
    progress = Progress("evaluate", 30, "image", stream=stream)
    clock[0] += 1
    progress.update(10, "a long text")
    assert stream.getvalue() == "\revaluate  image 10/30  ETA 0:"  # 29 characters: the cursor stays on the line


def test_silent_says_nothing(capsys):
    Silent().update(1, "text")
    Silent().close()
    assert capsys.readouterr() == ("", "")
