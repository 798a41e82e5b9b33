"""What a run leaves to read: metrics.jsonl and TensorBoard events."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


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
