"""data.bench: what is compared and how the numbers come about; not how fast this machine is."""

import io
import json
import multiprocessing
import sys
import time
import warnings
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data.bench import __main__ as command
from resnext_jax.data.bench import contenders, memory, photos


def run(*arguments: str) -> None:
    with mock.patch.object(sys, "argv", ["bench", *arguments]):
        command.main()


def test_photographs_are_of_imagenets_size():
    files = photos.photographs(16)
    assert files == photos.photographs(16)
    assert len(set(files)) == 16
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
    assert 90_000 < np.mean([len(file) for file in files]) < 110_000


def test_medians_and_ratios_within_the_turns():
    rates = {"ours": [800.0, 400.0, 1000.0], "torch": [200.0, 200.0, 400.0], "tf_data": [400.0, 400.0, 400.0]}
    assert command.summary(rates) == {
        "ours": 800,
        "tf_data": 400,
        "tf_data_filtered": None,
        "torch": 200,
        "ratio_tf_data": 2.0,  # of 2, 1 and 2.5
        "ratio_tf_data_filtered": None,
        "ratio_torch": 2.5,  # of 4, 2 and 2.5
    }


def _burn(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def test_the_time_of_workers_counts():
    before = contenders.processor_s()
    worker = multiprocessing.get_context("fork").Process(target=_burn, args=(60.0,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads; it touches nothing of theirs
        warnings.simplefilter("ignore", RuntimeWarning)
        worker.start()
    found = 0.0
    while worker.is_alive() and found < 0.2:
        found = contenders.processor_s() - before
    worker.terminate()
    worker.join()
    assert found >= 0.2


@pytest.mark.slow
def test_without_peers_the_rest_is_timed_and_they_are_named(monkeypatch, capsys):
    monkeypatch.setattr(
        contenders,
        "NEEDS",
        contenders.NEEDS | dict.fromkeys(("tf_data", "tf_data_filtered"), (("no_such_package",), "pip install it")),
    )
    monkeypatch.setattr(
        contenders, "absent", lambda name, absent=contenders.absent: "get it" if name == "torch" else absent(name)
    )
    run("--num_images=4", "--batch_size=2", "--repeats=2", "--turn_s=0.05", "--json")
    shown, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    result = json.loads(last)
    assert result["ours"] > 0
    assert result["torch"] is result["tf_data"] is result["ratio_tf_data"] is None
    assert "not installed: pip install it" in shown
    assert "not installed: get it" in shown


@pytest.mark.slow
def test_our_pipeline_and_torchs_give_the_same_kind_of_batches(tmp_path, torchvision):
    (tmp_path / "photographs").mkdir()
    for number, file in enumerate(photos.photographs(3)):
        (tmp_path / "photographs" / f"{number}.jpg").write_bytes(file)
    for make in (contenders.ours, contenders.torch):
        how, batches = make(str(tmp_path), 0, 2)  # in this process
        batch = next(batches)
        assert (batch.shape, batch.dtype) == ((2, 224, 224, 3), np.uint8)
        assert batch.std() > 20
        assert "bicubic" in how


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--num_cores=1000", "--num_cores=1000, but this process may use"),
        ("--repeats=0", "--repeats=0 is too small; it must be 1 or more"),
        ("--turn_s=0", "--turn_s=0 is too short"),
    ],
)
def test_a_wrong_number_is_one_line(argument, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(argument)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_memory_reads_every_record(capsys):
    run("--memory", "--num_records=1253", "--batch_size=250", "--num_threads=2", "--json")
    shown, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    result = json.loads(last)
    assert result["num_records"] == 2504  # whole shards
    assert "2,504 records in 2 shards" in shown
    assert len(result["resident_mb"]) == 10
    assert all(0 < resident <= result["peak_mb"] * 1.01 for resident in result["resident_mb"])


def test_an_epoch_has_imagenets_size(tmp_path):
    assert memory.IMAGENET >= 1_281_167
    source = memory.linked_shards(tmp_path, 2000)
    assert len(source) == 2504
    sizes = [Image.open(io.BytesIO(bytes(source[index].image))).size for index in (0, 1, 15, 16, 1252, 2503)]
    assert sizes == [(500, 375), (96, 72), (96, 72), (500, 375), (500, 375), (96, 72)]
    assert [source[index].label for index in (0, 999, 1000, 1251, 1252)] == [0, 999, 0, 251, 0]
    np.testing.assert_array_equal(source.all_labels()[[0, 999, 1000, 1251, 1252]], [0, 999, 0, 251, 0])
