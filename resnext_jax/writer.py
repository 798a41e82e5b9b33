"""What a run leaves to read: metrics.jsonl, TensorBoard events, and one live progress line per phase."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from etils import epath
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"
PLAIN_LINE_EVERY_S = 10.0


class MetricsWriter:
    """Appends rows to `workdir/metrics.jsonl` and the same scalars to `workdir/tensorboard/`.

    Args:
      workdir: of the run.
      resume_step: rows of later steps, which a killed run wrote after its last checkpoint, are dropped: those steps
        are made again and none may appear twice.
    """

    def __init__(self, workdir: str, resume_step: int):
        self._path = epath.Path(workdir) / METRICS_FILE
        rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.replace(self._path)
        self._tensorboard = SummaryWriter(str(epath.Path(workdir) / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, epoch: float, phase: str, scalars: Mapping[str, float]) -> None:
        """One row: `step`, `epoch`, `phase` ("train" or "evaluate") and the scalars, on disk on return."""
        row = {"step": step, "epoch": round(epoch, 6), "phase": phase, **scalars}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in scalars.items():
            self._tensorboard.add_scalar(f"{phase}/{name}", value, step)
        self._tensorboard.flush()

    def close(self) -> None:
        self._tensorboard.close()


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The rows of `workdir/metrics.jsonl`, in order; none where there is no file. A torn last line is left out."""
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # A kill in the middle of a write; what follows belongs to steps that are made again.
    return rows


class Progress:
    """One line that is rewritten on a terminal, and otherwise a plain line every ten seconds.

    Args:
      label: of the phase.
      total: steps or images until done.
      unit: of `total`.
      start: those already done.
      stream: where to; the standard error, so that the standard output stays free for results.
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0, stream: TextIO = sys.stderr):
        self._label, self._total, self._unit, self._start, self._stream = label, total, unit, start, stream
        self._live = stream.isatty()
        self._started_s = self._printed_s = time.monotonic()
        self._width = 0

    def update(self, done: int, text: str) -> None:
        """Shows `done` of the total, `text` and the time that is left, going by the time since the start."""
        now_s = time.monotonic()
        if not self._live and now_s - self._printed_s < PLAIN_LINE_EVERY_S and done < self._total:
            return
        self._printed_s = now_s
        rate = (done - self._start) / max(now_s - self._started_s, 1e-9)
        eta = duration((self._total - done) / rate) if rate > 0 else "?"
        rest = f"ETA {eta}" if done < self._total else f"in {duration(now_s - self._started_s)}"
        line = f"{self._label}  {self._unit} {done:,}/{self._total:,}  {rest}  {text}"
        if self._live:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Ends the live line."""
        if self._live and self._width:
            self._stream.write("\n")
            self._width = 0


class Silent:
    """The progress of a process that does not speak."""

    def update(self, done: int, text: str) -> None: ...

    def close(self) -> None: ...


def duration(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour; with days in front where there are any.

    >>> duration(65), duration(3725), duration(90061)
    ('1:05', '1:02:05', '1 d 1:01:01')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    return (f"{days} d " if days else "") + f"{hour}:{minute:02d}:{second:02d}"
