"""Metrics of a run on disk: metrics.jsonl and TensorBoard events, in a directory or in a bucket."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.files import cannot_write, in_bucket, write_whole
from resnext_jax.json_files import WHOLE, check_form, parse_json

# tensorboardX imports PyTorch if it is installed, only to accept its tensors. That takes longer than everything else
# at start-up, so the import fails here.
_without_torch = "torch" not in sys.modules
if _without_torch:
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
try:
    from tensorboardX import SummaryWriter
finally:
    if _without_torch:
        del sys.modules["torch"]

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
ROW = {"step": WHOLE, "phase": str, str: float}  # form of a JSON value (`json_files.check_form`)


class MetricsWriter:
    """Appends rows to `workdir/metrics.jsonl` and the same scalars to `workdir/tensorboard/`.

    In a directory a row is on disk when `write` returns. Objects of a bucket cannot be appended to. For a bucket both
    files are written to a temporary directory and copied in the background; the copies are complete when `flush`
    returns.

    Args:
      workdir: directory or gs:// path that gets the files.
      resume_step: step of the checkpoint that training starts from. Rows of later steps are dropped, because those
        steps are repeated and none may appear twice. None keeps all rows.
    """

    def __init__(self, workdir: str, resume_step: int | None = None):
        rows = [row for row in read_metrics(workdir) if resume_step is None or row["step"] <= resume_step]
        purge_step = None if resume_step is None else resume_step + 1
        self._workdir = epath.Path(workdir)
        self._temporary = tempfile.TemporaryDirectory(prefix="resnext_jax_") if in_bucket(workdir) else None
        self._local = epath.Path(self._temporary.name) if self._temporary else self._workdir
        self._thread = ThreadPoolExecutor(1)
        self._copied: Future | None = None
        write_whole(self._local / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        try:
            self._tensorboard = SummaryWriter(str(self._local / TENSORBOARD), purge_step=purge_step)
        except OSError as error:
            raise cannot_write(self._local / TENSORBOARD, error) from error
        if self._temporary:
            self._copy()

    def write(self, step: int, epoch: float, phase: str, scalars: Mapping[str, float]) -> None:
        """Write one row: `step`, `epoch`, `phase` ("train", "evaluate" or the final phase of a task) and the scalars.

        Raises:
          UserError: the row could not be written.
        """
        row = {"step": step, "epoch": round(epoch, 6), "phase": phase, **scalars}
        try:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(f"{phase}/{name}", value, step)
            self._tensorboard.flush()
            with (self._local / METRICS_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(self._workdir / METRICS_FILE, error) from error
        if self._temporary:
            if self._copied is not None and not self._copied.cancel() and self._copied.done():
                self._copied.result()  # raises what it raised
            self._copied = self._thread.submit(self._copy)

    def flush(self) -> None:
        """Return when every row is on a disk or in the bucket. Call this before a checkpoint of the same step.

        Raises:
          UserError: a row could not be written.
        """
        if self._temporary:
            if self._copied is not None:
                self._copied.result()
            return
        with (self._local / METRICS_FILE).open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        self._tensorboard.close()
        self._thread.shutdown()
        if self._temporary:
            self._temporary.cleanup()

    def _copy(self) -> None:
        events = [f"{TENSORBOARD}/{path.name}" for path in (self._local / TENSORBOARD).iterdir()]
        for name in (METRICS_FILE, *events):
            write_whole(self._workdir / name, (self._local / name).read_bytes())


def write_images(workdir: str, step: int, images: Mapping[str, Any]) -> None:
    """Write uint8 images (height, width, 3) by name to the TensorBoard events of a directory."""
    events = SummaryWriter(str(epath.Path(workdir) / TENSORBOARD))
    for name, image in images.items():
        events.add_image(name, image, step, dataformats="HWC")
    events.close()


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """Return the rows of `workdir/metrics.jsonl` in order; none if there is no file. A torn last line is left out.

    Raises:
      UserError: a line before the last one is not a row.
    """
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = None
            row = parse_json(line, dict)
            check_form(row, ROW)
        except ValueError as error:
            if number == len(lines) and row is None:
                break  # a kill in the middle of a write; what follows belongs to steps that are made again
            raise UserError(
                f"line {number} of {path} cannot be read ({error}): {line[:80]!r}. Fix or remove that line, or move "
                "the file away: training goes on without it, the rows so far are then missing."
            ) from error
        rows.append(row)
    return rows
