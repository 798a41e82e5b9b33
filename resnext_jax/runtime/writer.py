"""What a run leaves to read: metrics.jsonl and TensorBoard events, in a directory or in a bucket."""

import json
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from resnext_jax.errors import UserError
from resnext_jax.files import cannot_write, in_bucket, write_whole

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsWriter:
    """Appends rows to `workdir/metrics.jsonl` and the same scalars to `workdir/tensorboard/`.

    In a directory a row is on disk when `write` returns. Objects of a bucket cannot be appended to: there both files
    are written whole, in the background while training goes on, and are there when `flush` returns.

    Args:
      workdir: of the run.
      resume_step: rows of later steps, which a killed run wrote after its last checkpoint, are dropped: those steps
        are made again and none may appear twice.
    """

    def __init__(self, workdir: str, resume_step: int):
        self._path = epath.Path(workdir) / METRICS_FILE
        rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
        self._lines = [json.dumps(row) + "\n" for row in rows]
        write_whole(self._path, "".join(self._lines))
        self._bucket = _Bucket(epath.Path(workdir)) if in_bucket(workdir) else None
        events = self._bucket.events if self._bucket else str(epath.Path(workdir) / TENSORBOARD)
        try:
            self._tensorboard = SummaryWriter(events, purge_step=resume_step + 1)
        except OSError as error:
            raise cannot_write(epath.Path(events), error) from error

    def write(self, step: int, epoch: float, phase: str, scalars: Mapping[str, float]) -> None:
        """One row: `step`, `epoch`, `phase` ("train" or "evaluate") and the scalars.

        Raises:
          UserError: it could not be written.
        """
        row = {"step": step, "epoch": round(epoch, 6), "phase": phase, **scalars}
        line = json.dumps(row) + "\n"
        try:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(f"{phase}/{name}", value, step)
            self._tensorboard.flush()
            if self._bucket is None:
                with self._path.open("a") as file:
                    file.write(line)
                return
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._lines.append(line)
        self._bucket.put("".join(self._lines))

    def flush(self) -> None:
        """Returns when every row is where it will outlive the machine: call it before a checkpoint of its step.

        Raises:
          UserError: a row could not be written.
        """
        if self._bucket is not None:
            self._bucket.wait()
            return
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        self._tensorboard.close()
        if self._bucket is not None:
            self._bucket.close()


class _Bucket:
    """Writes `metrics.jsonl` and the event file to a bucket, one after the other, in one thread.

    Attributes:
      events: the local directory of the event file.
    """

    def __init__(self, workdir: epath.Path):
        self._workdir = workdir
        self._directory = tempfile.TemporaryDirectory(prefix="resnext_jax_events_")
        self.events = self._directory.name
        self._thread = ThreadPoolExecutor(1)
        self._last: Future | None = None
        self._newest = self._written = ""

    def put(self, rows: str) -> None:
        if self._last is not None and self._last.done():
            self._last.result()  # raises what it raised
        self._newest = rows
        self._last = self._thread.submit(self._write)

    def wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        self._thread.shutdown()
        self._directory.cleanup()

    def _write(self) -> None:
        rows = self._newest
        if rows == self._written:
            return  # they went with rows before them
        write_whole(self._workdir / METRICS_FILE, rows)
        for path in Path(self.events).iterdir():
            write_whole(self._workdir / TENSORBOARD / path.name, path.read_bytes())
        self._written = rows


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The rows of `workdir/metrics.jsonl`, in order; none where there is no file. A torn last line is left out.

    Raises:
      UserError: a line before the last is no row.
    """
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("no row of metrics")
        except ValueError as error:
            if number == len(lines):
                break  # a kill in the middle of a write; what follows belongs to steps that are made again
            raise UserError(
                f"line {number} of {path} cannot be read ({error}): {line[:80]!r}. Mend or remove that line, or move "
                "the file away: training goes on without it, the rows so far are then missing."
            ) from error
        rows.append(row)
    return rows
