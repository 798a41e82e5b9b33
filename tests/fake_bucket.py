"""A Google bucket in this process: gs:// paths of etils and of orbax, and the JSON API that TensorStore speaks.

It answers what these ask for, and knows nothing of credentials, retries or latency.
"""

import contextlib
import http.server
import importlib.machinery
import json
import os
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterator
from unittest import mock

import fsspec
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """An object store: no directories, nothing to append to, and no `rename` that is atomic."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    def mv(self, *arguments, **options):
        raise AssertionError("an object is written whole under its own name, not renamed")

    def _open(self, path, mode="rb", **options):
        assert "a" not in mode, "an object cannot be appended to"
        return super()._open(path, mode, **options)

    def glob(self, path, **options):
        return [found.removeprefix("gs://") for found in super().glob(path, **options)]  # as gcsfs


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads, lists, writes and deletes objects; every write is a new generation."""

    protocol_version = "HTTP/1.1"
    bucket = Bucket()
    generations: dict[str, int] = {}  # noqa: RUF012
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def do_GET(self):
        bucket, name, query = self._parts()
        if not name:
            names = sorted(
                path[len(f"gs://{bucket}/") :] for path in self.bucket.store if path.startswith(f"gs://{bucket}/")
            )
            names = [path for path in names if path.startswith(query.get("prefix", ""))]
            names = [path for path in names if query.get("startOffset", "") <= path]
            if "endOffset" in query:
                names = [path for path in names if path < query["endOffset"]]
            return self._answer(200, json.dumps({"items": [self._facts(bucket, path) for path in names]}).encode())
        path = f"gs://{bucket}/{name}"
        if path not in self.bucket.store:
            return self._answer(404, b"{}")
        generation = self._generation(path)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304, b"")
        if query.get("alt") != "media":
            return self._answer(200, json.dumps(self._facts(bucket, name)).encode())
        content, status = self.bucket.store[path].getvalue(), 200
        headers = {"x-goog-generation": str(generation)}
        if self.headers.get("Range"):
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            stop = int(last) + 1 if last else len(content)
            headers["Content-Range"] = f"bytes {first}-{min(stop, len(content)) - 1}/{len(content)}"
            content, status = content[int(first) : stop], 206
        return self._answer(status, content, headers)

    def do_POST(self):
        bucket, _, query = self._parts()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = f"gs://{bucket}/{query['name']}"
        with self.lock:
            wanted = query.get("ifGenerationMatch")
            now = self._generation(path) if path in self.bucket.store else 0
            if wanted is not None and int(wanted) != now:
                return self._answer(412, b"{}")
            self.bucket.pipe_file(path, content)
            self.generations[path] = self.generations.get(path, 0) + 1
        return self._answer(200, json.dumps(self._facts(bucket, query["name"])).encode())

    def do_DELETE(self):
        bucket, name, _ = self._parts()
        with self.lock:
            found = self.bucket.store.pop(f"gs://{bucket}/{name}", None)
        return self._answer(204 if found else 404, b"")

    def _parts(self) -> tuple[str, str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        return bucket, urllib.parse.unquote(name.removeprefix("/")), dict(urllib.parse.parse_qsl(url.query))

    def _generation(self, path: str) -> int:
        return self.generations.setdefault(path, 1)

    def _facts(self, bucket: str, name: str) -> dict[str, str]:
        path = f"gs://{bucket}/{name}"
        size = len(self.bucket.store[path].getvalue())
        return {"name": name, "bucket": bucket, "size": str(size), "generation": str(self._generation(path))}

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def served() -> Iterator[Bucket]:
    """gs:// is this bucket, in this process, until the end."""
    gcsfs = types.ModuleType("gcsfs")
    gcsfs.__spec__ = importlib.machinery.ModuleSpec("gcsfs", None)
    systems = {"gcs": Handler.bucket, "file": fsspec.filesystem("file")}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_port}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    }
    with (
        mock.patch.dict(sys.modules, gcsfs=gcsfs),
        mock.patch.dict(os.environ, environment),
        mock.patch.object(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: systems[name]),
        mock.patch("orbax.checkpoint._src.path.gcs_utils.get_bucket", return_value=object()),
    ):
        yield Handler.bucket
    server.shutdown()
    server.server_close()
