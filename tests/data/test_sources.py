"""sources.py and readers.py: every kind of data set, found and opened, and every way for it to be absent or wrong."""

import errno
import gzip
import hashlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import folder, pipeline, sources
from resnext_jax.data.crops import Crop
from resnext_jax.data.prepare.__main__ import main as prepare
from resnext_jax.data.prepare.images import folder_images
from resnext_jax.data.readers import ArraySource, GatherSource, read_idx
from resnext_jax.data.sources import open_source
from resnext_jax.data.subset import SubsetSource
from resnext_jax.data.tfds import TfdsSource
from resnext_jax.errors import UserError
from tests.data.archives import open_arrays


@pytest.fixture(autouse=True)
def no_data_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds_default"))
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST_DIR", str(tmp_path / "debian"))


def encoded(pixels: np.ndarray, file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format)
    return stream.getvalue()


def message(name, split="train", **arguments) -> str:
    with pytest.raises(UserError) as caught:
        open_source(name, split, **arguments)
    return str(caught.value)


def test_unknown_names():
    text = message("imagnet2012", "test")
    assert "unknown data set 'imagnet2012'. Did you mean 'imagenet2012'" in text
    assert "unknown split 'test'" in text


# ---- the built-in images


def test_builtin_images():
    for split, num_images in (("train", 15_000), ("validation", 3_000)):
        source = open_arrays("builtin", split)
        assert source.info.image_shape == (28, 28, 1)
        assert source.info.num_classes == 10
        assert len(source) == source.info.num_images == num_images
        images, labels = source.gather(np.arange(num_images))
        assert images.shape == (num_images, 28, 28, 1)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(np.bincount(labels), [num_images // 10] * 10)
        record = source[7]
        np.testing.assert_array_equal(record.image, images[7])
        assert record.label == labels[7]
    # the first test image of the original set is an ankle boot, the first training image too
    assert source.info.class_names[source[0].label] == "Ankle boot"


def test_builtin_files_are_small_and_listed_in_the_readme():
    files = sorted(sources.pathlib.Path(sources.BUILTIN_DIR).glob("*.gz"))
    assert sum(file.stat().st_size for file in files) < 8_000_000
    readme = (files[0].parent / "README.md").read_text()
    rows = re.findall(r"`(\S+\.gz)` \| ([\d,]+) \| `(\w{64})` \| `(\w{64})`", readme)
    assert sorted(name for name, *_ in rows) == [file.name for file in files]
    for name, size, packed, unpacked in rows:
        content = (files[0].parent / name).read_bytes()
        assert len(content) == int(size.replace(",", ""))
        assert hashlib.sha256(content).hexdigest() == packed
        assert hashlib.sha256(gzip.decompress(content)).hexdigest() == unpacked


def test_the_script_takes_the_first_of_each_class(tmp_path, monkeypatch):
    # a full set of 24 x 10 images is smaller than what the script asks for, so that it must keep all, and in order
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 24))
    for stem in ("train", "t10k"):
        write_idx(tmp_path, stem, np.arange(240)[:, None, None] * np.ones((28, 28)), labels)
    script = sources.BUILTIN_DIR + "/make_subset.py"
    command = [sys.executable, script, f"--full_dir={tmp_path}", f"--out_dir={tmp_path / 'out'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    np.testing.assert_array_equal(read_idx(tmp_path / "out" / "train-labels-idx1-ubyte.gz"), labels)
    monkeypatch.syspath_prepend(sources.BUILTIN_DIR)
    some = importlib.import_module("make_subset").first_of_each_class(labels, 3)
    assert len(some) == 30
    assert (np.diff(some) > 0).all()
    for c in range(10):
        np.testing.assert_array_equal(some[labels[some] == c], np.flatnonzero(labels == c)[:3])


# ---- idx files


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(directory, stem, images, labels, suffix=".gz"):
    directory.mkdir(exist_ok=True)
    pack = gzip.compress if suffix else bytes
    images, labels = np.asarray(images, np.uint8), np.asarray(labels, np.uint8)
    for array, name in ((images, f"{stem}-images-idx3-ubyte"), (labels, f"{stem}-labels-idx1-ubyte")):
        (directory / (name + suffix)).write_bytes(pack(idx(array)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_files(tmp_path, suffix):
    images = np.arange(4 * 28 * 28).reshape(4, 28, 28) % 251
    write_idx(tmp_path / "a", "t10k", images, [0, 9, 3, 3], suffix)
    source = open_arrays("fashion_mnist", "validation", data_dir=str(tmp_path / "a"))
    found, labels = source.gather(np.array([1, 3]))
    np.testing.assert_array_equal(found[..., 0], images[[1, 3]])
    np.testing.assert_array_equal(labels, [9, 3])


@pytest.mark.parametrize("name", ["builtin", "synthetic"])
def test_a_directory_for_images_of_the_package_is_refused(name):
    text = message(name, data_dir="/my/photographs")
    assert f"data.dir=/my/photographs is not looked at: the images of data.name='{name}' come with the package" in text
    assert "--config.data.name=folder" in text


def test_fashion_mnist_of_the_system(tmp_path):
    write_idx(tmp_path / "debian", "train", np.zeros((2, 28, 28)), [1, 2])
    assert len(open_source("fashion_mnist", "train")) == 2
    # A directory that was named is meant: other images must not take its place.
    assert str(tmp_path / "nowhere") in message("fashion_mnist", data_dir=str(tmp_path / "nowhere"))


def test_idx_files_that_do_not_fit(tmp_path):
    write_idx(tmp_path, "train", np.zeros((3, 28, 28)), [0, 10, 255])
    labels_file = str(tmp_path / "train-labels-idx1-ubyte.gz")
    text = message("fashion_mnist", data_dir=str(tmp_path))
    assert f"{labels_file}: label 10 at index 1 (2 such labels in all)" in text
    assert "0 to 9" in text
    write_idx(tmp_path, "train", np.zeros((3, 28, 28)), [0, 1])
    text = message("fashion_mnist", data_dir=str(tmp_path))
    assert "has 3 images and" in text
    assert f"{labels_file} 2 labels" in text
    write_idx(tmp_path, "train", np.zeros((3, 28)), [0, 1, 2])
    assert "has 2 dimension(s) where images have 3" in message("fashion_mnist", data_dir=str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert "but not its other half" in message("fashion_mnist", data_dir=str(tmp_path))


def test_negative_labels_of_an_array():
    with pytest.raises(UserError, match="file: label -1 at index 2"):
        ArraySource("x", np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, -1]), ["a", "b"], "file")


HEADER = bytes([0, 0, 8, 1, 0, 0, 0, 4])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "begins with nothing"),
        (b"hello", "begins with 68656c6c"),
        (HEADER[:6], "is not an idx file"),
        (HEADER + b"abc", "holds 3 values where its header says 4"),
        (HEADER + b"abcde", "holds 5 values where its header says 4"),
        (gzip.compress(HEADER + b"abcde" * 999, mtime=0), "holds 1028 or more values where its header says 4"),
        (bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff" * 3, "announces 2147483647 x 2147483647 x 2147483647 values"),
        (bytes([0, 0, 8, 2]) + b"\xff\xff\xff\xfe\0\0\0\2", "holds 0 values where its header says -2 x 2"),
        (bytes([0, 0, 8, 255]) + b"\0\0\0\1" * 20, "is not an idx file"),
        (gzip.compress(HEADER + b"abcd", mtime=0)[:-10], "could not be read"),
        (gzip.compress(HEADER + b"abcd" * 99, mtime=0)[:12] + b"\xff" * 20, "could not be read"),
        (b"\x1f\x8b" + b"\0" * 30, "could not be read"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 4]) + b"abcd" * 4, "is not an idx file of bytes"),
    ],
)
def test_corrupt_idx_files_are_named(tmp_path, content, problem):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("announced", [4, 3 << 30])
def test_a_gzip_bomb_takes_no_memory(tmp_path, announced):
    """300 kB that unpack to 300 MB: only what the header announces is unpacked, or nothing."""
    path, pack = tmp_path / "train-labels-idx1-ubyte.gz", zlib.compressobj(9, zlib.DEFLATED, 31)
    header = bytes([0, 0, 8, 3]) + (announced >> 2).to_bytes(4, "big") + b"\0\0\0\2" * 2
    path.write_bytes(pack.compress(header) + b"".join(pack.compress(bytes(1 << 20)) for _ in range(300)) + pack.flush())
    tracemalloc.start()
    with pytest.raises(UserError, match=r"labels-idx1-ubyte\.gz (holds 1028 or more|announces)"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


# ---- synthetic images


def test_synthetic_images():
    sizes: dict[str, Any] = {"num_images": 1000, "num_classes": 7, "image_size_px": 24}
    train, validation = (open_arrays("synthetic", split, **sizes) for split in ("train", "validation"))
    assert train.info.image_shape == (24, 24, 3)
    assert len(train) == 1000
    assert train.info.num_classes == 7
    images, labels = train.gather(np.arange(1000))
    again, _ = open_arrays("synthetic", "train", **sizes).gather(np.arange(1000))
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(train[901].image, images[901])
    assert (train[901].label, labels[901]) == (901 % 7, 901 % 7)
    assert len({image.tobytes() for image in images}) == 1000
    # learnable: the nearest class mean of the training images names every validation image's class
    means = np.stack([images[labels == c].mean(axis=0) for c in range(7)])
    unseen, truth = validation.gather(np.arange(1000))
    distance = ((unseen[:, None].astype(np.float32) - means) ** 2).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(axis=1), truth)
    assert not {image.tobytes() for image in unseen} & {image.tobytes() for image in images}


def test_synthetic_images_of_no_size():
    text = message("synthetic", num_images=0, image_size_px=-3)
    assert "num_images is 0" in text
    assert "image_size_px is -3" in text


# ---- class folders


def make_folders(root, split, classes, images_per_class=2):
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for i in range(images_per_class):
            pixels = np.full((4, 5, 3), 10 * label + i, np.uint8)
            (root / split / name / f"{i}.{('png', 'JPEG', 'jpg')[i]}").write_bytes(encoded(pixels))


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_folder(tmp_path, validation):
    make_folders(tmp_path, "train", ["cat", "ant", "bee"], 3)
    make_folders(tmp_path, validation, ["ant", "bee", "cat"], 1)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    train = open_source("folder", "train", data_dir=str(tmp_path))
    assert train.info.class_names == ("ant", "bee", "cat")
    assert train.info.image_shape is None
    assert not isinstance(train, GatherSource)
    assert [(record.label, record.name.removeprefix(str(tmp_path))) for record in map(train.__getitem__, range(9))] == [
        (label, f"/train/{name}/{file}")
        for label, name in enumerate(("ant", "bee", "cat"))
        for file in ("0.png", "1.JPEG", "2.jpg")
    ]
    for i in range(9):
        assert train[i].image == (tmp_path / train[i].name).read_bytes()
    assert len(open_source("folder", "validation", data_dir=str(tmp_path))) == 3


def test_folders_that_do_not_fit(tmp_path):
    make_folders(tmp_path, "train", ["ant", "bee"])
    make_folders(tmp_path, "val", ["bee", "cow", "dog"])
    text = message("folder", data_dir=str(tmp_path))
    assert f"1 class folder(s) of {tmp_path}/train are not in {tmp_path}/val: ant." in text
    assert f"2 class folder(s) of {tmp_path}/val are not in {tmp_path}/train: cow, dog." in text
    assert "has 2 class folders; 'imagenet2012' has 1000" in message("imagenet2012", data_dir=str(tmp_path))
    (tmp_path / "b" / "train" / "ant").mkdir(parents=True)
    assert "b/train/ant has no image file (.jpeg, .jpg, .png)" in message("folder", data_dir=str(tmp_path / "b"))
    (tmp_path / "c" / "train").mkdir(parents=True)
    assert "has 0 class folders" in message("folder", data_dir=str(tmp_path / "c"))


SAMPLE = np.full((4, 5, 3), 7, np.uint8)
# By their names; the format is that of the suffix, or another one.
READ = {
    **dict.fromkeys(("00.JPG", "01.jpe", "02.jfif", "03.Jpeg", "10"), "JPEG"),
    **{f"{i:02}.{kind.lower()}": kind for i, kind in enumerate(("PNG", "BMP", "GIF", "PPM", "TIFF"), 4)},
    "09.tif": "TIFF",
    "11.webp": "WEBP",
    "sub/12.png": "PNG",
    "sub/sub/13": "BMP",
}
LEFT_OUT = [*(f"ant/{name}" for name in ("._10.jpg", "14.jp2", "BMW.txt", "pipe")), "ant/sub/.hidden.png"]
LEFT_OUT += ["ant/sub/loop", "readme.txt"]


@pytest.fixture
def mixed(tmp_path):
    """A class folder of every kind of file; a pipe and a link to the folder above are in it too."""
    root = tmp_path / "mixed"
    for split in ("train", "validation"):
        for name, kind in {**READ, "14.jp2": "JPEG2000", "._10.jpg": "JPEG", "sub/.hidden.png": "PNG"}.items():
            path = root / split / "ant" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(SAMPLE, kind))
        (root / split / "ant" / "BMW.txt").write_text("BMW, P6 3\n")
        os.mkfifo(root / split / "ant" / "pipe")
        (root / split / "ant" / "sub" / "loop").symlink_to(root / split / "ant")
        (root / split / "readme.txt").write_text("no class")
    return root


def test_every_file_of_a_class_is_used_or_left_out_by_name(mixed, capsys):
    source = open_source("folder", "train", data_dir=str(mixed))
    assert isinstance(source, folder.FolderSource)
    used = [source[i].name.removeprefix(f"{mixed}/train/ant/") for i in range(len(source))]
    assert used == sorted(READ)
    assert len(used) == 14
    text = capsys.readouterr().err
    assert f"{mixed}/train: 14 images in 1 classes; 7 left out" in text
    assert sorted(source.left_out) == LEFT_OUT
    images = [crop.center(source[i], 3) for crop in [Crop("resize", 4, 4)] for i in range(14)]
    assert np.abs(np.stack(images).astype(int) - 7).max() <= 1


def test_prepare_uses_the_same_files(mixed, tmp_path, capsys):
    assert prepare(["folder", f"--dir={mixed}", f"--out={tmp_path / 'out'}", "--num_processes=1"]) == 0
    assert f"{mixed}/validation: 14 images in 1 classes; 7 left out" in capsys.readouterr().err
    records = open_source("folder", "train", data_dir=str(tmp_path / "out"))
    folder = open_source("folder", "train", data_dir=str(mixed))
    names = [{source[i].name.partition("ant/")[2] for i in range(14)} for source in (records, folder)]
    assert names[0] == names[1]


def test_all_empty_classes_are_told_at_once(tmp_path):
    for name in "abcdefgh":
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "x.jp2").write_bytes(encoded(SAMPLE, "JPEG2000"))
    text = message("folder", data_dir=str(tmp_path))
    assert "train/a has no image file" in text
    assert "1 left out that are hidden or no image of a format that is read: x.jp2" in text
    assert "3 more class folders have none" in text


@pytest.mark.parametrize("name", ["folder", "imagenet2012", "imagenet5k"])
def test_class_folders_that_lie_too_high_are_told_of(tmp_path, name):
    for label in ("n01", "n02"):
        (tmp_path / label).mkdir()
    text = message(name, data_dir=str(tmp_path))
    assert (
        f"{tmp_path} has 2 other folder(s): n01, n02. If they are the classes, move them into {tmp_path}/train/" in text
    )
    make_folders(tmp_path, "train", ["n01", "n02"])
    assert f"{tmp_path} has 2 other folder(s)" in message("folder", "validation", data_dir=str(tmp_path))


@pytest.mark.slow
def test_many_files_and_classes_are_listed_in_seconds(tmp_path):
    """2,000 classes, one of 50,000 images."""
    for label in range(2000):
        (tmp_path / "train" / f"n{label:08}").mkdir(parents=True)
        for i in range(1 if label else 50_000):
            os.close(os.open(tmp_path / "train" / f"n{label:08}" / f"{i}.JPEG", os.O_CREAT))
    started_s = time.monotonic()
    assert len(open_source("folder", "train", data_dir=str(tmp_path))) == 51_999
    assert len(folder_images(str(tmp_path / "train"), sorted(os.listdir(tmp_path / "train")))) == 51_999
    assert time.monotonic() - started_s < 10


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, capsys):
    """Without permission, or on a mount that is gone."""
    make_folders(tmp_path, "train", ["ant", "bee"])
    listdir = os.listdir

    def refuses(path):
        if os.path.basename(path) == "bee":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuses)
    problem = f"{tmp_path}/train/bee could not be listed: Permission denied."
    assert problem in message("folder", data_dir=str(tmp_path))
    assert prepare(["folder", f"--dir={tmp_path}", f"--out={tmp_path / 'out'}", "--num_processes=1"]) == 2
    assert problem in capsys.readouterr().err


def test_a_file_that_vanishes_is_named(tmp_path):
    make_folders(tmp_path, "train", ["ant"])
    source = open_source("folder", "train", data_dir=str(tmp_path))
    (tmp_path / "train" / "ant" / "1.JPEG").unlink()
    with pytest.raises(UserError, match=r"train/ant/1.JPEG could not be read: No such file"):
        source[1]


def test_imagenet_in_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "NUM_CLASSES", {"imagenet2012": 2, "imagenet5k": 4})
    make_folders(tmp_path / "1k", "train", ["n02", "n01"])
    assert open_source("imagenet2012", "train", data_dir=str(tmp_path / "1k")).info.class_names == ("n01", "n02")
    # imagenet5k's validation images are of 1000 of the classes, and have the labels of the whole list
    make_folders(tmp_path / "5k", "train", ["n01", "n02", "n03", "n04"])
    make_folders(tmp_path / "5k", "validation", ["n02", "n04"])
    validation = open_source("imagenet5k", "validation", data_dir=str(tmp_path / "5k"))
    assert validation.info.num_classes == 4
    assert [validation[i].label for i in range(4)] == [1, 1, 3, 3]
    (tmp_path / "6k" / "validation").mkdir(parents=True)
    make_folders(tmp_path / "6k", "train", ["n01", "n02", "n03", "n04"])
    assert "6k/validation has no class folder" in message("imagenet5k", "validation", data_dir=str(tmp_path / "6k"))


# ---- absent data


@pytest.mark.parametrize(
    "name", ["imagenet2012", "imagenet5k", "cifar10", "cifar100", "fashion_mnist", "folder", "records"]
)
@pytest.mark.parametrize("given", [True, False])
def test_absent_data_ends_in_one_instruction(name, given, tmp_path):
    text = message(name, data_dir=str(tmp_path / "mine") if given else None)
    assert f"data set '{name}' (train split) was not found" in text
    assert "python main.py --config=configs/NAME.py --config.data.name=synthetic" in text
    assert "--config.data.dir=DIR" in text
    if given or name not in ("imagenet5k", "folder", "records"):
        assert str(tmp_path / ("mine" if given else "tfds_default")) in text
    if name.startswith("imagenet") or name == "folder":
        assert "DIR/train/<class>/*.JPEG" in text
    if name not in ("imagenet5k", "folder", "records"):
        assert f"tfds build {name} --file_format=array_record --data_dir=DIR" in text
    if name == "imagenet2012":
        assert "--manual_dir=TARS" in text
    if name in ("imagenet2012", "imagenet5k", "folder", "records"):
        assert f"python -m resnext_jax.data.prepare {name.replace('records', 'folder')} " in text
        assert f"{tmp_path / 'mine' if given else 'DIR'}/{'train' if name == 'folder' else ''}" in text


# ---- TFDS, in files written here without TensorFlow


def write_tfds(root, name, version, split_images, labels, *, file_format="array_record", **features):
    """A prepared TFDS data set of two shards per split, by default of photographs of two classes."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    directory = root / name / version
    directory.mkdir(parents=True)
    image = tfds.features.Image(shape=features.get("image_shape", (None, None, 3)))
    label = tfds.features.ClassLabel(names=features.get("class_names", ["n01", "n02"]))
    tfds.features.FeaturesDict({"image": image, "label": label}).save_config(directory)
    splits = []
    for split, images in split_images.items():
        lengths = [len(images) // 2, len(images) - len(images) // 2]
        shards, num_bytes = np.split(np.arange(len(images)), [lengths[0]]), 0
        for shard, indices in enumerate(shards):
            file = directory / f"{name}-{split}.array_record-{shard:05d}-of-00002"
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for i in indices:
                example = tf_example_pb2.Example()
                example.features.feature["image"].bytes_list.value.append(images[i])
                example.features.feature["label"].int64_list.value.append(labels[i])
                num_bytes += len(example.SerializeToString())
                writer.write(example.SerializeToString())
            writer.close()
        splits.append({"name": split, "shardLengths": [str(n) for n in lengths], "numBytes": str(num_bytes)})
        splits[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": splits}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


def small_jpegs(count):
    """Grey JPEGs of different heights and brightness."""
    return [encoded(np.full((20 + i, 30, 3), 50 * i, np.uint8), "JPEG") for i in range(count)]


def images_and_labels(source):
    return [(source[i].image, source[i].label) for i in range(len(source))]


def test_cifar10_of_tfds(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    pngs = [encoded(image) for image in pixels]
    names = [f"class {i}" for i in range(10)]
    splits = {"train": pngs, "test": pngs[::-1][:3]}
    shape = (32, 32, 3)
    directory = write_tfds(tmp_path, "cifar10", "3.0.2", splits, [0, 9, 2, 3, 4], class_names=names, image_shape=shape)
    # an older version beside it is not the one to take
    write_tfds(tmp_path, "cifar10", "3.0.1", {"train": pngs[:2]}, [1, 1], class_names=names, image_shape=shape)
    for data_dir in (tmp_path, directory):
        source = open_arrays("cifar10", "train", data_dir=str(data_dir))
        images, labels = source.gather(np.arange(5))
        np.testing.assert_array_equal(images, pixels)
        np.testing.assert_array_equal(labels, [0, 9, 2, 3, 4])
        assert source.info.image_shape == shape
        assert source.info.class_names == tuple(names)
    validation = open_arrays("cifar10", "validation", data_dir=str(tmp_path))
    np.testing.assert_array_equal(validation.gather(np.arange(3))[0], pixels[::-1][:3])
    assert "tensorflow" not in sys.modules
    assert "holds 'cifar10' with the splits train, test" in message("cifar100", data_dir=str(directory))
    (directory / "cifar10-train.array_record-00001-of-00002").unlink()
    assert "1 shard(s) of 'cifar10' (train) are missing" in message("cifar10", data_dir=str(tmp_path))


def test_fashion_mnist_of_tfds_keeps_one_channel(tmp_path):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    pngs = [encoded(image) for image in pixels]
    names = list(sources.FASHION_MNIST_CLASSES)
    write_tfds(tmp_path, "fashion_mnist", "3.0.1", {"test": pngs}, [7, 8], class_names=names, image_shape=(28, 28, 1))
    source = open_arrays("fashion_mnist", "validation", data_dir=str(tmp_path))
    np.testing.assert_array_equal(source.gather(np.arange(2))[0], pixels[..., None])


def test_imagenet_of_tfds_in_the_default_place(tmp_path):
    jpegs, root = small_jpegs(3), tmp_path / "tfds_default"
    directory = write_tfds(root, "imagenet2012", "5.1.0", {"validation": jpegs}, [1, 0, 1])
    source = open_source("imagenet2012", "validation")
    assert source.info.image_shape is None
    assert source.info.class_names == ("n01", "n02")
    assert images_and_labels(source) == list(zip(jpegs, [1, 0, 1], strict=True))
    assert "splits validation; wanted is 'imagenet2012', train" in message("imagenet2012")
    assert source.all_labels().tolist() == [1, 0, 1]
    (tmp_path / "list").write_text("n02\n")
    part = open_source("imagenet2012", "validation", class_list=str(tmp_path / "list"))
    assert part.info.class_names == ("n02",)
    assert images_and_labels(part) == [(jpegs[0], 0), (jpegs[2], 0)]
    assert (directory / "imagenet2012-validation.labels").read_bytes()[32:] == b"\1\0\0\0\0\0\0\0\1\0\0\0"
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    text = message("imagenet2012", "validation")
    assert "is in the format 'tfrecord'" in text
    assert f"tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record" in text


def test_the_command_that_converts_tfrecords_works_from_anywhere(tmp_path, monkeypatch):
    """TFDS 4.9.10 takes a path that is not absolute, converts all shards, and then does not note that it has."""
    images = {"train": [b"a", b"b"]}
    write_tfds(tmp_path / "my data", "imagenet2012", "5.1.0", images, [0, 0], file_format="tfrecord")
    monkeypatch.chdir(tmp_path)
    path = f"'{tmp_path}/my data/imagenet2012/5.1.0'"
    assert f"convert_format --dataset_version_dir={path} " in message("imagenet2012", data_dir="my data")


def test_labels_of_tfds_are_read_out_of_the_images_once(tmp_path, monkeypatch):
    labels = np.random.default_rng(0).integers(0, 3, 1000).tolist()
    images, names = [b"no image: the labels alone are read"] * 1000, ["a", "b", "c"]
    directory = write_tfds(tmp_path, "imagenet2012", "5.1.0", {"train": images}, labels, class_names=names)
    (tmp_path / "list").write_text("c\n")

    def of_class_c():
        source = open_source("imagenet2012", "train", data_dir=str(tmp_path), class_list=str(tmp_path / "list"))
        assert isinstance(source, SubsetSource)
        return source.indices

    expected = np.flatnonzero(np.array(labels) == 2)
    np.testing.assert_array_equal(of_class_c(), expected)
    with monkeypatch.context() as patch:
        patch.setattr(TfdsSource, "_read_labels", lambda _: pytest.fail("the labels are read again"))
        np.testing.assert_array_equal(of_class_c(), expected)
    # another set in the same place: its labels are not those of the file
    assert (directory / "imagenet2012-train.labels").exists()
    for file in directory.iterdir():
        if not file.name.endswith(".labels"):
            file.unlink()
    directory.rename(tmp_path / "aside")
    labels = [1 - label % 2 for label in labels[:999]] + [2]
    write_tfds(tmp_path, "imagenet2012", "5.1.0", {"train": [*images[1:], b"other"]}, labels, class_names=names)
    (tmp_path / "aside" / "imagenet2012-train.labels").rename(directory / "imagenet2012-train.labels")
    np.testing.assert_array_equal(of_class_c(), [999])


def test_a_damaged_record_of_tfds_is_named(tmp_path):
    jpegs = small_jpegs(4)
    directory = write_tfds(tmp_path, "imagenet2012", "5.1.0", {"train": jpegs}, [0, 1, 0, 1])
    shard = directory / "imagenet2012-train.array_record-00001-of-00002"
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    source = open_source("imagenet2012", "train", data_dir=str(tmp_path))
    assert source[1].image == jpegs[1]
    for read in (lambda: source[2], source.all_labels):
        with pytest.raises(UserError, match=r"imagenet2012/5\.1\.0/train\[2\] could not be read"):
            read()
    replacing = open_source("imagenet2012", "train", data_dir=str(tmp_path), on_bad_image="replace")
    crop = Crop("random_sized", 8)
    (batch,) = pipeline.train_batches(replacing, crop, batch_size=4, seed=0, steps=range(1))
    assert sorted(batch.image[:, 0, 0, 0].tolist()) == [0, 50, 150, 150]  # the last stands in for the third


def test_imagenet_v2_of_tfds_is_for_validation(tmp_path):
    """TFDS keeps it in a folder per way of sampling: imagenet_v2/matched-frequency/3.0.0."""
    jpegs = small_jpegs(3)
    directory = write_tfds(tmp_path, "imagenet_v2", "3.0.0", {"test": jpegs}, [1, 0, 1])
    configured = tmp_path / "imagenet_v2" / "matched-frequency" / "3.0.0"
    configured.parent.mkdir()
    directory.rename(configured)
    info = json.loads((configured / "dataset_info.json").read_text())
    (configured / "dataset_info.json").write_text(json.dumps({**info, "configName": "matched-frequency"}))
    source = open_source("imagenet_v2", "validation", data_dir=str(tmp_path))
    assert images_and_labels(source) == list(zip(jpegs, [1, 0, 1], strict=True))
    text = message("imagenet_v2", data_dir=str(tmp_path))
    assert "holds 'imagenet_v2' with the splits test; wanted is 'imagenet_v2', train" in text
    text = message("imagenet_v2", "validation", data_dir=str(tmp_path / "elsewhere"))
    assert "tfds build imagenet_v2/matched-frequency --file_format" in text


@pytest.mark.parametrize("made_last", ["matched-frequency", "topimages"])
def test_imagenet_v2_is_the_matched_one_of_three_ways(tmp_path, made_last):
    """`tfds build imagenet_v2` makes all three; which one a folder lists first is chance."""
    ways = ["matched-frequency", "threshold-0.7", "topimages"]
    ways.append(ways.pop(ways.index(made_last)))
    for way in ways:
        made = write_tfds(tmp_path / "made", "imagenet_v2", "3.0.0", {"test": [way.encode()]}, [1])
        (tmp_path / "imagenet_v2" / way).mkdir(parents=True)
        made.rename(tmp_path / "imagenet_v2" / way / "3.0.0")
    assert open_source("imagenet_v2", "validation", data_dir=str(tmp_path))[0].image == b"matched-frequency"
    of_its_own = str(tmp_path / "imagenet_v2" / "topimages")
    assert open_source("imagenet_v2", "validation", data_dir=of_its_own)[0].image == b"topimages"


def test_no_other_place_takes_that_of_a_directory_that_was_named(tmp_path):
    write_tfds(tmp_path / "tfds_default", "imagenet2012", "5.1.0", {"train": [b"a", b"b"]}, [0, 0])
    assert len(open_source("imagenet2012", "train")) == 2
    text = message("imagenet2012", data_dir=str(tmp_path / "mistyped"))
    assert f"{tmp_path / 'mistyped' / 'imagenet2012'} (TFDS)" in text
    assert "tfds_default" not in text


def test_what_tfds_converted_in_place_is_read(tmp_path):
    """`tfds convert_format` leaves the TFRecords, and 'tfrecord' as the format; it adds shards and another format."""
    images = small_jpegs(3)
    directory = write_tfds(tmp_path, "imagenet2012", "5.1.0", {"train": images}, [1, 0, 1], file_format="tfrecord")
    for shard in directory.glob("*.array_record-*"):
        (directory / shard.name.replace("array_record", "tfrecord")).write_bytes(b"not to be read")
    assert "tfds convert_format" in message("imagenet2012", data_dir=str(tmp_path))
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps({**info, "alternativeFileFormats": ["array_record"]}))
    source = open_source("imagenet2012", "train", data_dir=str(tmp_path))
    assert images_and_labels(source) == list(zip(images, [1, 0, 1], strict=True))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("dataset_info.json", "{", "Failed to load JSON"),
        ("dataset_info.json", "", "Failed to load JSON"),
        ("features.json", None, r"old TFDS version \(<=3\.2\.1\)"),
    ],
)
def test_a_directory_that_tfds_cannot_open(tmp_path, file, content, reason):
    directory = write_tfds(tmp_path, "imagenet2012", "5.1.0", {"train": [b"a", b"b"]}, [0, 0])
    (directory / file).unlink()
    if content is not None:
        (directory / file).write_text(content)
    with pytest.raises(UserError, match=rf"{directory} is not .*{reason}.*Copy it again, or prepare it anew"):
        open_source("imagenet2012", "train", data_dir=str(tmp_path))
