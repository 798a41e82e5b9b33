"""Files that would run code when unpickled are refused wherever a file is read, and nothing is run.

Weights of other projects (`.pth`, `.t7`) are given here in the place of every other file that is read; their own
readers are tested in tests/convert.
"""

import functools
import io
import json
import os
import pickle
import shutil
import zipfile
import zlib

import jax
import numpy as np
import pytest
import tiny

import resnext_jax
from resnext_jax.checkpoint import locate
from resnext_jax.data.decode import read_image
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from resnext_jax.evaluate.loaded import load_checkpoint
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.sharding import Place, make_mesh

PLACE = Place(make_mesh(jax.devices()[:1]), "cpu")
CHECKED = {"prepare": lambda config: None, "raw": False}


class Hostile:
    """Unpickled, it makes a directory."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def hostile_pickle(marker) -> bytes:
    return pickle.dumps(Hostile(marker))


def hostile_npz(marker) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=np.array([Hostile(marker)], object))
    return stream.getvalue()


def hostile_pth(marker) -> bytes:
    """The container of torch.save: a zip with a pickle inside."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", hostile_pickle(marker))
        file.writestr("archive/version", "3\n")
    return stream.getvalue()


def hostile_t7(marker) -> bytes:
    """A Torch7 object that is a function with byte code: type 8."""
    return np.array([8, 1, 4], "<i4").tobytes() + f"os.execute('mkdir {marker}')".encode()


FILES = {"npz": hostile_npz, "pth": hostile_pth, "t7": hostile_t7, "pkl": hostile_pickle}


def test_they_are_hostile(tmp_path):
    pickle.loads(hostile_pickle(tmp_path / "a"))
    np.load(io.BytesIO(hostile_npz(tmp_path / "b")), allow_pickle=True)["images"]
    with zipfile.ZipFile(io.BytesIO(hostile_pth(tmp_path / "c"))) as file:
        pickle.loads(file.read("archive/data.pkl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", FILES)
def test_nothing_is_run(kind, tmp_path):
    marker = tmp_path / "marker"
    content = FILES[kind](marker)
    (tmp_path / f"weights.{kind}").write_bytes(content)
    path = str(tmp_path / f"weights.{kind}")
    with pytest.raises(UserError):
        read_image(path)
    with pytest.raises(UserError):
        locate(path)
    with pytest.raises(UserError):
        open_source("folder", "train", data_dir=path)
    with pytest.raises(UserError):
        open_source("builtin", "train", class_list=path)

    data = tmp_path / "data"
    for split in ("train", "validation"):
        (data / split / "ant").mkdir(parents=True)
        (data / split / "ant" / "0.JPEG").write_bytes(content)
    with pytest.raises(UserError, match="ant"):
        read_image(str(data / "train" / "ant" / "0.JPEG"))
    records = tmp_path / "records"
    records.mkdir()
    (records / "manifest.json").write_bytes(content)
    with pytest.raises(UserError):
        open_source("records", "train", data_dir=str(records))
    (tmp_path / "metrics.jsonl").write_bytes(content + b"\n" + content + b"\n{}\n")
    with pytest.raises(UserError, match=r"line 1 of .*metrics\.jsonl cannot be read"):
        read_metrics(str(tmp_path))
    assert not marker.exists()


def test_no_source_unpickles():
    """Every call that could: numpy's with allow_pickle, pickle itself, torch.load, and what hides behind them."""
    import pathlib

    root = pathlib.Path(__file__).resolve().parents[1]
    words = ("pickle", "np.load(", "numpy.load(", "torch.load(", "joblib", "shelve", "marshal", "yaml.load(", "dill")
    safe = 'torch.load(path, map_location="cpu", weights_only=True)'  # builds tensors only

    def text(path):
        found = path.read_text()
        if path == root / "resnext_jax" / "convert" / "files.py":
            assert found.count(safe) == 1
            found = found.replace(safe, "")
        return found

    found = [
        f"{path.relative_to(root)}: {word}"
        for folder in ("resnext_jax", "configs", "experiments")
        for path in (root / folder).rglob("*.py")
        for word in words
        if word in text(path)
    ]
    assert found == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run with a checkpoint of step 0."""
    workdir = tmp_path_factory.mktemp("run")
    tiny.save_fresh(workdir)
    return workdir


def rewrite(workdir, change):
    """Changes the JSON item of the checkpoint, and the checksum so that it fits."""
    checkpoint = workdir / "checkpoints" / "0"
    path, sums = checkpoint / "config" / "metadata", json.loads((checkpoint / "checksums.json").read_text())
    content = change(path.read_text()).encode()
    path.write_bytes(content)
    sums["config/metadata"] = [len(content), zlib.crc32(content)]
    (checkpoint / "checksums.json").write_text(json.dumps(sums))


def with_value(name, value):
    def change(text):
        description = json.loads(text)
        *parents, leaf = name.split(".")
        functools.reduce(dict.__getitem__, parents, description)[leaf] = value
        return json.dumps(description)

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-1] + ', "x": ' + 50_000 * "[", "lie within one another"),
        (lambda text: "[1]", "not an object"),
        (lambda text: text[:-1] + ', "config": {}}', "'config' stands twice"),
        (with_value("config.data.image_size_px", 2**62), "image_size_px is 4611686018427387904"),
        (with_value("config.data.mean", "gray"), "mean is 'gray', not a list"),
        (with_value("config.data.std", [0.0]), "data.std must be positive"),
        (with_value("config.model.name", 3), "name is 3"),
        (with_value("config.model.depth", 2**62), "depth is 4611686018427387904"),
        (with_value("config.model.strange", 3), "model.strange is no field"),
        (with_value("config.bn_group_images", "32"), "bn_group_images is '32'"),
        (with_value("dataset.class_names", ["a", 3]), r"class_names\[1\] is 3, not text"),
        (with_value("dataset.class_names", ["a"] * 2**16), r"classifier/bias: this model wants float32\(65536,\)"),
    ],
)
def test_a_checkpoint_with_a_hostile_description(run, tmp_path, change, problem):
    workdir = shutil.copytree(run, tmp_path / "run")
    rewrite(workdir, change)
    for read in (resnext_jax.load, functools.partial(load_checkpoint, config=None, place=PLACE, **CHECKED)):
        if ("positive" in problem or "classifier" in problem) and read is not resnext_jax.load:
            continue  # an evaluation compares with its data and overrides before
        with pytest.raises(UserError, match=problem):
            read(str(workdir))


@pytest.mark.parametrize("name", ["/dev/zero", "config/../../../x", "variables//x"])
def test_checksums_of_files_elsewhere_are_refused(run, tmp_path, name):
    workdir = shutil.copytree(run, tmp_path / "run")
    (workdir / "checkpoints" / "0" / "checksums.json").write_text(json.dumps({name: [0, 0]}))
    with pytest.raises(UserError, match=r"checksums\.json cannot be read: the entry"):
        resnext_jax.load(str(workdir))
