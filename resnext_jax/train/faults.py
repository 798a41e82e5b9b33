"""Losses that are not finite, or far from those before: what is counted of them, said, and stopped at."""

import statistics
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from resnext_jax import metrics
from resnext_jax.errors import UserError

MEDIAN_ROWS = 10  # of the metrics, before the one at hand
FEWEST_ROWS = 3


class Faults:
    """Looks at the sums of every step, and counts.

    Args:
      workdir: for messages.
      skips: whether steps may be skipped (`on_nonfinite`); their sums are then of no images.
      max_skipped_in_a_row: stops the run.
      spike_nats: a loss is a spike so far above the median of the mean losses of the last rows.
      losses: the mean losses of the rows so far.
      note: takes a line for people.

    Attributes:
      skipped_steps, loss_spikes: since the last row.
      skipped_in_a_row: up to the last step, over rows and restarts.
    """

    def __init__(
        self,
        workdir: str,
        *,
        skips: bool,
        max_skipped_in_a_row: int,
        spike_nats: float,
        losses: Iterable[float],
        note: Callable[[str], object],
    ):
        self._workdir, self._skips, self._max_skipped, self._spike_nats = (
            workdir,
            skips,
            max_skipped_in_a_row,
            spike_nats,
        )
        self._losses, self._note = deque(losses, MEDIAN_ROWS), note
        self.skipped_steps = self.loss_spikes = self.skipped_in_a_row = 0

    def look(self, step: int, sums: metrics.Sums) -> None:
        """At the sums of one step, on the host.

        Raises:
          UserError: the loss is not finite, or too many steps in a row were skipped.
        """
        if not np.isfinite(sums.loss):
            raise not_finite("loss", step, self._workdir)
        if not sums.images:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= self._max_skipped:
                raise not_finite(f"loss or gradient of {self.skipped_in_a_row} steps in a row", step, self._workdir)
            return
        self.skipped_in_a_row = 0
        loss = float(sums.loss) / int(sums.images)
        if len(self._losses) >= FEWEST_ROWS:
            median = statistics.median(self._losses)
            if loss > median + self._spike_nats:
                self.loss_spikes += 1
                self._note(f"loss spike: {loss:.4f} at step {step:,}; the median of the last rows is {median:.4f}")

    def row(self, loss: float | None) -> dict[str, int]:
        """The counts of a row, which begin anew, and takes in its mean loss (None: all its steps were skipped)."""
        if loss is not None:
            self._losses.append(loss)
        counts = {"loss_spikes": self.loss_spikes} | ({"skipped_steps": self.skipped_steps} if self._skips else {})
        self.skipped_steps = self.loss_spikes = 0
        return counts


def not_finite(what: str, step: int, workdir: str) -> UserError:
    """The instruction for a run that has diverged."""
    return UserError(
        f"the {what} is not finite at step {step}: the run has diverged, and stops. What was saved in "
        f"{workdir}/checkpoints before is untouched. Lower learning_rate, lengthen schedule.warmup_epochs or compute "
        "in float32, and allow the change: the same command with --config.learning_rate=VALUE (or with "
        "--config.schedule.warmup_epochs=VALUE, or --config.compute_dtype=float32) and --config.resume_changed=true "
        "goes on from the newest checkpoint; in another --workdir the run starts anew. The same command with "
        "--config.debug_nans=true names the layer in which it begins."
    )
