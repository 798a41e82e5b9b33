"""prepare.py: records give the same batches as the files; runs that are interrupted, or that do not fit."""

import json

import data_sets
import numpy as np
import pytest

from resnext_jax.data.prepare import __main__ as data_prepare
from resnext_jax.detection import batches, prepare, sources
from resnext_jax.detection.sizes import Sizes
from resnext_jax.errors import UserError

SMALL = Sizes(60, 100, ((64, 80), (64, 112), (80, 64), (112, 64)))


@pytest.fixture
def own(tmp_path):
    directory = tmp_path / "own"
    data_sets.write(directory, "annotations/train.json", data_sets.content(12))
    return data_sets.write(directory, "annotations/validation.json", data_sets.content(3, 101, "validation"))


def run(own, out, *more) -> int:
    return prepare.main(["coco", f"--dir={own}", f"--out={out}", "--num_processes=1", "--images_per_shard=2", *more])


def assert_equal_batches(one, other):
    arguments = {"batch_size": 4, "seed": 0, "steps": range(6)}
    streams = (batches.train_batches(source, SMALL, **arguments) for source in (one, other))
    for first, second in zip(*streams, strict=True):
        for name, array in vars(first).items():
            np.testing.assert_array_equal(getattr(second, name), array)


def test_records_give_the_batches_of_the_files(own, tmp_path, capsys):
    assert run(own, tmp_path / "out") == 0
    output = capsys.readouterr().out
    assert "12 images          12 boxes      4 shards" in output
    assert f"--config.data.dir={tmp_path / 'out'}" in output
    files, records = (sources.open_source(str(path), "train") for path in (own, tmp_path / "out"))
    assert isinstance(records, sources.PreparedImages)
    for index in range(12):
        assert records[index].image == files[index].image
        assert (records[index].label, records[index].name) == (index, files.data.files[index])
    assert "array_record" in records.locate(3)
    assert_equal_batches(files, records)
    assert len(sources.open_source(str(tmp_path / "out"), "validation")) == 3


def test_a_run_killed_before_its_last_files_is_completed(own, tmp_path):
    run(own, tmp_path / "out")
    (tmp_path / "out/train.json").unlink()
    with pytest.raises(UserError, match=r"train\.json is missing or has other content than was written"):
        sources.open_source(str(tmp_path / "out"), "train")
    assert run(own, tmp_path / "out") == 0
    assert len(sources.open_source(str(tmp_path / "out"), "train")) == 12


def test_other_boxes_are_another_preparation(own, tmp_path, capsys):
    run(own, tmp_path / "out")
    content = data_sets.content(12)
    content["annotations"][0]["bbox"] = [1, 1, 5, 5]
    data_sets.write(own, "annotations/train.json", content)
    assert run(own, tmp_path / "out") == 2
    assert "holds another preparation (of other boxes)" in capsys.readouterr().err


def test_changed_annotations_of_records_are_told(own, tmp_path):
    run(own, tmp_path / "out")
    (tmp_path / "out/train.json").write_text("{}")
    with pytest.raises(UserError, match="has other content than was written"):
        sources.open_source(str(tmp_path / "out"), "train")


def test_a_truncated_image_is_told_or_left_out(own, tmp_path, capsys):
    path = own / "train/0004.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert run(own, tmp_path / "out") == 2
    assert "train/0004.png is not a readable image" in capsys.readouterr().err
    assert run(own, tmp_path / "out", "--on_bad_image=skip") == 0
    assert "1 images could not be read and were left out: train/0004.png" in capsys.readouterr().out
    records = sources.open_source(str(tmp_path / "out"), "train")
    assert len(records) == 11
    assert records[4].name == "train/0005.png"
    assert records.data.annotations.image.tolist() == [1, 2, 2, 4, 4, 6, 7, 7, 9, 10, 10]
    assert "1 of 12 images are left out" in records.data.notes[-1]


def test_records_are_verified_and_those_without_boxes_told(own, tmp_path):
    run(own, tmp_path / "out")
    assert data_prepare.main([f"--verify={tmp_path / 'out'}"]) == 0
    content = json.loads((tmp_path / "out/manifest.json").read_text()) | {"name": "folder"}
    (tmp_path / "out/manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="was prepared as 'folder', without boxes"):
        sources.open_source(str(tmp_path / "out"), "train")


def test_splits_of_other_classes_are_told(own, tmp_path, capsys):
    content = data_sets.content(3, 101, "validation")
    content["categories"][0]["name"] = "horse"
    data_sets.write(own, "annotations/validation.json", content)
    assert run(own, tmp_path / "out") == 2
    assert "validation has other classes than train" in capsys.readouterr().err


def test_a_directory_without_annotations_is_told(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out") == 2
    assert "annotations of the train split were not found" in capsys.readouterr().err


def test_wrong_numbers_are_told(own, tmp_path, capsys):
    assert run(own, tmp_path / "out", "--num_processes=0") == 2
    assert "--num_processes=0 must be 1 or more" in capsys.readouterr().err


def test_records_are_not_prepared_again(own, tmp_path, capsys):
    run(own, tmp_path / "out")
    assert run(tmp_path / "out", tmp_path / "again") == 2
    assert "is prepared already" in capsys.readouterr().err
