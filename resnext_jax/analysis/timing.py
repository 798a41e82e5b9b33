"""Steps timed in turns, and our own steps: those that `train.loop` and evaluation run."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resnext_jax import sharding
from resnext_jax.analysis.compiling import task_of, with_impl
from resnext_jax.types import Batch

REPEAT_S = 0.5  # a repeat has as many steps as fit into this time, at least one
SLOW_S = 5.0  # a contender whose step takes longer is timed in `SLOW_REPEATS` turns only
SLOW_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of the implementations that are timed."""

    steps: dict[str, Callable[[], Any]]  # by task; each starts one step and returns its result
    wait: Callable[[Any], Any]  # takes the result of a step and returns once it is computed
    num_compiles: int = 1  # how many first steps of a task may compile


def images_per_s(contenders: dict[str, Contender], task: str, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Return the images per second of every repeat, by contender.

    They take turns, so that other work of the machine slows all alike. A slow contender takes part in only
    `SLOW_REPEATS` of the `repeats` turns, spread over all.
    """

    def seconds(contender: Contender, num_steps: int) -> float:
        start = time.perf_counter()
        for _ in range(num_steps - 1):
            contender.steps[task]()
        contender.wait(contender.steps[task]())
        return time.perf_counter() - start

    num_steps, turns = {}, {}
    for name, contender in contenders.items():
        for _ in range(contender.num_compiles):
            seconds(contender, 1)
        step_s = seconds(contender, 1)
        num_steps[name] = max(1, round(REPEAT_S / step_s))
        turns[name] = min(repeats, SLOW_REPEATS) if step_s > SLOW_S else repeats
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name, contender in contenders.items():
            if turn * turns[name] // repeats > (turn - 1) * turns[name] // repeats:
                rates[name].append(num_steps[name] * batch_size / seconds(contender, num_steps[name]))
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, ratios, numbers of repeats and ranges of the rates of "ours", "peer" and "compare"."""
    median = {name: statistics.median(of) for name, of in rates.items()}
    ratio = median["ours"] / median["peer"] if "peer" in median else None
    result: dict[str, Any] = {"ours": median["ours"], "peer": median.get("peer"), "ratio": ratio}
    if "compare" in median:
        result |= {"compare": median["compare"], "ratio_compare": median["ours"] / median["compare"]}
    result["repeats"] = {name: len(of) for name, of in rates.items()}
    return result | {"range": {name: [min(of), max(of)] for name, of in rates.items()}}


def ours(config: Any, device: Any, batch: Batch, conv_impl: str) -> Contender:
    """Return our steps with this `conv_impl` on one device of JAX; training goes on from state to state."""
    task, place = task_of(with_impl(config, conv_impl), [device])
    on_device = sharding.to_global(place.mesh, batch)
    state = task.create_state()

    def train() -> Any:
        nonlocal state
        state, metrics = task.train_step(state, on_device)
        return metrics

    def inference() -> Any:
        return task.evaluation_step({"params": state.params, "batch_stats": state.batch_stats}, on_device)

    return Contender({"train": train, "inference": inference}, jax.block_until_ready)


def synthetic_batch(batch_size: int, image_shape: tuple[int, int, int], num_classes: int) -> Batch:
    """Return a batch of noise, because the time of a step does not depend on what an image shows."""
    rng = np.random.default_rng(0)
    return Batch(
        image=rng.integers(0, 256, (batch_size, *image_shape), np.uint8),
        label=rng.integers(0, num_classes, batch_size, np.int32),
        mask=np.ones(batch_size, np.float32),
    )
