"""A whole run in a bucket: a stand-in that speaks the protocols, not Google's."""

import json
from typing import Any

import fake_bucket
import jax
import numpy as np
import pytest
import tiny

from resnext_jax.data.sources import open_source
from resnext_jax.evaluate import recompute as recompute_module
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.sharding import Place, make_mesh, put_replicated

EQUAL_FIELDS = ("step", "epoch", "phase", "loss", "top1", "top5", "images", "learning_rate")  # whatever the speed


@pytest.fixture
def bucket():
    """The objects of gs://bucket."""
    with fake_bucket.served() as served:
        served.store.clear()
        yield served
        served.store.clear()


def run(workdir, num_steps):
    every = ("--config.evaluate.every_steps=2", "--config.checkpoint.every_steps=2", "--config.log.every_steps=3")
    tiny.train(tiny.config(f"--config.num_steps={num_steps}", *every), workdir)


def rows(workdir):
    return [{name: row[name] for name in EQUAL_FIELDS if name in row} for row in read_metrics(workdir)]


def flip_a_bit(bucket, prefix):
    """In the largest object below a path."""
    path = max(bucket.find(prefix), key=bucket.size)
    content = bytearray(bucket.cat_file(path))
    content[len(content) // 2] ^= 1
    bucket.pipe_file(path, bytes(content))


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_directory(bucket, tmp_path, capsys):
    """Stopped after 4 steps, the checkpoint of step 4 damaged, gone on from step 2 to the end."""
    run("gs://bucket/run", 4)
    flip_a_bit(bucket, "gs://bucket/run/checkpoints/4")
    capsys.readouterr()
    run("gs://bucket/run", 6)
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: the checkpoint gs://bucket/run/checkpoints/4 is damaged" in said
    assert "it was moved to gs://bucket/run/damaged_checkpoints/4, and that of step 2 is used" in said
    assert "resuming gs://bucket/run at step 2 of 6" in said
    run(str(tmp_path), 6)
    assert rows("gs://bucket/run") == rows(str(tmp_path))
    assert json.loads(bucket.cat_file("gs://bucket/run/config.json"))["num_steps"] == 6
    names = {path.removeprefix("gs://bucket/run/").split("/")[0] for path in bucket.find("gs://bucket/run")}
    assert names == {path.name for path in tmp_path.iterdir()} | {"damaged_checkpoints"}  # no lock, no probes
    assert bucket.cat_file("gs://bucket/run/curves.png").startswith(b"\x89PNG")
    events = b"".join(bucket.cat_file(path) for path in bucket.find("gs://bucket/run/tensorboard"))
    assert all(tag in events for tag in (b"train/loss", b"evaluate/top1"))

    local = tmp_path / "copy"
    bucket.get("gs://bucket/run/checkpoints/6", str(local / "6"), recursive=True)
    ours, theirs = tiny.arrays(local / "6"), tiny.arrays(tmp_path / "checkpoints" / "6")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (ours[name] == array).all(), name


@pytest.mark.slow
def test_recomputed_statistics_whose_save_was_cut_short_are_made_again(bucket, monkeypatch):
    """In a bucket a save lies where it stays from its first object on; only the last one says that it is whole."""
    place = Place(make_mesh(jax.devices()[:1]), "cpu")
    variables = put_replicated(place.mesh, {"params": {"scale": np.ones(3, "f4")}, "batch_stats": np.zeros(3, "f4")})
    computed = []

    def average_statistics(*_):
        computed.append(1)
        return np.full(3, 5.0, np.float32)

    monkeypatch.setattr(recompute_module, "training_batches", lambda *_: iter(()))
    monkeypatch.setattr(recompute_module, "jit_statistics", lambda *_: None)
    monkeypatch.setattr(recompute_module, "average_statistics", average_statistics)
    description = tiny.description()

    model, source = tiny.assembled()[0].model, open_source("builtin", "train")

    def recompute():
        arguments: Any = (model, variables, 4, description, source, "gs://bucket/run", place)
        return recompute_module.recompute_bn(tiny.config(), *arguments)["batch_stats"]

    checkpoint = "gs://bucket/run/recomputed_bn/checkpoints/4"
    for expected in ([1], [1]):  # once whole, it is read
        np.testing.assert_array_equal(recompute(), np.full(3, 5.0))
        assert computed == expected
    bucket.rm(f"{checkpoint}/commit_success.txt")
    bucket.rm(f"{checkpoint}/checksums.json")
    np.testing.assert_array_equal(recompute(), np.full(3, 5.0))
    assert computed == [1, 1]
    assert bucket.exists(f"{checkpoint}/commit_success.txt")
