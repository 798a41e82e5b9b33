"""Rows that are never torn or doubled."""

import json
import time

import pytest
import tiny

from resnext_jax.errors import UserError
from resnext_jax.runtime.writer import MetricsWriter, read_metrics


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


def test_rows_of_later_steps_stay_where_nothing_is_resumed(tmp_path):
    """As where batch-norm statistics of an earlier checkpoint are recomputed."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 20, "phase": "recomputed_bn"}\n')
    metrics = MetricsWriter(str(tmp_path))
    metrics.write(10, 1.0, "recomputed_bn", {})
    metrics.close()
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [20, 10]


def test_torn_last_line_is_left_out_and_written_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "phase": "train"}\n{"step": 10, "lo')
    assert read_metrics(str(tmp_path)) == [{"step": 5, "phase": "train"}]
    metrics = MetricsWriter(str(tmp_path), 10)
    metrics.write(15, 1.0, "train", {})
    metrics.close()
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [5, 15]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"phase": "train"}', "step is missing"),
        ('{"step": "5", "phase": "train"}', "step is '5', not a whole number"),
        ('{"step": 9223372036854775808, "phase": "train"}', "step is 9223372036854775808"),
        ('{"step": 5, "phase": "train", "loss": "2.5"}', "loss is '2.5', not a number"),
        ('{"step": 5, "phase": "train", "loss": null}', "loss is None, not a number"),
        ('{"step": 5, "phase": "train", "step": 6}', "'step' stands twice"),
        (2000 * "[" + 2000 * "]", "line 1 .* lie within one another"),
    ],
)
def test_rows_of_other_values_are_named(tmp_path, line, problem):
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 5, "phase": "train"}}\n')
    with pytest.raises(UserError, match=problem):
        read_metrics(str(tmp_path))


@pytest.mark.slow
def test_many_rows_are_read_in_seconds(tmp_path):
    row = json.dumps({"step": 5, "epoch": 0.5, "phase": "train", "loss": 2.5, "top1": 0.25})
    (tmp_path / "metrics.jsonl").write_text(f"{row}\n" * 50_000)
    began_s = time.monotonic()
    assert len(read_metrics(str(tmp_path))) == 50_000
    assert time.monotonic() - began_s < 60


def test_no_file_no_rows(tmp_path):
    assert read_metrics(str(tmp_path)) == []


@pytest.mark.slow
def test_training_does_not_import_torch(tmp_path):
    process = tiny.start(tmp_path, "--config.num_steps=1", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.split("|")[-1].strip() for line in tiny.finish(process).splitlines() if "import time:" in line}
    assert {"tensorboardX", "resnext_jax.train.loop"} <= imported
    assert "torch.nn" not in imported
