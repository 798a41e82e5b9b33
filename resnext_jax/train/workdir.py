"""What a run writes into its workdir: facts, rows, checkpoints, evaluations and curves; and its summary."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from resnext_jax.checkpoint import DIRECTORY, Checkpoints, absolute
from resnext_jax.errors import UserError
from resnext_jax.files import write_whole
from resnext_jax.runtime.curves import CURVES_FILE, draw_curves
from resnext_jax.runtime.lock import Lock
from resnext_jax.runtime.writer import METRICS_FILE, MetricsWriter, read_metrics
from resnext_jax.sharding import Place, from_first_process, raise_if_any
from resnext_jax.train.step import all_finite
from resnext_jax.train.step_sums import not_finite
from resnext_jax.train.task import Task
from resnext_jax.types import Metric, PyTree, TrainState


def prepare_workdir(workdir: str) -> None:
    """Create the directory and test that it can be written, before any time is spent."""
    path = absolute(workdir)
    probe = path / f".probe-{time.time_ns()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except ImportError as error:
        raise UserError(
            f"the workdir {workdir} is in a bucket, which gcsfs reads and writes, and it is not installed: pip install "
            "gcsfs. Or take a directory with --workdir=DIR."
        ) from error
    except Exception as error:  # a client of a bucket has errors of its own: no such bucket, no credentials
        with contextlib.suppress(Exception):  # a full disk takes the empty file
            probe.unlink(missing_ok=True)
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"the workdir {workdir} cannot be written ({words}): it must be a directory that you may write to. Choose "
            "another one with --workdir=DIR."
        ) from error


def check_shared(workdir: str, place: Place) -> None:
    """Test that all processes see the same workdir, because they write a checkpoint together.

    Raises:
      UserError: a process does not see what the primary process wrote.
    """
    if place.process_count == 1:
        return
    token = from_first_process(place, time.time_ns() % 2**31)
    probe = epath.Path(workdir) / f".shared-{token}"
    if place.is_primary:
        probe.write_text("shared")
    raise_if_any(place, None)  # wait until it is written
    seen = probe.exists()
    try:
        raise_if_any(
            place,
            None
            if seen
            else UserError(
                f"the workdir {workdir} of process {place.process_index} is not that of process 0: all processes write "
                "one checkpoint together. Give --workdir=DIR on a file system that all hosts share."
            ),
        )
    finally:
        if place.is_primary:
            probe.unlink()


def write_facts(
    config: ConfigDict,
    workdir: str,
    environment: dict[str, Any],
    params: PyTree,
    name: str,
    log: Callable[[str], None],
) -> None:
    """Write `config.json`, `environment.json` and `parameters.txt`."""
    root = epath.Path(workdir)
    resolved = json.loads(config.to_json_best_effort())
    write_whole(root / "config.json", json.dumps(resolved, indent=2) + "\n")
    write_whole(root / "environment.json", json.dumps(environment, indent=2) + "\n")
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    write_whole(root / "parameters.txt", overview + "\n")
    total = overview.splitlines()[-1].removeprefix("Total: ").replace(" -- ", " parameters, ")
    log(f"{name}: {total}; by layer in {root / 'parameters.txt'}")


class RunWriter:
    """Writes rows, checkpoints and evaluations. Only the primary process writes rows and curves.

    Args:
      description: JSON item of every checkpoint: `config`, `dataset` and `settings`.
      lock: lock of the workdir, which the primary process holds; None on the others.
      start_step: steps before this start. Later rows, which a killed run left, are removed.
      lost_rows: number of earlier rows that are missing in the file of metrics.
    """

    def __init__(
        self,
        workdir: str,
        task: Task,
        checkpoints: Checkpoints,
        description: dict[str, Any],
        lock: Lock | None,
        start_step: int,
        lost_rows: int = 0,
    ):
        self._workdir, self._task, self._checkpoints, self._description = workdir, task, checkpoints, description
        self._lock, self._metrics = lock, MetricsWriter(workdir, start_step) if lock else None
        self._is_finite = jax.jit(all_finite)
        self._num_rows = lost_rows + len(read_metrics(workdir))

    def write_row(self, step: int, phase: str, scalars: dict[str, float]) -> None:
        self._num_rows += 1
        if self._metrics:
            self._metrics.write(step, step / self._task.steps_per_epoch, phase, scalars)

    def save(self, state: TrainState, step: int, progress: dict[str, Any]) -> None:
        """Save a checkpoint in the background.

        Raises:
          UserError: the state is not finite, another run has taken the workdir, or a file cannot be written.
        """
        if not self._is_finite(state):
            raise not_finite("norm of parameters and statistics", step, self._workdir)
        if self._metrics and self._lock:
            self._metrics.flush()
            self._lock.check()
        self._checkpoints.save(state, self._description, progress | {"rows": self._num_rows})

    def evaluate(self, variables: PyTree, step: int) -> None:
        """Evaluate, and remember the score of the checkpoint of this step."""
        row = self._task.evaluate(variables, step, self._workdir)
        self._checkpoints.scores[step] = row[self._task.score.name]
        self._finish_evaluation(step, "evaluate", row)

    def evaluate_finally(self, variables: PyTree, step: int) -> None:
        """Write the row of the task's final phase."""
        row = self._task.final_evaluation(variables, step, self._description, self._workdir)
        assert self._task.final_phase is not None
        self._finish_evaluation(step, self._task.final_phase, row)

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()

    def _finish_evaluation(self, step: int, phase: str, row: dict[str, float]) -> None:
        if self._metrics:
            self.write_row(step, phase, row)
            self._metrics.flush()
            draw_curves(read_metrics(self._workdir), self._workdir, self._task.title, self._task.score)


def summarize(workdir: str, task: Task, log: Callable[[str], None], lost_rows: int = 0) -> None:
    """Print the last and the best evaluation, where the results are, and how many rows are missing."""
    rows = read_metrics(workdir)
    warn_of_lost_rows(workdir, lost_rows, log)
    evaluations = [row for row in rows if row["phase"] == "evaluate"]
    if not evaluations:
        return
    best = max(evaluations, key=lambda row: (row[task.score.name], row["step"]))  # as checkpoints are kept
    shown = [("last", evaluations[-1]), ("best", best)]
    shown += [(row["phase"][:10], row) for row in rows if row["phase"] == task.final_phase]
    root, line = epath.Path(workdir), "-" * (36 + 10 * len(task.metrics))
    log(f"\n{task.title}\n{line}")
    log(f"{'':10}{'step':>10}{'epoch':>9}" + "".join(f"{metric.label:>10}" for metric in task.metrics))
    for name, row in shown:
        log(f"{name:10}{row['step']:>10,}{row['epoch']:>9.2f}{_columns(row, task.metrics)}")
    log(line)
    log(f"checkpoints  {root / DIRECTORY}\ncurves       {root / CURVES_FILE}\n")


def warn_of_lost_rows(workdir: str, lost_rows: int, log: Callable[[str], None]) -> None:
    """Say how many rows of the metrics are missing, if any."""
    if lost_rows:
        log(
            f"warning: {lost_rows:,} rows of {epath.Path(workdir) / METRICS_FILE} are missing: it was truncated or "
            "removed after they were written. The weights are not affected. To have them, put a copy of the file in "
            "its place before the next start; tensorboard/ has the same numbers."
        )


def _columns(row: dict[str, Any], metrics: Sequence[Metric]) -> str:
    return "".join(f"{format(row[metric.name], metric.format):>10}" for metric in metrics)
