"""Steps timed in turns, and our own: the very ones that `train.loop` and evaluation run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from resnext_jax import sharding
from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.train.assemble import assemble
from resnext_jax.types import Batch

REPEAT_S = 0.5  # a repeat has as many steps as fit into this, and one at least
Step = Callable[[], Any]  # starts one step and returns what is waited for


def images_per_s(steps: dict[str, Step], wait: dict[str, Callable], batch_size: int, repeats: int) -> dict[str, list]:
    """Times the steps in turns, so that whatever else the machine does hits all of them alike.

    Args:
      steps: by name; each starts one step and returns its result.
      wait: by the same names; returns once a result of the step is there.
      batch_size: images of one step.
      repeats: turns.

    Returns:
      By name the images per second of every repeat.
    """
    num_steps = {}
    for name, step in steps.items():
        wait[name](step())  # compiles
        wait[name](step())  # torch compiles once more, for gradients that are there already
        start = time.perf_counter()
        wait[name](step())
        num_steps[name] = max(1, round(REPEAT_S / (time.perf_counter() - start)))
    rates: dict[str, list] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(num_steps[name] - 1):
                step()
            wait[name](step())
            rates[name].append(num_steps[name] * batch_size / (time.perf_counter() - start))
    return rates


def compare(rates: dict[str, list]) -> dict[str, Any]:
    """Medians, their ratio, and the slowest and the fastest repeat."""
    ours, peer = (statistics.median(rates[name]) if name in rates else None for name in ("ours", "peer"))
    ratio = None if ours is None or peer is None else ours / peer
    return {"ours": ours, "peer": peer, "ratio": ratio, "range": {name: [min(r), max(r)] for name, r in rates.items()}}


def our_steps(config: Any, device: Any, batch: Batch) -> dict[str, Step]:
    """The steps of `train.assemble` on one device; training goes on from state to state."""
    place = sharding.Place(sharding.make_mesh([device]), device.platform)
    run = assemble(config, dataset_info(config.data.name), place)
    on_device = sharding.to_global(place.mesh, batch)
    state = run.create_state()

    def train() -> Any:
        nonlocal state
        state, metrics = run.train_step(state, on_device)
        return metrics

    def inference() -> Any:
        return run.evaluation_step({"params": state.params, "batch_stats": state.batch_stats}, on_device)

    return {"train": train, "inference": inference}


def synthetic_batch(batch_size: int, image_shape: tuple[int, int, int], num_classes: int) -> Batch:
    """Noise: what an image shows costs nothing."""
    rng = np.random.default_rng(0)
    return Batch(
        image=rng.integers(0, 256, (batch_size, *image_shape), np.uint8),
        label=rng.integers(0, num_classes, batch_size, np.int32),
        mask=np.ones(batch_size, np.float32),
    )
