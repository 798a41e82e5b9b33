"""What the two stages train: their fields of the config, optimizer and schedule (appendix B)."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from resnext_jax import optim
from resnext_jax.types import PyTree

STAGES = ("rpn", "fast_rcnn")
# Images of a step and the rate that belongs to them; a rate should grow with the images (Goyal et al. 2017).
PAPER_RATES = {"rpn": (16, 0.02), "fast_rcnn": (8, 0.005)}


def stage_config(config: ConfigDict, stage: str) -> ConfigDict:
    """Return the config of one stage: its fields at the top, where the loop reads them, and none of the other stage."""
    fields = config.copy_and_resolve_references().to_dict()
    own = {name: fields.pop(name) for name in STAGES}[stage]
    return ConfigDict({**fields, **own, "stage": stage})


def schedule_of(config: ConfigDict) -> optax.Schedule:
    """Return step -> learning rate of a stage: a tenth from each boundary on, after a linear warm-up."""
    return optim.step_schedule(config.learning_rate, config.boundaries_steps, warmup_steps=config.warmup_steps)


def optimizer_of(config: ConfigDict, schedule: optax.Schedule, frozen: Callable[[PyTree], PyTree]) -> Any:
    """Return SGD with momentum for what is trained: biases at twice the rate and without decay (py-faster-rcnn).

    Args:
      config: config of a stage.
      schedule: step -> learning rate of kernels.
      frozen: parameters -> True for each one that is not trained. It gets neither updates nor momentum.
    """

    def kind(params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf, stays: "frozen" if stays else "kernel" if leaf.ndim > 1 else "bias", params, frozen(params)
        )

    sgd = {
        "kernel": optim.sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay),
        "bias": optim.sgd(lambda step: 2.0 * schedule(step), momentum=config.momentum, weight_decay=0.0),
    }
    return optax.partition({**sgd, "frozen": optax.set_to_zero()}, kind)


def rate_warning(config: ConfigDict) -> str | None:
    """Return a sentence if the rate of a stage is far from the paper's for so many images, else None."""
    images, rate = PAPER_RATES[config.stage]
    expected = rate * config.batch_size / images
    if 0.5 <= config.learning_rate / expected <= 2:
        return None
    return (
        f"{config.stage}.learning_rate={config.learning_rate:g} with {config.batch_size} images per batch: the paper's "
        f"{rate:g} for {images} images is {expected:g} for {config.batch_size}. A larger rate may diverge."
    )
