"""runtime/heartbeats.py: who is at which step, written now and then."""

import json
import re

import fake_bucket

from resnext_jax.runtime import heartbeats
from resnext_jax.runtime.heartbeats import Heartbeats


def test_first_step_is_written_and_the_next_ones_wait(tmp_path, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now_s)
    beats = Heartbeats(str(tmp_path))
    steps = []
    for step, now_s in ((7, 100.0), (8, 109.9), (9, 110.1), (10, 110.2)):  # noqa: B007
        beats.beat(step)
        (process,) = json.loads((tmp_path / "heartbeats.json").read_text())["processes"]
        steps.append(process["step"])
    assert steps == [7, 7, 9, 9]
    assert process.keys() == {"process", "host", "step", "time"}
    assert process["process"] == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", process["time"])


def test_disk_that_takes_nothing_does_not_stop_a_run(tmp_path):
    Heartbeats(str(tmp_path / "absent" / "run")).beat(1)
    assert list(tmp_path.iterdir()) == []


def test_bucket_that_refuses_one_is_asked_again(bucket, monkeypatch):
    refused = [True, False]
    open_ = fake_bucket.Bucket._open

    def _open(self, path, mode="rb", **options):
        if "w" in mode and refused.pop(0):
            raise RuntimeError("503")  # clients of buckets have errors of their own
        return open_(self, path, mode, **options)

    monkeypatch.setattr(fake_bucket.Bucket, "_open", _open)
    monkeypatch.setattr(heartbeats, "WRITE_EVERY_S", 0.0)
    beats = Heartbeats("gs://bucket/run")
    for step in (7, 8):
        beats.beat(step)
    (process,) = json.loads(bucket.cat_file("gs://bucket/run/heartbeats.json"))["processes"]
    assert process["step"] == 8
    assert refused == []
