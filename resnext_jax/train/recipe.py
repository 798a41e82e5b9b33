"""The parts of a classification recipe that are not in `builders`: loss, length, schedule and optimizer."""

import math
from collections.abc import Callable

import jax
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from resnext_jax import metrics, optim
from resnext_jax.models import zoo
from resnext_jax.ops.mix import Labels
from resnext_jax.train.finetune import HEAD
from resnext_jax.types import Batch, DatasetInfo, PyTree


def classification_loss(
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    keys: Array,
    *,
    model: zoo.Network,
    augment: Callable[[Array, Array], Array],
    mix: Callable[[Array, Array, Array], tuple[Array, Labels]] | None,
    loss: Callable[[Array, Labels], Array],
    trained_module: str | None = None,
) -> tuple[Array, tuple[PyTree, metrics.Sums]]:
    """Augment the images, run the network and return (mean loss, (batch_stats, sums)).

    Args:
      batch: uint8 images (batch, height, width, channel) and labels.
      keys: one key per image, for augmentation and dropout.
      augment: (uint8 images, keys) -> normalized float32 images; see `ops.augment.make_augment`.
      mix: (images, labels, keys) -> mixed images and labels, after the augmentation; see `ops.mix.mix`.
      loss: (logits, labels) -> loss of each image; a row of `ops.loss.LOSSES`.
      trained_module: the only module that gets a gradient. The network then runs in inference mode and returns no
        statistics. The optimizer must leave the other parameters alone (`optim.only`).

    Returns:
      The loss that is minimized. The sums count each mixed image for its label with the larger weight, and their loss
      is always the cross-entropy.
    """
    with jax.named_scope("augment"):
        images, labels = augment(batch.image, keys), Labels(batch.label)
        if mix is not None:
            images, labels = mix(images, batch.label, keys)
    if trained_module:
        params = {
            name: value if name == trained_module else jax.tree.map(jax.lax.stop_gradient, value)
            for name, value in params.items()
        }
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=not trained_module,
        keys=keys,
        mutable=["batch_stats"],
    )
    with jax.named_scope("loss"):
        minimized = loss(logits, labels).mean()
        sums = metrics.count(logits, labels.largest(), batch.mask)
    return minimized, ({} if trained_module else updated.get("batch_stats", {}), sums)


def total_steps_of(config: ConfigDict, info: DatasetInfo) -> int:
    """Return the number of steps of the run; 0 if `length_problems` has something to say."""
    steps = config.num_steps
    return round(config.num_epochs * (info.num_images / config.batch_size)) if steps is None else steps


def length_problems(config: ConfigDict, info: DatasetInfo) -> list[str]:
    """Return what is wrong with the length of the run and of its warm-up, one sentence each.

    Values that `config.checks` refuses are passed over.
    """
    epochs, warmup_epochs = config.num_epochs, config.schedule.warmup_epochs
    if config.batch_size < 1 or not 0 < epochs < math.inf or (config.num_steps is not None and config.num_steps < 1):
        return []
    steps = total_steps_of(config, info)
    if steps < 1:
        return [
            f"num_epochs={epochs} of {info.num_images:,} images are not one step of batch_size={config.batch_size}: "
            "raise num_epochs, or set num_steps."
        ]
    if not 0 <= warmup_epochs < math.inf:
        return []
    return optim.warmup_problems(warmup_epochs, info.num_images / config.batch_size, steps)


def schedule_of(config: ConfigDict, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step."""
    return optim.make_schedule(
        config.schedule.name,
        learning_rate=config.learning_rate,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        boundaries_steps=config.schedule.boundaries_steps
        or [round(epoch * steps_per_epoch) for epoch in config.schedule.boundaries_epochs],
        factor=config.schedule.factor,
        warmup_epochs=config.schedule.warmup_epochs,
    )


def optimizer_of(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the optimizer, restricted to the classifier if the backbone is frozen."""
    optimizer = optim.OPTIMIZERS[config.optimizer](
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decayed=optim.DECAYED[config.weight_decay_of],
    )
    return optim.only(optimizer, HEAD) if config.freeze_backbone else optimizer


def model_name_of(config: ConfigDict) -> str:
    """Return the network by its row of the zoo or its numbers, such as `resnext101_64x4d`."""
    model = config.model
    name = model.name or f"{model.family} {model.depth} ({model.cardinality}x{model.bottleneck_width}d)"
    changes = f"{'' if model.shortcut else ' without shortcuts'}{' pre-activated' if model.preactivation else ''}"
    return f"{name}{changes}"
