"""The steps since the last row of the metrics: their sums and their times."""

import time
from collections.abc import Mapping
from typing import Any

import jax

from resnext_jax import metrics
from resnext_jax.train.faults import Faults

# The host prepares this many steps ahead of the device: enough to overlap, and batches are memory.
STEPS_IN_FLIGHT = 2
FAULTS = ("skipped_steps", "loss_spikes", "skipped_in_a_row")


class Window:
    """Adds the sums of steps on the host, in float64 and in their order, so that no stop between them can be seen.

    Args:
      batch_size: images of a step.
      faults: sees the sums of every step.
      carried: what `carried()` gave when the run was left between two rows.
    """

    def __init__(self, batch_size: int, faults: Faults, carried: Mapping[str, Any] | None = None):
        self._batch_size, self._faults = batch_size, faults
        self._reset()
        if carried:
            fields = {name: type(zero)(carried[name]) for name, zero in vars(self._total).items()}
            self._total = metrics.Sums(**fields)
            for name in FAULTS:
                setattr(faults, name, carried[name])

    def add(self, step: int, sums: metrics.Sums, waited_s: float) -> None:
        """One more step, whose sums are still on the device; waits for the one before the one before it."""
        self._pending.append((step, sums))
        self._num_steps += 1
        self._waited_s += waited_s
        if len(self._pending) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - STEPS_IN_FLIGHT][1])

    def drain(self) -> None:
        """Waits for the steps and takes their sums to the host.

        Raises:
          UserError: what a step gave was not finite, and may not be skipped; the first such step is named.
        """
        sums_of_steps = jax.device_get([sums for _, sums in self._pending])
        for (step, _), sums in zip(self._pending, sums_of_steps, strict=True):
            self._faults.look(step, sums)
            self._total = metrics.add(self._total, sums)
        self._pending = []

    def row(self) -> dict[str, float]:
        """Means over the steps (none, where all were skipped), faults, speed and input wait; begins anew."""
        self.drain()
        elapsed_s = time.monotonic() - self._start_s
        images = int(self._total.images)
        means = metrics.means(self._total) if images else {}
        scalars = means | {"images": images} | self._faults.row(means.get("loss"))
        scalars |= {
            "images_per_s": self._num_steps * self._batch_size / elapsed_s,
            "input_wait": self._waited_s / elapsed_s,
        }
        self._reset()
        return scalars

    def carried(self) -> dict[str, float]:
        """The sums of the drained steps, as plain numbers that JSON keeps to the bit."""
        sums = {name: value.item() for name, value in vars(self._total).items()}
        return sums | {name: getattr(self._faults, name) for name in FAULTS}

    def _reset(self) -> None:
        self._total, self._pending = metrics.zeros(), []
        self._num_steps, self._waited_s = 0, 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """What lies between two rows, such as an evaluation, is no time of theirs."""
        self._start_s = time.monotonic()
