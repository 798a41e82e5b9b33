"""The sums and times of the steps since the last row of the metrics, and what looks wrong in them."""

import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resnext_jax.errors import UserError

# The host prepares this many steps ahead of the device: enough to overlap, and batches take memory.
STEPS_IN_FLIGHT = 2
MEDIAN_ROWS = 10  # the rows whose median loss a step is compared with
FEWEST_ROWS = 3
COUNTS = ("skipped_steps", "loss_spikes", "skipped_in_a_row")


class DivergenceMonitor:
    """Checks the sums of every step: counts skipped steps and loss spikes, and stops a run that has diverged.

    Args:
      skips: whether steps may be skipped (`on_nonfinite`); they count no images.
      max_skipped_in_a_row: number of skipped steps in a row that stops the run.
      spike_nats: a loss that is this far above the median of the last rows is a spike.
      losses: mean losses of the rows so far.

    Attributes:
      skipped_steps, loss_spikes: counts since the last row.
      skipped_in_a_row: count up to the last step, across rows and restarts.
    """

    def __init__(
        self,
        workdir: str,
        *,
        skips: bool,
        max_skipped_in_a_row: int,
        spike_nats: float,
        losses: Iterable[float],
        log: Callable[[str], object],
    ):
        self._workdir, self._skips, self._log = workdir, skips, log
        self._max_skipped, self._spike_nats = max_skipped_in_a_row, spike_nats
        self._losses = deque(losses, MEDIAN_ROWS)
        self.skipped_steps = self.loss_spikes = self.skipped_in_a_row = 0

    def check(self, step: int, sums: Any) -> None:
        """Check the sums of one step, on the host.

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
                self._log(f"loss spike: {loss:.4f} at step {step:,}; the median of the last rows is {median:.4f}")

    def row(self, loss: float | None) -> dict[str, int]:
        """Return the counts of a row and reset them. `loss` is its mean loss, None if all its steps were skipped."""
        if loss is not None:
            self._losses.append(loss)
        counts = {"loss_spikes": self.loss_spikes} | ({"skipped_steps": self.skipped_steps} if self._skips else {})
        self.skipped_steps = self.loss_spikes = 0
        return counts


def not_finite(what: str, step: int, workdir: str) -> UserError:
    """Return the error for a run that has diverged."""
    return UserError(
        f"the {what} is not finite at step {step}: the run has diverged, and stops. What was saved in "
        f"{workdir}/checkpoints before is untouched. Lower learning_rate, lengthen schedule.warmup_epochs or compute "
        "in float32, and allow the change: the same command with --config.learning_rate=VALUE (or with "
        "--config.schedule.warmup_epochs=VALUE, or --config.compute_dtype=float32) and --config.resume_changed=true "
        "goes on from the newest checkpoint; in another --workdir the run starts anew. The same command with "
        "--config.debug_nans=true names the layer in which it begins."
    )


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Turns the times of steps into the timed fields of a row.

    Attributes:
      num_devices: devices that share them.
      flops_per_image: floating-point operations of training on one image, as the mathematics of the model has them: a
        multiply-add is two. What an algorithm multiplies besides does not count.
      peak_flops_per_s: bfloat16 peak of one device; None if it is not known.
    """

    batch_size: int
    num_devices: int
    flops_per_image: float
    peak_flops_per_s: float | None

    def row(self, steps_s: Sequence[float], waits_s: Sequence[float]) -> dict[str, float]:
        """Return the timed fields of a row (`metrics.TIMED_FIELDS`).

        Args:
          steps_s: time from the end of one step on the device to the end of the next, without pauses.
          waits_s: time that the host waited for the batch of each step.
        """
        elapsed_s = sum(steps_s)
        images_per_s = len(steps_s) * self.batch_size / elapsed_s
        p50, p95 = np.percentile(steps_s, (50, 95))
        fields = {
            "images_per_s": images_per_s,
            "images_per_s_per_chip": images_per_s / self.num_devices,
            "step_p50_s": float(p50),
            "step_p95_s": float(p95),
            "step_max_s": max(steps_s),
            "input_wait": sum(waits_s) / elapsed_s,
            "input_wait_p95_s": float(np.percentile(waits_s, 95)),
        }
        if self.peak_flops_per_s is not None:
            fields["mfu"] = images_per_s * self.flops_per_image / (self.num_devices * self.peak_flops_per_s)
        # Not every platform reports memory (a CPU does not).
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
        return fields | ({"device_memory_peak_bytes": max(peaks)} if peaks else {})


class StepAccumulator:
    """Adds the sums of steps on the host, in float64 and in order, so that a restart between them changes nothing.

    Args:
      throughput: makes the timed fields of a row.
      divergence: checks the sums of every step.
      carried: result of `carried()` when the run stopped between two rows.
    """

    def __init__(self, throughput: Throughput, divergence: DivergenceMonitor, carried: Mapping[str, Any] | None = None):
        self._throughput, self._divergence = throughput, divergence
        self._total: dict[str, float] = {}
        self._reset()
        if carried:
            self._total = {name: value for name, value in carried.items() if name not in COUNTS}
            for name in COUNTS:
                setattr(divergence, name, carried[name])

    def add(self, step: int, sums: Any, waited_s: float) -> None:
        """Add one step whose sums are still on the device, and wait for the step `STEPS_IN_FLIGHT` before it."""
        self._pending.append((step, sums))
        self._waits_s.append(waited_s)
        self._wait_until(STEPS_IN_FLIGHT)

    def wait(self) -> None:
        """Wait until the device has made all steps."""
        self._wait_until(0)

    def drain(self) -> None:
        """Wait for all steps and move their sums to the host.

        Raises:
          UserError: a sum is not finite and may not be skipped. The message names the first such step.
        """
        self.wait()
        sums_of_steps = jax.device_get([sums for _, sums in self._pending])
        for (step, _), sums in zip(self._pending, sums_of_steps, strict=True):
            self._divergence.check(step, sums)
            for name, value in vars(sums).items():
                self._total[name] = self._total.get(name, 0) + value.item()
        self._pending, self._num_ready = [], 0

    def row(self) -> dict[str, float]:
        """Return means over the steps (none if all were skipped), counts and speed, and start a new row."""
        self.drain()
        total = dict(self._total)
        images = total.pop("images", 0)
        means = {name: value / images for name, value in total.items()} if images else {}
        scalars = means | {"images": images} | self._divergence.row(means.get("loss"))
        scalars |= self._throughput.row(self._steps_s, self._waits_s)
        self._reset()
        return scalars

    def carried(self) -> dict[str, float]:
        """Return the sums of the drained steps as plain numbers, which JSON keeps to the bit."""
        return self._total | {name: getattr(self._divergence, name) for name in COUNTS}

    def leave_out(self, pause_s: float) -> None:
        """Do not count a pause, such as an evaluation, as time of a step."""
        self._last_s += pause_s

    def _wait_until(self, in_flight: int) -> None:
        """Note the time of each step when it is ready; its dispatch returns too early to be timed."""
        while len(self._pending) - self._num_ready > in_flight:
            jax.block_until_ready(self._pending[self._num_ready][1])
            self._num_ready += 1
            now_s = time.monotonic()
            self._steps_s.append(now_s - self._last_s)
            self._last_s = now_s

    def _reset(self) -> None:
        self._total = {name: type(value)(0) for name, value in self._total.items()}
        self._pending: list[tuple[int, Any]] = []
        self._num_ready = 0
        self._steps_s: list[float] = []
        self._waits_s: list[float] = []
        self._last_s = time.monotonic()
