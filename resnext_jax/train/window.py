"""The steps since the last row of the metrics: their sums and their times."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from resnext_jax import metrics
from resnext_jax.sharding import Place
from resnext_jax.train.assemble import Run
from resnext_jax.train.faults import Faults
from resnext_jax.train.speed import Machine, machine

# The host prepares this many steps ahead of the device: enough to overlap, and batches are memory.
STEPS_IN_FLIGHT = 2
FAULTS = ("skipped_steps", "loss_spikes", "skipped_in_a_row")


class Window:
    """Adds the sums of steps on the host, in float64 and in their order, so that no stop between them can be seen.

    Args:
      machine: makes the timed fields of a row.
      faults: sees the sums of every step.
      carried: what `carried()` gave when the run was left between two rows.
    """

    def __init__(self, machine: Machine, faults: Faults, carried: Mapping[str, Any] | None = None):
        self._machine, self._faults = machine, faults
        self._reset()
        if carried:
            fields = {name: type(zero)(carried[name]) for name, zero in vars(self._total).items()}
            self._total = metrics.Sums(**fields)
            for name in FAULTS:
                setattr(faults, name, carried[name])

    def add(self, step: int, sums: metrics.Sums, waited_s: float) -> None:
        """One more step, whose sums are still on the device; waits for the one before the one before it."""
        self._pending.append((step, sums))
        self._waits_s.append(waited_s)
        self._wait_until(STEPS_IN_FLIGHT)

    def wait(self) -> None:
        """Returns when all steps are made."""
        self._wait_until(0)

    def drain(self) -> None:
        """Waits for the steps and takes their sums to the host.

        Raises:
          UserError: what a step gave was not finite, and may not be skipped; the first such step is named.
        """
        self.wait()
        sums_of_steps = jax.device_get([sums for _, sums in self._pending])
        for (step, _), sums in zip(self._pending, sums_of_steps, strict=True):
            self._faults.look(step, sums)
            self._total = metrics.add(self._total, sums)
        self._pending, self._num_ready = [], 0

    def row(self) -> dict[str, float]:
        """Means over the steps (none, where all were skipped), faults and speed; begins anew."""
        self.drain()
        images = int(self._total.images)
        means = metrics.means(self._total) if images else {}
        scalars = means | {"images": images} | self._faults.row(means.get("loss"))
        scalars |= self._machine.row(self._steps_s, self._waits_s)
        self._reset()
        return scalars

    def carried(self) -> dict[str, float]:
        """The sums of the drained steps, as plain numbers that JSON keeps to the bit."""
        sums = {name: value.item() for name, value in vars(self._total).items()}
        return sums | {name: getattr(self._faults, name) for name in FAULTS}

    def restart_clock(self) -> None:
        """What lies between two rows, such as an evaluation, is no time of theirs."""
        self._last_s = time.monotonic()

    def _wait_until(self, in_flight: int) -> None:
        """The time of a step is noted when it is ready; dispatch says nothing of it."""
        while len(self._pending) - self._num_ready > in_flight:
            jax.block_until_ready(self._pending[self._num_ready][1])
            self._num_ready += 1
            now_s = time.monotonic()
            self._steps_s.append(now_s - self._last_s)
            self._last_s = now_s

    def _reset(self) -> None:
        self._total, self._pending, self._num_ready = metrics.zeros(), [], 0
        self._steps_s, self._waits_s = [], []
        self.restart_clock()


def open_window(
    config: ConfigDict,
    run: Run,
    workdir: str,
    place: Place,
    rows: Sequence[Mapping[str, Any]],
    step: int,
    left: Mapping[str, Any],
    note: Callable[[str], object],
) -> Window:
    """The window of a run that starts after `step`.

    Args:
      config, run, workdir, place: of the run.
      rows: of its metrics so far; those of later steps do not count.
      step: the steps made.
      left: what the checkpoint of that step says of the progress; nothing, if there is none.
      note: takes a line for people.
    """
    faults = Faults(
        workdir,
        skips=config.on_nonfinite == "skip",
        max_skipped_in_a_row=config.max_skipped_in_a_row,
        spike_nats=config.watch.spike_nats,
        losses=[row["loss"] for row in rows if row["phase"] == "train" and row["step"] <= step and "loss" in row],
        note=note,
    )
    return Window(machine(run.model, run.image_shape, config.batch_size, place), faults, left.get("window"))
