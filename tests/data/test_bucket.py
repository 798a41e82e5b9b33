"""gs:// paths, on a bucket in memory: what epath and ArrayRecord ask for, not Google's answers."""

import gzip
import http.server
import importlib.machinery
import re
import sys
import threading
import types
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import numpy as np
import pytest
from etils.epath import backend
from fake_bucket import Bucket

from resnext_jax.data.prepare import imagenet
from resnext_jax.data.prepare.__main__ import main
from resnext_jax.data.prepare.job import Job, prepare
from resnext_jax.data.readers import GatherSource
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from tests.data.archives import class_tar_of_tars, jpeg, validation_tar, write_folders
from tests.data.test_sources import idx, write_tfds


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


@pytest.fixture
def google(bucket, monkeypatch):
    """The same files as Google's server of storage gives them, which ArrayRecord asks without epath; its requests."""
    requests = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            url, ranged = urllib.parse.urlsplit(self.path), self.headers["Range"]
            requests.append((url.path, ranged))
            name = re.fullmatch("/storage/v1/b/bucket/o/(.*)", url.path)
            path = f"gs://bucket/{urllib.parse.unquote(name[1])}" if name else ""
            if not bucket.exists(path):
                self.send_error(404)
                return
            content = bucket.cat(path)
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", ranged or "bytes=0-").groups()
            start = int(first) if first else max(0, len(content) - int(last))
            end = int(last) + 1 if first and last else len(content)
            self.send_response(206 if ranged else 200)
            self.send_header("Content-Range", f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content[start:end])))
            self.end_headers()
            self.wfile.write(content[start:end])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield requests
        server.shutdown()
        thread.join()


def job_of(root: str, pool) -> Job:
    classes, train = imagenet.train_2012(f"{root}/train.tar", pool, partial=False)
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


@pytest.mark.parametrize("file", ["unfinished.json", "train-00000-of-00001.array_record", "manifest.json"])
def test_a_bucket_that_refuses_is_named(bucket, tmp_path, capsys, monkeypatch, file):
    class HttpError(Exception):
        """As gcsfs's own, which is no OSError."""

    whole = Bucket._open

    def refuses(self, path, mode="rb", **options):
        if path.endswith(file) and "w" in mode:
            raise HttpError("Forbidden, 403")
        return whole(self, path, mode, **options)

    monkeypatch.setattr(Bucket, "_open", refuses)
    write_folders(tmp_path, "train", {"ant": 1})
    assert main(["folder", f"--dir={tmp_path}", "--out=gs://bucket/out", "--num_processes=1"]) == 2
    assert f"gs://bucket/out/{file} could not be written: Forbidden, 403." in capsys.readouterr().err
    assert not bucket.exists("gs://bucket/out/manifest.json")


def test_records_of_a_bucket_are_read_image_by_image(bucket, google, tmp_path):
    write_folders(tmp_path, "train", {"ant": 5, "bee": 4})
    outs = ("gs://bucket/out", str(tmp_path / "out"))
    for out in outs:
        assert main(["folder", f"--dir={tmp_path}", f"--out={out}", "--images_per_shard=4", "--num_processes=1"]) == 0
    remote, local = (open_source("folder", "train", data_dir=out) for out in outs)
    assert not google  # nothing is read before it is asked for
    assert [remote[i] for i in range(9)] == [local[i] for i in range(9)]
    assert {path for path, _ in google} == {
        f"/storage/v1/b/bucket/o/out%2Ftrain-0000{shard}-of-00002.array_record" for shard in (0, 1)
    }


def test_tfds_in_a_bucket(bucket, google, tmp_path):
    images = [jpeg(number) for number in range(5)]
    directory = write_tfds(tmp_path, "imagenet2012", "5.1.0", {"train": images}, [0, 1, 1, 0, 1])
    for file in directory.iterdir():
        bucket.pipe(f"gs://bucket/tfds/imagenet2012/5.1.0/{file.name}", file.read_bytes())
    (tmp_path / "list").write_text("n02\n")
    arguments: dict[str, Any] = {"data_dir": "gs://bucket/tfds", "class_list": str(tmp_path / "list")}
    source = open_source("imagenet2012", "train", **arguments)
    assert [(source[i].image, source[i].label) for i in range(3)] == [(images[i], 0) for i in (1, 2, 4)]
    google.clear()
    assert len(open_source("imagenet2012", "train", **arguments)) == 3
    assert not google  # the labels now lie in a file in the bucket
    assert bucket.exists("gs://bucket/tfds/imagenet2012/5.1.0/imagenet2012-train.labels")


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


def test_idx_files_in_a_bucket(bucket):
    images, labels = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28), [7, 0, 9]
    bucket.pipe("gs://bucket/fashion/train-images-idx3-ubyte.gz", gzip.compress(idx(images)))
    with pytest.raises(UserError, match=r"gs://bucket/fashion has gs://\S+images-idx3-ubyte.gz but not its other half"):
        open_source("fashion_mnist", "train", data_dir="gs://bucket/fashion")
    bucket.pipe("gs://bucket/fashion/train-labels-idx1-ubyte", idx(np.array(labels, np.uint8)))
    source = open_source("fashion_mnist", "train", data_dir="gs://bucket/fashion")
    assert isinstance(source, GatherSource)
    found, of_found = source.gather(np.arange(3))
    np.testing.assert_array_equal(found[..., 0], images)
    assert of_found.tolist() == labels
    bucket.pipe("gs://bucket/fashion/train-labels-idx1-ubyte", b"")
    with pytest.raises(UserError, match="gs://bucket/fashion/train-labels-idx1-ubyte is not an idx file"):
        open_source("fashion_mnist", "train", data_dir="gs://bucket/fashion")


def test_without_gcsfs(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/x is in a bucket, .*pip install gcsfs"):
        open_source("folder", "train", data_dir="gs://bucket/x")
    assert main(["folder", "--dir=gs://bucket/x", "--out=out"]) == 2
    assert "pip install gcsfs" in capsys.readouterr().err
