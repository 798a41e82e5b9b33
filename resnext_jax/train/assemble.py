"""From a config to the parts of a run: the very step that the loop runs and the compile report lowers."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax import optim, sharding
from resnext_jax.errors import raise_all
from resnext_jax.evaluate.classify import evaluation_step
from resnext_jax.models import zoo
from resnext_jax.models.template import ResNeXt
from resnext_jax.ops.augment import make_augment
from resnext_jax.train.state import create_state
from resnext_jax.train.step import train_step
from resnext_jax.types import Batch, DatasetInfo, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of one run; steps are jitted for the mesh, nothing is compiled or allocated yet.

    Attributes:
      model: the network.
      image_shape: (height, width, channel) of a batch's images.
      steps_per_epoch: images of the training set over the batch size; rarely whole.
      total_steps: of the run.
      evaluate_every_steps: None for the end of every epoch.
      schedule: step -> learning rate.
      create_state: () -> the first state, replicated over the mesh.
      train_step: (state, batch) -> (state, metrics); donates the state.
      evaluation_step: (variables, batch) -> sums.
    """

    model: ResNeXt
    image_shape: tuple[int, int, int]
    steps_per_epoch: float
    total_steps: int
    evaluate_every_steps: int | None
    schedule: optax.Schedule
    create_state: Callable[[], TrainState]
    train_step: Callable
    evaluation_step: Callable

    def evaluates_after(self, step: int) -> bool:
        """Whether the validation set is due after this many steps: at the end, and every so many or every epoch."""
        if self.evaluate_every_steps is not None:
            due = step % self.evaluate_every_steps == 0
        else:
            due = step == round(max(1, round(step / self.steps_per_epoch)) * self.steps_per_epoch)
        return due or step == self.total_steps

    def state_shapes(self, mesh: Mesh) -> TrainState:
        """The state as shapes with shardings."""
        everywhere = sharding.replicated(mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            jax.eval_shape(self.create_state),
        )

    def batch_shapes(self, mesh: Mesh, batch_size: int) -> Batch:
        """A global batch as shapes with shardings."""
        split = sharding.batch_sharding(mesh)
        shape = partial(jax.ShapeDtypeStruct, sharding=split)
        return Batch(
            image=shape((batch_size, *self.image_shape), "uint8"),
            label=shape((batch_size,), "int32"),
            mask=shape((batch_size,), "float32"),
        )


def assemble(config: ConfigDict, info: DatasetInfo, place: sharding.Place) -> Run:
    """Builds the parts that a config names, for the devices of `place`.

    Args:
      config: see configs/common.py.
      info: of the training set.
      place: the devices that will run it; they need not exist (a compile-only topology will do).

    Raises:
      UserError: with every problem of the config.
    """
    mesh = place.mesh
    raise_all(problems(config, mesh.size))
    model = zoo.build_model(
        zoo.select(**config.model),
        info.num_classes,
        platform=place.platform,
        conv_impl=config.conv_impl,
        compute_dtype=config.compute_dtype,
        bn_group_images=config.bn_group_images,
    )
    steps_per_epoch = info.num_images / config.batch_size
    total_steps = round(config.num_epochs * steps_per_epoch) if config.num_steps is None else config.num_steps
    schedule = optim.make_schedule(
        config.schedule.name,
        learning_rate=config.learning_rate,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        boundaries_epochs=config.schedule.boundaries_epochs,
        factor=config.schedule.factor,
        warmup_epochs=config.schedule.warmup_epochs,
    )
    optimizer = optim.sgd_nesterov(schedule, momentum=config.momentum, weight_decay=config.weight_decay)
    augment = make_augment(
        mean=config.data.mean,
        std=config.data.std,
        color_jitter_strength=config.augment.color_jitter,
        lighting_std=config.augment.lighting_std,
        flip_images=config.augment.flip,
        pad_px=config.augment.pad_px,
    )
    image_shape = (config.data.image_size_px, config.data.image_size_px, len(config.data.mean))
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return Run(
        model=model,
        image_shape=image_shape,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        evaluate_every_steps=config.evaluate.every_steps,
        schedule=schedule,
        create_state=jax.jit(
            partial(create_state, model, optimizer, config.seed, image_shape), out_shardings=everywhere
        ),
        train_step=jax.jit(
            partial(
                train_step,
                model=model,
                optimizer=optimizer,
                augment=augment,
                seed=config.seed,
                label_smoothing=config.label_smoothing,
                accumulation_steps=config.accumulation_steps,
            ),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
            donate_argnums=0,
        ),
        evaluation_step=jax.jit(
            partial(evaluation_step, model=model, mean=config.data.mean, std=config.data.std),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
        ),
    )


def problems(config: ConfigDict, num_devices: int) -> list[str]:
    """Everything about the numbers of a config that cannot work on this many devices, one sentence each."""
    lines = sharding.check_batch_size("batch_size", config.batch_size, num_devices)
    lines += sharding.check_batch_size("evaluate.batch_size", config.evaluate.batch_size, num_devices)
    batch_size, group, parts = config.batch_size, config.bn_group_images, config.accumulation_steps
    if group < 0 or (group and batch_size % group):
        lines.append(
            f"bn_group_images={group} does not divide batch_size={batch_size}: batch-norm statistics are taken over "
            "whole groups of images. Take a divisor, or 0 for the whole batch."
        )
    elif parts < 1 or (parts > 1 and (group == 0 or (batch_size // group) % parts)):
        groups = f"{batch_size // group} batch-norm groups of {group}" if group else "one batch-norm group"
        lines.append(
            f"accumulation_steps={parts} does not divide batch_size={batch_size} into whole batch-norm groups: the "
            f"batch has {groups} images. Take a divisor of the number of groups, or a smaller bn_group_images."
        )
    augment = config.augment
    ranges = {
        "seed": (config.seed, config.seed >= 0, "0 or more"),
        "learning_rate": (config.learning_rate, config.learning_rate > 0, "positive"),
        "momentum": (config.momentum, 0 <= config.momentum < 1, "in [0, 1)"),
        "weight_decay": (config.weight_decay, config.weight_decay >= 0, "0 or more"),
        "label_smoothing": (config.label_smoothing, 0 <= config.label_smoothing < 1, "in [0, 1)"),
        "num_epochs": (config.num_epochs, config.num_epochs > 0, "positive"),
        "num_steps": (config.num_steps, config.num_steps is None or config.num_steps > 0, "positive"),
        "data.image_size_px": (config.data.image_size_px, config.data.image_size_px > 0, "positive"),
        "checkpoint.every_steps": (config.checkpoint.every_steps, config.checkpoint.every_steps > 0, "positive"),
        "checkpoint.keep_newest": (config.checkpoint.keep_newest, config.checkpoint.keep_newest > 0, "1 or more"),
        "checkpoint.keep_best": (config.checkpoint.keep_best, config.checkpoint.keep_best >= 0, "0 or more"),
        "data.num_threads": (config.data.num_threads, config.data.num_threads >= 0, "0 or more"),
        "augment.color_jitter": (augment.color_jitter, 0 <= augment.color_jitter <= 1, "in [0, 1]"),
        "augment.lighting_std": (augment.lighting_std, augment.lighting_std >= 0, "0 or more"),
        "augment.pad_px": (augment.pad_px, augment.pad_px >= 0, "0 or more"),
        "log.every_steps": (config.log.every_steps, config.log.every_steps > 0, "positive"),
        "evaluate.every_steps": (
            config.evaluate.every_steps,
            config.evaluate.every_steps is None or config.evaluate.every_steps > 0,
            "positive, or unset for every epoch",
        ),
    }
    lines += [f"{name}={value!r} must be {allowed}." for name, (value, fine, allowed) in ranges.items() if not fine]
    if len(config.data.mean) != len(config.data.std):
        lines.append(f"data.mean={config.data.mean} and data.std={config.data.std} must have one entry per channel.")
    return lines
