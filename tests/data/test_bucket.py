"""gs:// paths, on a bucket in memory: what epath is asked for, not Google's answers."""

import importlib.machinery
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from etils.epath import backend
from fake_bucket import Bucket

from resnext_jax.data.prepare import imagenet
from resnext_jax.data.prepare.__main__ import main
from resnext_jax.data.prepare.job import Job, prepare
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from tests.data.archives import class_tar_of_tars, jpeg, validation_tar


@pytest.fixture
def bucket(monkeypatch):
    """Files by their path in the bucket."""
    gcsfs = types.ModuleType("gcsfs")
    gcsfs.__spec__ = importlib.machinery.ModuleSpec("gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", gcsfs)
    systems = {"gcs": Bucket(), "file": fsspec.filesystem("file")}
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: systems[name])
    Bucket.store.clear()
    yield systems["gcs"]
    Bucket.store.clear()


def job_of(root: str, pool) -> Job:
    def quiet(*_):
        return None

    classes, train = imagenet.train_2012(f"{root}/train.tar", pool, quiet, partial=False)
    validation, _ = imagenet.validation_2012(f"{root}/val.tar", classes, partial=False)
    return Job("imagenet2012", tuple(classes), {"train": train, "validation": validation}, {}, 4, None)


def test_from_bucket_to_bucket(bucket, tmp_path, monkeypatch):
    lines = {"labels.txt": ["n01", "n02"], "validation_labels.txt": ["n02", "n01", "n02"]}
    monkeypatch.setattr(imagenet, "shipped_lines", lines.__getitem__)
    for name, content in (("train.tar", class_tar_of_tars({"n02": 5, "n01": 4})), ("val.tar", validation_tar(3))):
        (tmp_path / name).write_bytes(content)
        bucket.pipe(f"gs://bucket/tars/{name}", content)
    with ThreadPoolExecutor(2) as pool:
        remote, local = job_of("gs://bucket/tars", pool), job_of(str(tmp_path), pool)
        prepare(remote, "gs://bucket/out", pool, 2, skip_bad=False)
        prepare(local, str(tmp_path / "out"), pool, 2, skip_bad=False)
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert len(names) == 2 + 1 + 2 + 1
        assert sorted(path.rsplit("/", 1)[1] for path in bucket.find("gs://bucket/out")) == names
        for name in names:
            assert bucket.cat(f"gs://bucket/out/{name}") == (tmp_path / "out" / name).read_bytes()
        # a shard that is lost is written again
        bucket.rm(f"gs://bucket/out/{names[1]}")
        with pytest.raises(UserError, match=rf"gs://bucket/out/{names[1]} is missing"):
            open_source("imagenet2012", "train", data_dir="gs://bucket/out")
        prepare(remote, "gs://bucket/out", pool, 2, skip_bad=False)
    train = open_source("imagenet2012", "train", data_dir="gs://bucket/out")
    assert sorted(train.all_labels().tolist()) == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_class_folders_in_a_bucket(bucket):
    for i, name in enumerate(("ant/0.JPEG", "ant/1.JPEG", "bee/0.png")):
        bucket.pipe(f"gs://bucket/images/train/{name}", jpeg(i))
    bucket.pipe("gs://bucket/images/list", b"bee\n")
    source = open_source("folder", "train", data_dir="gs://bucket/images")
    assert source.info.class_names == ("ant", "bee")
    assert [source[i].image for i in range(3)] == [jpeg(0), jpeg(1), jpeg(2)]
    part = open_source("folder", "train", data_dir="gs://bucket/images", class_list="gs://bucket/images/list")
    assert part[0].name == "gs://bucket/images/train/bee/0.png"
    bucket.rm("gs://bucket/images/train/ant/1.JPEG")
    with pytest.raises(UserError, match=r"ant/1\.JPEG could not be read"):
        source[1]


def test_without_gcsfs(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/x is in a bucket, .*pip install gcsfs"):
        open_source("folder", "train", data_dir="gs://bucket/x")
    assert main(["folder", "--dir=gs://bucket/x", "--out=out"]) == 2
    assert "pip install gcsfs" in capsys.readouterr().err
