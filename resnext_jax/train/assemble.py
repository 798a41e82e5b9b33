"""From a config to the parts of a run: the very step that the loop runs and the compile report lowers."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Bool
from ml_collections import ConfigDict

from resnext_jax import optim, sharding
from resnext_jax.builders import flips_on_device, training_size_px
from resnext_jax.config.checks import evaluation_problems, training_problems
from resnext_jax.errors import UserError, raise_all
from resnext_jax.evaluate.classify import evaluation_step
from resnext_jax.evaluate.recompute import statistics_step
from resnext_jax.models import zoo
from resnext_jax.ops.augment import make_augment
from resnext_jax.ops.loss import LOSSES
from resnext_jax.ops.mix import mix
from resnext_jax.train.state import create_state
from resnext_jax.train.step import train_step
from resnext_jax.types import Batch, DatasetInfo, TrainState

HEAD = "classifier"  # what a frozen backbone leaves to train


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of one run; steps are jitted for the mesh, nothing is compiled or allocated yet.

    Attributes:
      model: the network.
      image_shape: (height, width, channel) of the images of a training batch.
      steps_per_epoch: images of the training set over the batch size; rarely whole.
      total_steps: of the run.
      evaluate_every_steps: None for the end of every epoch.
      keep_every_epochs, keep_every_steps: checkpoints to keep for ever; None for none.
      schedule: step -> learning rate.
      create_state: () -> the first state, replicated over the mesh.
      train_step: (state, batch) -> (state, metrics); donates the state.
      plain_step: the same mathematics in one piece, to be traced: no jit, no sharding, no skipping.
      evaluation_step: (variables, batch) -> sums.
    """

    model: zoo.Network
    image_shape: tuple[int, int, int]
    steps_per_epoch: float
    total_steps: int
    evaluate_every_steps: int | None
    keep_every_epochs: int | None
    keep_every_steps: int | None
    schedule: optax.Schedule
    create_state: Callable[[], TrainState]
    train_step: Callable
    plain_step: Callable
    evaluation_step: Callable

    def evaluates_after(self, step: int) -> bool:
        """Whether the validation set is due after this many steps: at the end, and every so many or every epoch."""
        if self.evaluate_every_steps is not None:
            due = step % self.evaluate_every_steps == 0
        else:
            due = self._ends_epochs(step, 1)
        return due or step == self.total_steps

    def keeps_permanently(self, step: int) -> bool:
        """Whether the checkpoint of this step is saved and never removed."""
        by_steps = self.keep_every_steps is not None and step % self.keep_every_steps == 0
        return by_steps or (self.keep_every_epochs is not None and self._ends_epochs(step, self.keep_every_epochs))

    def _ends_epochs(self, step: int, num_epochs: int) -> bool:
        """Whether this is the last step of so many epochs or a multiple of them; steps per epoch are rarely whole."""
        steps = num_epochs * self.steps_per_epoch
        return step == round(max(1, round(step / steps)) * steps)

    def compile(self, place: sharding.Place, batch_size: int, say: Callable[[str], None]) -> Callable:
        """`train_step` compiled for global batches of `batch_size`, with a line before and after."""
        say(
            f"compiling the step for {place.mesh.size} {place.platform} device(s); "
            "this can take from seconds (small networks) to minutes (101 layers)"
        )
        start_s = time.monotonic()
        shapes = self.state_shapes(place.mesh), self.batch_shapes(place.mesh, batch_size)
        compiled = self.train_step.lower(*shapes).compile()
        say(f"compiled in {time.monotonic() - start_s:.1f} s")
        return compiled

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


def assemble(
    config: ConfigDict,
    info: DatasetInfo,
    place: sharding.Place,
    *,
    present: Bool[np.ndarray, " classes"] | None = None,
) -> Run:
    """Builds the parts that a config names, for the devices of `place`.

    Args:
      config: see configs/common.py.
      info: of the training set.
      place: the devices that will run it; they need not exist (a compile-only topology will do).
      present: the classes that are also evaluated by themselves; None for no such evaluation.

    Raises:
      UserError: with every problem of the config.
    """
    mesh = place.mesh
    problems = training_problems(config, mesh.size) + evaluation_problems(config, mesh.size)
    if config.debug_nans and place.process_count > 1:
        problems.append(
            f"debug_nans=True looks at one process, and there are {place.process_count}: start one alone, on a copy "
            "of the workdir."
        )
    raise_all(problems)
    model = model_of(config, info.num_classes, place)
    steps_per_epoch = info.num_images / config.batch_size
    total_steps = round(config.num_epochs * steps_per_epoch) if config.num_steps is None else config.num_steps
    if total_steps < 1:
        raise UserError(
            f"num_epochs={config.num_epochs} of {info.num_images:,} images are not one step of batch_size="
            f"{config.batch_size}: raise num_epochs, or set num_steps."
        )
    schedule = optim.make_schedule(
        config.schedule.name,
        learning_rate=config.learning_rate,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        boundaries_steps=config.schedule.boundaries_steps
        or [round(epoch * steps_per_epoch) for epoch in config.schedule.boundaries_epochs],
        factor=config.schedule.factor,
        warmup_epochs=config.schedule.warmup_epochs,
    )
    optimizer = optim.OPTIMIZERS[config.optimizer](
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decayed=optim.DECAYED[config.weight_decay_of],
    )
    if config.freeze_backbone:
        optimizer = optim.only(optimizer, HEAD)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        augment=augment_of(config),
        seed=config.seed,
        loss=partial(LOSSES[config.loss], smoothing=config.label_smoothing, threshold=config.target_threshold),
        trains_only=HEAD if config.freeze_backbone else None,
        ema_decay=config.ema_decay,
        mix=mix_of(config),
    )
    skip = config.on_nonfinite == "skip"
    size_px = training_size_px(config)
    image_shape = (size_px, size_px, len(config.data.mean))
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return Run(
        model=model,
        image_shape=image_shape,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        evaluate_every_steps=config.evaluate.every_steps,
        keep_every_epochs=config.checkpoint.keep_every_epochs,
        keep_every_steps=config.checkpoint.keep_every_steps,
        schedule=schedule,
        create_state=jax.jit(
            partial(create_state, model, optimizer, config.seed, image_shape, averages=config.ema_decay > 0),
            out_shardings=everywhere,
        ),
        train_step=jax.jit(
            partial(step, accumulation_steps=config.accumulation_steps, mesh=mesh, skip_nonfinite=skip),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
            donate_argnums=0,
        ),
        plain_step=partial(step, accumulation_steps=1, mesh=None),
        evaluation_step=jit_evaluation(config, model, mesh, present),
    )


def model_of(config: ConfigDict, num_classes: int, place: sharding.Place) -> zoo.Network:
    """The network that a config names."""
    return zoo.build_model(
        zoo.select(**config.model),
        num_classes,
        platform=place.platform,
        chip=place.chip,
        conv_impl=config.conv_impl,
        compute_dtype=config.compute_dtype,
        bn_group_images=config.bn_group_images,
    )


def augment_of(config: ConfigDict) -> Callable:
    """(uint8 images, keys) -> normalised float32 images, as they are trained on."""
    augment = config.augment
    return make_augment(
        mean=config.data.mean,
        std=config.data.std,
        color_jitter_strength=augment.color_jitter,
        lighting_std=augment.lighting_std,
        flip_images=augment.flip and flips_on_device(config),
        pad_px=augment.pad_px,
        erase_probability=augment.get("erase_probability", 0.0),
    )


def mix_of(config: ConfigDict) -> Callable | None:
    """(images, labels, keys) -> mixed ones, where the config mixes."""
    augment = config.augment
    if not (augment.mixup_alpha or augment.cutmix_alpha):
        return None
    return partial(
        mix,
        mixup_alpha=augment.mixup_alpha,
        cutmix_alpha=augment.cutmix_alpha,
        group_images=config.bn_group_images,
    )


def jit_statistics(config: ConfigDict, model: zoo.Network, mesh: Mesh) -> Callable:
    """(variables, batch, step) -> batch-norm statistics of that training batch, jitted for the mesh."""
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        partial(statistics_step, model=model, augment=augment_of(config), seed=config.seed, mesh=mesh),
        in_shardings=(everywhere, split, everywhere),
        out_shardings=everywhere,
    )


def jit_evaluation(
    config: ConfigDict, model: zoo.Network, mesh: Mesh, present: Bool[np.ndarray, " classes"] | None
) -> Callable:
    """(variables, batch) -> sums, jitted for the mesh."""
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        partial(evaluation_step, model=model, mean=config.data.mean, std=config.data.std, present=present),
        in_shardings=(everywhere, split),
        out_shardings=everywhere,
    )
