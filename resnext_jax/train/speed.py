"""How fast a run is, and how much of its machine it uses: the timed fields of a row."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from resnext_jax.models.complexity import multiply_adds
from resnext_jax.models.zoo import Network
from resnext_jax.runtime.chips import PEAK_BF16_FLOPS_PER_S
from resnext_jax.sharding import Place


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the times of steps are set against.

    Attributes:
      batch_size: images of a step.
      num_devices: that share them.
      flops_per_image: of training, as the model's mathematics has them: a multiply-add is two, and the backward pass
        costs two forward passes. What an algorithm multiplies besides does not count.
      peak_flops_per_s: of one device, in bfloat16; None where it is not known.
    """

    batch_size: int
    num_devices: int
    flops_per_image: float
    peak_flops_per_s: float | None

    def row(self, steps_s: Sequence[float], waits_s: Sequence[float]) -> dict[str, float]:
        """The timed fields of a row (`metrics.TIMED_FIELDS`).

        Args:
          steps_s: from the end of one step on the device to that of the next, as the host saw it; without pauses.
          waits_s: of the host for the batch of each.
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
        # Not every platform counts (a CPU does not).
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
        return fields | ({"device_memory_peak_bytes": max(peaks)} if peaks else {})


def machine(model: Network, image_shape: tuple[int, int, int], batch_size: int, place: Place) -> Machine:
    """The devices of `place` at work on this network."""
    flops = 2 * 3 * multiply_adds(model, image_shape)
    return Machine(batch_size, place.mesh.size, flops, PEAK_BF16_FLOPS_PER_S.get(place.chip))
