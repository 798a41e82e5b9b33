"""Image classification: what is trained in every experiment of the paper except object detection.

`Classification.__init__` reads as the recipe: model, schedule, optimizer, augmentation, loss, step. To change one of
them, change it there or in the function that it names.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from resnext_jax import builders, sharding
from resnext_jax.config.checks import evaluation_problems, network_problems, training_problems
from resnext_jax.data.sources import Source
from resnext_jax.errors import UserError, raise_all
from resnext_jax.evaluate import recompute, validation
from resnext_jax.evaluate.classify import evaluation_step
from resnext_jax.models.complexity import multiply_adds
from resnext_jax.ops.loss import LOSSES
from resnext_jax.sharding import Place
from resnext_jax.train import recipe
from resnext_jax.train.finetune import HEAD, initial_weights
from resnext_jax.train.state import create_state
from resnext_jax.train.step import Step, skipping_nonfinite, train_step, with_averages
from resnext_jax.types import Batch, DatasetInfo, Metric, PyTree, TrainState

LOSS = Metric("loss", "loss", ".4f")
TOP1 = Metric("top1", "top-1", ".2%", is_accuracy=True)
TOP5 = Metric("top5", "top-5", ".2%", is_accuracy=True)


class Classification:
    """A `train.task.Task`. Nothing is compiled, allocated or read before it is used.

    Args:
      config: resolved config; see configs/common.py.
      place: devices and process. The devices need not exist: a compile-only topology will do.
      training: training images; None if no batch will be read, as in a compile report.
      validation: validation images; None if nothing will be evaluated.

    Attributes:
      schedule: step -> learning rate.
      train_step: (state, batch) -> (state, sums), jitted for the devices; donates the state.
      plain_step: the same mathematics without jit, microbatches and devices, to look for a NaN in it.
      create_state: () -> fresh state at step 0, replicated over the devices.
      evaluation_step: (variables, batch) -> sums.
    """

    metrics: Sequence[Metric] = (LOSS, TOP1, TOP5)
    train_metrics: Sequence[Metric] = (LOSS, TOP1)
    score: Metric = TOP1

    def __init__(
        self,
        config: ConfigDict,
        place: Place,
        info: DatasetInfo,
        *,
        training: Source | None = None,
        validation: Source | None = None,
    ):
        raise_all(problems_of(config, place) + recipe.length_problems(config, info))
        self.config, self.place, self.info, self._training, self._validation = config, place, info, training, validation
        self.model_name = recipe.model_name_of(config)
        self.title = f"{self.model_name} on {config.data.name}"
        self.dataset = builders.facts(info)
        self.batch_size = config.batch_size
        size_px = builders.training_size_px(config)
        self.image_shape = (size_px, size_px, len(config.data.mean))

        self.model = builders.build_model(config, info.num_classes, place)

        self.steps_per_epoch = info.num_images / config.batch_size  # rarely whole
        self.total_steps = recipe.total_steps_of(config, info)
        self.schedule = recipe.schedule_of(config, self.steps_per_epoch, self.total_steps)
        self.length_may_change = config.schedule.name == "step"
        self.optimizer = recipe.optimizer_of(config, self.schedule)

        frozen = config.freeze_backbone
        loss_fn = partial(
            recipe.classification_loss,
            model=self.model,
            augment=builders.build_augment(config),
            mix=builders.build_mix(config),
            loss=partial(LOSSES[config.loss], smoothing=config.label_smoothing, threshold=config.target_threshold),
            trained_module=HEAD if frozen else None,
        )
        self.plain_step: Step = partial(
            train_step, loss_fn=loss_fn, optimizer=self.optimizer, model=self.model, seed=config.seed
        )
        skips = config.on_nonfinite == "skip"
        step: Step = partial(
            self.plain_step, accumulation_steps=config.accumulation_steps, mesh=place.mesh, check_all=skips or frozen
        )
        if config.ema_decay:
            step = with_averages(step, config.ema_decay)
        if skips:
            step = skipping_nonfinite(step)

        everywhere, split = sharding.replicated(place.mesh), sharding.batch_sharding(place.mesh)
        self.train_step = jax.jit(step, in_shardings=(everywhere, split), out_shardings=everywhere, donate_argnums=0)
        self.create_state = jax.jit(
            partial(
                create_state, self.model, self.optimizer, config.seed, self.image_shape, averages=config.ema_decay > 0
            ),
            out_shardings=everywhere,
        )
        present = builders.present_classes(config, validation) if validation is not None else None
        data = config.data
        self.evaluation_step = jax.jit(
            partial(evaluation_step, model=self.model, mean=data.mean, std=data.std, present=present),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
        )

    # ---------------------------------------------------------------------------------------------- For the loop

    def batches(self, start_step: int) -> Generator[Batch]:
        """Yield this process's rows of the global batches from `start_step` to the end of the run."""
        assert self._training is not None
        return builders.training_batches(self.config, self._training, self.place, start_step, self.total_steps)

    def initial_state(self, log: Callable[[str], None]) -> TrainState:
        """Return the state at step 0: fresh, or with the weights of `config.init_from`."""
        state = self.create_state()
        if self.config.init_from is None:
            return state
        return initial_weights(state, self.config.init_from, self.dataset, self.place, log)

    def flops_per_image(self) -> float:
        """Return the floating-point operations of training on one image; backward costs twice forward."""
        return 2.0 * 3 * multiply_adds(self.model, self.image_shape)

    def require_same_data(self, saved: dict[str, Any], workdir: str) -> None:
        """Raise UserError if a checkpoint of `workdir` was trained on other classes."""
        builders.require_same_classes(self.dataset, saved, workdir)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update that follows `step` updates."""
        return float(self.schedule(step))

    def evaluate(self, variables: PyTree, step: int, workdir: str) -> dict[str, float]:
        """Return loss, top-1, top-5 and the number of images of the validation set."""
        assert self._validation is not None
        return validation.evaluate_all(self.config, self.evaluation_step, variables, self._validation, self.place)

    @property
    def final_phase(self) -> str | None:
        """The phase of the row that follows the last step; None if there is none."""
        return recompute.RECOMPUTED if self.config.recompute_bn_images > 0 else None

    def final_evaluation(self, variables: PyTree, step: int, description: dict[str, Any], workdir: str) -> dict:
        """Recompute the batch-norm statistics, save them in `workdir/recomputed_bn`, and return their evaluation."""
        assert self._training is not None
        args = self.config, self.model, variables, step, description, self._training, workdir, self.place
        return self.evaluate(recompute.recompute_bn(*args), step, workdir)

    # ---------------------------------------------------------------------------------- For the compile report too

    def state_shapes(self) -> TrainState:
        """Return the state as shapes with shardings."""
        everywhere = sharding.replicated(self.place.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            jax.eval_shape(self.create_state),
        )

    def batch_shapes(self) -> Batch:
        """Return a global training batch as shapes with shardings."""
        shape = partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(self.place.mesh))
        return Batch(
            image=shape((self.batch_size, *self.image_shape), "uint8"),
            label=shape((self.batch_size,), "int32"),
            mask=shape((self.batch_size,), "float32"),
        )


def problems_of(config: ConfigDict, place: Place) -> list[str]:
    """Return what is wrong with a config on these devices, whatever the data are, one sentence each."""
    num_devices = place.mesh.size
    lines = training_problems(config, num_devices, place.process_count) + evaluation_problems(config, num_devices)
    return lines + network_problems(config)


def open_classification(config: ConfigDict, place: Place) -> Classification:
    """Open the data of a config and return the task of training on it.

    Raises:
      UserError: on every process, with every problem of the config or the data.
    """
    task, error = None, None
    try:
        faults = problems_of(config, place)
        if evaluation_problems(config, place.mesh.size):  # the data may not open with these
            raise UserError(*faults)
        try:
            training, validation = builders.open_data(config, "train"), builders.open_data(config, "validation")
        except UserError as caught:
            raise UserError(*faults, *caught.problems) from caught
        task = Classification(config, place, training.info, training=training, validation=validation)
        task.state_shapes()  # an impossible network is found before anything is written
    except UserError as caught:
        error = caught
    sharding.raise_if_any(place, error)
    assert task is not None
    builders.require_same_on_all_hosts(place, train=training, validation=validation)
    return task
