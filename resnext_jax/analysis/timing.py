"""Steps timed in turns, and our own: the very ones that `train.loop` and evaluation run."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resnext_jax import sharding
from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.ops.conv_choice import chip_of
from resnext_jax.train.classification import Classification
from resnext_jax.types import Batch

REPEAT_S = 0.5  # a repeat has as many steps as fit into this, and one at least
SLOW_S = 5.0  # a step that takes longer takes part in a few turns only
SLOW_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of those that are timed.

    Attributes:
      steps: by task; each starts one step and returns its result.
      wait: returns once a result of a step is there.
      num_compiles: the first so many steps of a task may compile.
    """

    steps: dict[str, Callable[[], Any]]
    wait: Callable[[Any], Any]
    num_compiles: int = 1


def images_per_s(contenders: dict[str, Contender], task: str, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Times a task in turns, so that whatever else the machine does hits all contenders alike.

    Args:
      contenders: by name.
      task: whose steps.
      batch_size: images of one step.
      repeats: turns; a slow contender takes part in `SLOW_REPEATS` of them, spread over all.

    Returns:
      By name the images per second of every repeat.
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
    """Medians, their ratios, and of each the number of repeats, the slowest and the fastest.

    Args:
      rates: of "ours", and of "peer" and "compare" where they took part.
    """
    median = {name: statistics.median(of) for name, of in rates.items()}
    ratio = median["ours"] / median["peer"] if "peer" in median else None
    result: dict[str, Any] = {"ours": median["ours"], "peer": median.get("peer"), "ratio": ratio}
    if "compare" in median:
        result |= {"compare": median["compare"], "ratio_compare": median["ours"] / median["compare"]}
    result["repeats"] = {name: len(of) for name, of in rates.items()}
    return result | {"range": {name: [min(of), max(of)] for name, of in rates.items()}}


def ours(config: Any, device: Any, batch: Batch, conv_impl: str) -> Contender:
    """The steps of `train.assemble` on one device; training goes on from state to state.

    Args:
      config: see configs/common.py.
      device: that they run on.
      batch: on the host.
      conv_impl: takes the place of the config's.
    """
    config = copy.deepcopy(config)
    config.conv_impl = conv_impl
    place = sharding.Place(sharding.make_mesh([device]), device.platform, chip_of(device.device_kind))
    run = Classification(config, place, dataset_info(config.data.name))
    on_device = sharding.to_global(place.mesh, batch)
    state = run.create_state()

    def train() -> Any:
        nonlocal state
        state, metrics = run.train_step(state, on_device)
        return metrics

    def inference() -> Any:
        return run.evaluation_step({"params": state.params, "batch_stats": state.batch_stats}, on_device)

    return Contender({"train": train, "inference": inference}, jax.block_until_ready)


def synthetic_batch(batch_size: int, image_shape: tuple[int, int, int], num_classes: int) -> Batch:
    """Noise: what an image shows costs nothing."""
    rng = np.random.default_rng(0)
    return Batch(
        image=rng.integers(0, 256, (batch_size, *image_shape), np.uint8),
        label=rng.integers(0, num_classes, batch_size, np.int32),
        mask=np.ones(batch_size, np.float32),
    )
