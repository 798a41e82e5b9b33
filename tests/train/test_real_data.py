"""From archives and folders of real photographs to trained steps, each by the commands that a user gives."""

import json
import time

import numpy as np
import pytest
import tiny

from resnext_jax import builders as dataset
from resnext_jax.data.prepare import imagenet
from resnext_jax.data.prepare.__main__ import main as prepare
from resnext_jax.train import monitor
from tests.data.archives import class_files, class_tar_of_tars, jpeg, tar_of, validation_tar, write_folders
from tests.data.test_sources import write_tfds

CLASSES = ["n01", "n02", "n03"]
TRUTH = ["n03", "n01", "n02", "n03", "n03", "n01", "n02"]  # of the validation images 1 to 7
COUNTS = {"n03": 4, "n01": 6, "n02": 5}


def train(workdir, data, name: str, *overrides: str) -> list[dict]:
    """Three steps of the smallest network, with ImageNet's recipe, on one device; the rows of metrics.jsonl."""
    config = tiny.config(
        "--config=configs/resnext50_32x4d.py",
        "--config.model.name=resnext11_4x2d_tiny",
        f"--config.data.name={name}",
        f"--config.data.dir={data}",
        "--config.data.image_size_px=32",
        "--config.data.resize_px=36",
        "--config.data.num_threads=2",
        "--config.batch_size=8",
        "--config.bn_group_images=8",
        "--config.num_steps=3",
        "--config.log.every_steps=3",
        "--config.evaluate.every_steps=3",
        "--config.evaluate.batch_size=4",
        *overrides,
    )
    tiny.train(config, workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def check_rows(rows: list[dict], num_validation_images: int) -> None:
    assert [(row["step"], row["phase"]) for row in rows] == [(3, "train"), (3, "evaluate")]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert 0 < rows[0]["loss"] < 3  # ln 3 = 1.1
    assert rows[1]["images"] == num_validation_images
    assert 0 <= rows[0]["input_wait"] <= 1


@pytest.fixture
def a_small_imagenet(monkeypatch, tmp_path):
    """ImageNet-1K of 3 classes and 7 validation images, in its archives."""
    lines = {"labels.txt": CLASSES, "validation_labels.txt": TRUTH}
    monkeypatch.setattr(imagenet, "shipped_lines", lines.__getitem__)
    monkeypatch.setattr(imagenet, "NUM_CLASSES_5K", 3)
    (tmp_path / "train.tar").write_bytes(class_tar_of_tars(COUNTS))
    (tmp_path / "val.tar").write_bytes(validation_tar(7))


@pytest.mark.slow
def test_imagenet2012_from_its_tars(a_small_imagenet, tmp_path):
    flags = [f"--train_tar={tmp_path / 'train.tar'}", f"--val_tar={tmp_path / 'val.tar'}", "--num_processes=1"]
    assert prepare(["imagenet2012", *flags, f"--out={tmp_path / 'out'}"]) == 0
    check_rows(train(tmp_path / "run", tmp_path / "out", "imagenet2012"), 7)


@pytest.mark.slow
def test_imagenet5k_from_class_tars(a_small_imagenet, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "imagenet1k_classes", lambda: ["n01", "n02"])
    (tmp_path / "full").mkdir()
    for name, files in class_files({"n01": 5, "x1": 2, "n02": 4, "x2": 6}).items():
        (tmp_path / "full" / f"{name}.tar").write_bytes(tar_of(files))
    flags = [f"--full={tmp_path / 'full'}", f"--val_tar={tmp_path / 'val.tar'}", "--num_processes=1"]
    assert prepare(["imagenet5k", *flags, f"--out={tmp_path / 'out'}"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["class_names"] == ["n01", "n02", "x2"]  # x2 has more images than x1
    assert manifest["notes"]["imagenet1k_labels"] == [0, 1]
    check_rows(train(tmp_path / "run", tmp_path / "out", "imagenet5k"), 4)  # of n01 and n02


@pytest.mark.slow
def test_a_folder_as_it_is(tmp_path):
    write_folders(tmp_path, "train", COUNTS)
    write_folders(tmp_path, "val", {"n01": 2, "n02": 3, "n03": 1})
    check_rows(train(tmp_path / "run", tmp_path, "folder"), 6)


@pytest.mark.slow
def test_imagenet2012_of_tfds(tmp_path):
    images = [jpeg(number) for number in range(15)]
    names = {"class_names": CLASSES, "image_shape": (None, None, 3)}
    splits = {"train": images, "validation": images[:5]}
    write_tfds(tmp_path, "imagenet2012", "5.1.0", splits, [number % 3 for number in range(15)], **names)
    check_rows(train(tmp_path / "run", tmp_path, "imagenet2012"), 5)


@pytest.mark.slow
def test_input_wait_is_the_share_of_the_time_in_which_training_waits(tmp_path, monkeypatch):
    """A second of waiting beside milliseconds of steps."""
    write_folders(tmp_path, "train", COUNTS)
    write_folders(tmp_path, "val", COUNTS)
    ours, lines = dataset.train_batches, []

    def slow(*arguments, **options):
        for batch in ours(*arguments, **options):
            time.sleep(1.0)
            yield batch

    monkeypatch.setattr(dataset, "train_batches", slow)
    ours_line = monitor.train_line
    monkeypatch.setattr(monitor, "train_line", lambda *args: lines.append(ours_line(*args)) or "")
    started_s = time.monotonic()
    row, _ = train(tmp_path / "run", tmp_path, "folder")
    elapsed_s = time.monotonic() - started_s
    assert 3 / elapsed_s < row["input_wait"] < 1  # at least three seconds of less than all that it took
    assert row["input_wait"] > 0.5
    assert [f"input wait {row['input_wait']:.0%}" in line for line in lines] == [True]
