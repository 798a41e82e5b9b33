"""What watches the steps of a run: progress line, sums, speed, loss spikes, profiles and heartbeats."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.progress import Progress, Silent
from resnext_jax.runtime.chips import PEAK_BF16_FLOPS_PER_S
from resnext_jax.runtime.heartbeats import Heartbeats
from resnext_jax.runtime.profiling import Profiler
from resnext_jax.sharding import Place
from resnext_jax.train.resume import StartPoint
from resnext_jax.train.step_sums import DivergenceMonitor, StepAccumulator, Throughput
from resnext_jax.train.task import Task
from resnext_jax.types import Metric, PyTree


class Monitor:
    """Watches the steps of a run; the loop calls `next_batch` before a step and `after_step` after it.

    Args:
      accumulator: sums and times since the last row.
      profiler: traces steps that the config names, or on request.
      heartbeats: writes the newest step to the workdir; None on other processes than the primary one.
    """

    def __init__(
        self,
        accumulator: StepAccumulator,
        progress: Progress | Silent,
        profiler: Profiler,
        heartbeats: Heartbeats | None,
        task: Task,
    ):
        self._accumulator, self._progress, self._profiler = accumulator, progress, profiler
        self._heartbeats, self._task = heartbeats, task
        self._waited_s, self._line = 0.0, ""

    def next_batch(self, batches: Iterator[PyTree], step: int) -> PyTree:
        """Return the batch of `step`, and start or end a profile before it."""
        start_s = time.monotonic()
        batch = next(batches)
        self._waited_s = time.monotonic() - start_s
        if self._profiler.switches(step):
            with self.paused():
                self._profiler.switch()
        return batch

    def after_step(self, step: int, sums: Any) -> None:
        """Take in the sums of a step, which may still be on the device."""
        self._accumulator.add(step, sums, self._waited_s)
        if self._heartbeats:
            self._heartbeats.beat(step)
        if step < self._task.total_steps:  # the last line shows the row of the last step
            self._show(step)

    def row(self, step: int) -> dict[str, float]:
        """Return the row of the steps since the last one.

        Raises:
          UserError: a step was not finite.
        """
        row = self._accumulator.row()
        self._line = train_line(row, self._task.train_metrics)
        self._show(step)
        self._profiler.look(step)
        return row

    def carried(self) -> dict[str, float]:
        """Return the sums of an unfinished row, to be saved with a checkpoint."""
        self._accumulator.drain()
        return self._accumulator.carried()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for the device, interrupt the progress line, and leave the time inside out of the speed."""
        self._accumulator.wait()
        self._progress.close()
        start_s = time.monotonic()
        yield
        self._accumulator.leave_out(time.monotonic() - start_s)

    def _show(self, step: int) -> None:
        self._progress.update(step, f"epoch {step / self._task.steps_per_epoch:.2f}  {self._line}")

    def close(self) -> None:
        self._profiler.close()
        self._progress.close()


def train_line(row: dict[str, float], metrics: Sequence[Metric]) -> str:
    """Return the end of the progress line of training."""
    learned = "  ".join(metric.show(row[metric.name]) for metric in metrics) if row["images"] else "every step skipped"
    return f"{row['images_per_s']:,.0f} images/s  {learned}  input wait {row['input_wait']:.0%}"


def open_monitor(
    task: Task, config: ConfigDict, start: StartPoint, workdir: str, place: Place, log: Callable[[str], None]
) -> Monitor:
    """Return the monitor of a run that goes on at `start`."""
    divergence = DivergenceMonitor(
        workdir,
        skips=config.on_nonfinite == "skip",
        max_skipped_in_a_row=config.max_skipped_in_a_row,
        spike_nats=config.watch.spike_nats,
        losses=start.losses,
        log=log,
    )
    return Monitor(
        StepAccumulator(throughput_of(task, place), divergence, start.progress.get("window")),
        Progress("train", task.total_steps, "step", start.step) if place.is_primary else Silent(),
        Profiler(workdir, config.watch.profile_steps, place.is_primary, log),
        Heartbeats(workdir) if place.is_primary else None,
        task,
    )


def throughput_of(task: Task, place: Place) -> Throughput:
    """Return what turns times of steps into speeds on these devices."""
    peak = PEAK_BF16_FLOPS_PER_S.get(place.chip)
    return Throughput(task.batch_size, place.mesh.size, task.flops_per_image(), peak)
