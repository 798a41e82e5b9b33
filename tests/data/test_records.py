"""records.py: prepared shards by index, from threads and processes, and every way for a directory to be damaged."""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from resnext_jax.data import pipeline, records
from resnext_jax.data.crops import Crop
from resnext_jax.data.prepare.__main__ import main
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from tests.data.archives import write_folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """Three classes; 24 training images in 4 shards, 5 validation images in one."""
    root = tmp_path_factory.mktemp("records")
    write_folders(root, "train", {"ant": 10, "bee": 8, "cat": 6})
    write_folders(root, "val", {"ant": 2, "bee": 1, "cat": 2})
    flags = [f"--dir={root}", f"--out={root / 'out'}", "--images_per_shard=5", "--num_processes=1"]
    assert main(["folder", *flags]) == 0
    return root / "out"


@pytest.fixture
def copy(prepared, tmp_path) -> pathlib.Path:
    return shutil.copytree(prepared, tmp_path / "copy")


def source_of(directory, split="train"):
    return open_source("records", split, data_dir=str(directory))


def message(directory, name="records", split="train") -> str:
    with pytest.raises(UserError) as caught:
        open_source(name, split, data_dir=str(directory))
    return str(caught.value)


def test_files_come_back_as_they_were(prepared):
    train = source_of(prepared)
    assert train.info.class_names == ("ant", "bee", "cat")
    assert train.info.image_shape is None
    assert len(train) == 24
    assert len(list(prepared.glob("train-*"))) == 4
    found = [train[i] for i in range(24)]
    for record in found:
        assert record.image == (prepared.parent / "train" / record.name).read_bytes()
        assert record.name.startswith(train.info.class_names[record.label])
    assert len({record.name for record in found}) == 24
    assert train.all_labels().dtype == np.int32
    assert train.all_labels().tolist() == [record.label for record in found]
    assert len(source_of(prepared, "validation")) == 5


def test_which_image_is_in_which_shard(prepared):
    files = sorted(str(path.relative_to(prepared.parent / "train")) for path in prepared.parent.glob("train/*/*"))
    # ranks of the first 24 numbers of Philox4x64-10 with key 0, computed apart from numpy, cut in four and sorted
    shards = [[0, 2, 11, 17, 20, 21], [1, 5, 8, 9, 13, 16], [3, 4, 10, 12, 19, 22], [6, 7, 14, 15, 18, 23]]
    assert [source_of(prepared)[i].name for i in range(24)] == [files[i] for shard in shards for i in shard]


def read_some(source, indices):
    return [source[i].name for i in indices]


@pytest.mark.slow
def test_threads_and_processes(prepared):
    source = source_of(prepared)
    indices = np.random.default_rng(0).integers(0, 24, 400).tolist()
    names = read_some(source, range(24))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: source[i].name, indices)) == [names[i] for i in indices]
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert processes.submit(read_some, source, indices).result() == [names[i] for i in indices]


def test_batches_are_those_of_the_folder_in_another_order(prepared):
    crop = Crop("random_sized", 32, 40)
    of_records = list(pipeline.evaluation_batches(source_of(prepared, "validation"), crop, batch_size=4))
    folder = open_source("folder", "validation", data_dir=str(prepared.parent))
    of_folder = list(pipeline.evaluation_batches(folder, crop, batch_size=4))
    images = [np.concatenate([batch.image for batch in batches]) for batches in (of_records, of_folder)]
    assert sorted(image.tobytes() for image in images[0]) == sorted(image.tobytes() for image in images[1])


def test_some_of_the_classes(prepared, tmp_path):
    (tmp_path / "list").write_text("cat\nant\n")
    whole = source_of(prepared)
    part = open_source("records", "train", data_dir=str(prepared), class_list=str(tmp_path / "list"))
    assert part.info.class_names == ("ant", "cat")
    kept = [record for record in map(whole.__getitem__, range(24)) if not record.name.startswith("bee/")]
    assert [(part[i].image, part[i].name) for i in range(16)] == [(record.image, record.name) for record in kept]
    assert [part[i].label for i in range(16)] == [{"ant": 0, "cat": 1}[record.name[:3]] for record in kept]


def test_a_directory_is_taken_for_what_it_was_prepared_as(prepared):
    assert len(open_source("folder", "train", data_dir=str(prepared))) == 24
    text = message(prepared, name="imagenet2012")
    assert "was prepared as 'folder', not 'imagenet2012'. Set --config.data.name=folder" in text


def test_missing_and_cut_files(copy):
    shard = copy / "train-00002-of-00004.array_record"
    os.truncate(shard, 5000)
    assert f"{shard} has 5,000 bytes where the manifest says" in message(copy)
    assert len(source_of(copy, "validation")) == 5
    shard.unlink()
    assert f"{shard} is missing. Copy the directory again" in message(copy)
    (copy / "train.labels").unlink()
    assert "(1 more files are wrong.)" in message(copy)


def test_a_flipped_bit_is_named_when_it_is_read(copy):
    shard = copy / "train-00001-of-00004.array_record"
    content = bytearray(shard.read_bytes())
    content[400] ^= 1  # within the first record
    shard.write_bytes(content)
    source = source_of(copy)
    with pytest.raises(UserError, match=r"record 0 of \S+train-00001-of-00004.array_record could not be read"):
        source[6]
    assert source[5].label in (0, 1, 2)
    (copy / "train.labels").write_bytes(bytes(24 * 4))
    with pytest.raises(UserError, match=r"train.labels has other content"):
        source.all_labels()


def test_a_shard_with_fewer_records_than_the_manifest_says(copy):
    from array_record.python.array_record_module import ArrayRecordWriter

    shard = copy / "train-00000-of-00004.array_record"
    size = shard.stat().st_size
    writer = ArrayRecordWriter(str(shard), records.WRITER_OPTIONS)
    writer.write(records.pack(b"only one", 0, "x"))
    writer.close()
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["splits"]["train"]["shards"][0]["num_bytes"] == size
    manifest["splits"]["train"]["shards"][0]["num_bytes"] = shard.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    source = source_of(copy)
    with pytest.raises(UserError, match=r"record 3 of \S+ could not be read"):
        source[3]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text.replace("records 1", "records 9"), "this version reads 'resnext_jax records 1'"),
        (lambda text: text.replace('"num_images": 24', '"num_images": 25'), "says 25 images for train, but its shards"),
        (lambda text: text.replace('"sha256"', '"md5"'), "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: text[: text.index("[")] + 50_000 * "[", "lie within one another"),
        (lambda text: text.replace('"num_bytes": ', '"num_bytes": "', 1).replace(",", '",', 1), "is damaged"),
        (
            lambda text: text.replace('"num_images": 6', f'"num_images": {2**62}'),
            "cannot hold 4,611,686,018,427,387,904",
        ),
        (lambda text: text.replace('"num_images": 6', '"num_images": -6'), "is -6, not a whole number"),
        (lambda text: text.replace('"file": "train-', '"file": "/dev/train-'), "is no name of a file"),
        (lambda text: text.replace('"class_names": [', '"class_names": [3, '), r"class_names\[0\] is 3, not text"),
        (lambda text: text.replace('"num_bytes": 96', '"num_bytes": 92'), "has 24 labels in 92 bytes for 24 images"),
    ],
)
def test_damaged_manifests(copy, change, problem):
    manifest = copy / "manifest.json"
    manifest.write_text(change(manifest.read_text()))
    assert re.search(problem, message(copy))


def test_a_split_that_was_not_prepared(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["splits"]["validation"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "has no validation split, only train" in message(copy, split="validation")
