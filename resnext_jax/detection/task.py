"""Object detection: the two stages of Faster R-CNN as tasks for `train.loop` (section 5.4 and appendix B).

`Detection.__init__` reads as the recipe of a stage: networks, schedule, optimizer, loss, step, evaluation.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from resnext_jax import builders, sharding
from resnext_jax.checkpoint import locate, read_variables, require_same_arrays
from resnext_jax.detection import evaluation, network, pictures, recipe
from resnext_jax.detection.batches import train_batches
from resnext_jax.detection.detector import build_detector
from resnext_jax.detection.results import write_results
from resnext_jax.detection.sources import DetectionSource
from resnext_jax.detection.types import DetectionBatch
from resnext_jax.models.complexity import products
from resnext_jax.ops.augment import image_keys
from resnext_jax.ops.keys import seed_key
from resnext_jax.sharding import Place
from resnext_jax.train.step import Step, skipping_nonfinite, train_step
from resnext_jax.types import DatasetInfo, Metric, PyTree, TrainState

EVALUATED_PROPOSALS = 1000  # per image, of the recall after the first stage
RESULTS_FILE = "coco_results.json"
# Layers that a classifier does not have.
NEW_LAYERS = ("rpn_conv", "rpn_score", "rpn_box", "class_score", "class_box")
RECALLS = ("ar100", "ar1000", "recall50_100", "recall50_1000")
RPN_METRICS = tuple(
    Metric(name, label, ".2%")
    for name, label in zip(RECALLS, ("AR@100", "AR@1000", "R50@100", "R50@1000"), strict=True)
)
AP_METRICS = tuple(
    Metric(name, label, ".2%")
    for name, label in (
        *(("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75")),
        *(("ap_small", "AP small"), ("ap_medium", "AP medium"), ("ap_large", "AP large"), ("ar100", "AR@100")),
    )
)


class Detection:
    """A `train.task.Task`: one stage, "rpn" or "fast_rcnn". Nothing is compiled or read before it is used.

    Args:
      config: config of the stage (`recipe.stage_config`).
      place: devices and process.
      info: facts of the training images.
      training, validation: the images; None if none will be read, as in a compile report.
      rpn_dir: workdir of the first stage, which the second takes the RPN from.
    """

    train_metrics: Sequence[Metric] = (
        Metric("loss", "loss", ".4f"),
        Metric("class_loss", "classes", ".4f"),
        Metric("box_loss", "boxes", ".4f"),
    )
    final_phase = None
    length_may_change = True  # the rates of the steps before do not depend on it

    def __init__(
        self,
        config: ConfigDict,
        place: Place,
        info: DatasetInfo,
        *,
        training: DetectionSource | None = None,
        validation: DetectionSource | None = None,
        rpn_dir: str | None = None,
    ):
        self.config, self.place, self.info, self.stage = config, place, info, config.stage
        self.training, self.validation, self._rpn_dir = training, validation, rpn_dir
        self.notes = [note for source in (training, validation) if source is not None for note in source.data.notes]
        self.model_name = config.model.name
        kind = {"rpn": "proposals (RPN)", "fast_rcnn": "Fast R-CNN"}[self.stage]
        self.title = f"{kind} with {self.model_name} on {info.name}"
        self.dataset = builders.facts(info)
        self.batch_size, self.total_steps = config.batch_size, config.num_steps
        self.steps_per_epoch = info.num_images / config.batch_size
        self.metrics: Sequence[Metric] = RPN_METRICS if self.stage == "rpn" else AP_METRICS
        ranked_by = "ar1000" if self.stage == "rpn" else "ap"
        self.score: Metric = next(metric for metric in self.metrics if metric.name == ranked_by)

        self.detector = build_detector(config, info.num_classes, place)
        self.schedule = recipe.schedule_of(config)
        frozen = partial(network.frozen, num_stages=config.frozen_stages)
        self.optimizer = recipe.optimizer_of(config, self.schedule, frozen)
        self._loss_fn = self.detector.rpn_loss if self.stage == "rpn" else self.detector.fast_rcnn_loss
        self.plain_step: Step = partial(
            train_step, loss_fn=self._loss_fn, optimizer=self.optimizer, model=self.detector, seed=config.seed
        )
        # All gradients are checked: those of the first layer, which is frozen, are always 0.
        step: Step = partial(self.plain_step, mesh=place.mesh, check_all=True)
        if config.on_nonfinite == "skip":
            step = skipping_nonfinite(step)
        everywhere, split = sharding.replicated(place.mesh), sharding.batch_sharding(place.mesh)
        self.train_step = jax.jit(step, in_shardings=(everywhere, split), out_shardings=everywhere, donate_argnums=0)
        self.evaluation_step = jax.jit(self._find, in_shardings=(everywhere, split), out_shardings=everywhere)
        self.create_state = jax.jit(self._fresh_state, out_shardings=everywhere)

    # ---------------------------------------------------------------------------------------------- For the loop

    def batches(self, start_step: int) -> Generator[DetectionBatch]:
        """Yield this process's rows of the global batches from `start_step` to the end of the stage."""
        assert self.training is not None
        return train_batches(
            self.training,
            evaluation.sizes_of(self.config),
            batch_size=self.batch_size,
            seed=self.config.seed,
            steps=range(start_step, self.total_steps),
            max_boxes=self.config.data.max_boxes,
            process=(self.place.process_index, self.place.process_count),
            num_threads=self.config.data.num_threads,
        )

    def initial_state(self, log: Callable[[str], None]) -> TrainState:
        """Return the state at step 0: the classifier's weights, and in the second stage the RPN of the first."""
        state = self.create_state()
        params, stats = self._pretrained(state, log)
        if self.stage == "fast_rcnn":
            assert self._rpn_dir is not None
            rpn = read_variables(locate(self._rpn_dir), sharding.replicated(self.place.mesh))
            stats = {"fast_rcnn": stats, "rpn": rpn}
        return state.replace(params=params, batch_stats=stats)

    def _pretrained(self, state: TrainState, log: Callable[[str], None]) -> tuple[PyTree, PyTree]:
        """Return parameters and statistics: a classifier's, but for the layers that it does not have."""
        checkpoint = locate(self.config.init_from)
        theirs = read_variables(checkpoint, sharding.replicated(self.place.mesh))
        stats = state.batch_stats if self.stage == "rpn" else state.batch_stats["fast_rcnn"]
        new = {name: value for name, value in state.params.items() if name in NEW_LAYERS}
        ours = {"params": {name: state.params[name] for name in state.params.keys() - new.keys()}, "batch_stats": stats}
        taken = {
            kind: {name: value for name, value in theirs.get(kind, {}).items() if name in ours[kind]} for kind in ours
        }
        advice = "Give the checkpoint of a classifier with the network of model.name, --config.init_from=DIR."
        require_same_arrays(checkpoint, ours, taken, advice)
        log(f"starting from {checkpoint}: {len(jax.tree.leaves(ours)):,} arrays are taken; new: {', '.join(new)}")
        return {**taken["params"], **new}, taken["batch_stats"]

    def require_same_data(self, saved: dict[str, Any], workdir: str) -> None:
        """Raise UserError if a checkpoint of `workdir` was trained on other classes."""
        builders.require_same_classes(self.dataset, saved, workdir)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update that follows `step` updates; biases have twice as much."""
        return float(self.schedule(step))

    def evaluate(self, variables: PyTree, step: int, workdir: str) -> dict[str, float]:
        """Return the recall of proposals, or COCO's AP; write the detections and a few pictures to the workdir."""
        source = self.validation
        assert source is not None
        label = "proposals" if self.stage == "rpn" else "evaluate"
        args = source, self.config, self.place, label
        found = evaluation.find_all(self.evaluation_step, variables, *args)
        if self.stage == "rpn":
            row = evaluation.score_proposals(source, found)
        else:
            row = evaluation.score_detections(source, found, self.config)
            if self.place.is_primary:
                write_results(epath.Path(workdir) / RESULTS_FILE, source.data, found)
                pictures.write(workdir, step, evaluation.draw_some(source, found, self.config.evaluate.pictures))
        return {**row, "images": len(source)}

    def final_evaluation(self, variables: PyTree, step: int, description: dict[str, Any], workdir: str) -> dict:
        """Never called: there is no final phase."""
        raise NotImplementedError

    def flops_per_image(self) -> float:
        """Return the floating-point operations of training on one image of the first size.

        Backward counts twice forward. Frozen layers have no backward pass, so this is an upper limit.
        """
        state, batch = self.state_shapes(), self.batch_shapes(0)
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), batch)
        keys = jax.eval_shape(lambda: image_keys(0, jnp.int32(0), 1))
        program = jax.make_jaxpr(self._loss_fn)(state.params, state.batch_stats, one, keys)
        return 2.0 * 3 * sum(found.counts.multiply_adds for found in products(program.jaxpr))

    # ---------------------------------------------------------------------------------- For the compile report too

    def state_shapes(self) -> TrainState:
        """Return the state as shapes with shardings."""
        everywhere = sharding.replicated(self.place.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            jax.eval_shape(self.create_state),
        )

    def batch_shapes(self, size: int = 0) -> DetectionBatch:
        """Return a global training batch of one of the static sizes as shapes with shardings."""
        shape = partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(self.place.mesh))
        images, max_boxes = (self.batch_size,), self.config.data.max_boxes
        height, width = evaluation.sizes_of(self.config).canvases_px[size]
        return DetectionBatch(
            image=shape((*images, height, width, 3), "uint8"),
            size_px=shape((*images, 2), "float32"),
            scale=shape(images, "float32"),
            boxes=shape((*images, max_boxes, 4), "float32"),
            label=shape((*images, max_boxes), "int32"),
            crowd=shape((*images, max_boxes), "bool"),
            image_id=shape(images, "int32"),
            mask=shape(images, "float32"),
        )

    # -------------------------------------------------------------------------------------------------- Functions

    def _fresh_state(self) -> TrainState:
        rpn_key, fast_key = jax.random.split(seed_key(self.config.seed))
        images = jnp.zeros((1, 64, 64, 3), jnp.float32)
        size_px = jnp.full((1, 2), 64, jnp.float32)
        rpn = self.detector.rpn.init(rpn_key, images, size_px)
        if self.stage == "rpn":
            params, stats = rpn["params"], rpn["batch_stats"]
        else:
            regions = jnp.array([[[0, 0, 31, 31]]], jnp.float32)
            own = self.detector.fast_rcnn.init(fast_key, images, size_px, regions)
            params, stats = own["params"], {"fast_rcnn": own["batch_stats"], "rpn": dict(rpn)}
        return TrainState(jnp.zeros((), jnp.int32), params, stats, self.optimizer.init(params))

    def _find(self, variables: PyTree, batch: DetectionBatch) -> Any:
        if self.stage == "rpn":
            found = self.detector.proposals(variables, batch, EVALUATED_PROPOSALS)
        else:
            found = self.detector.detect(variables, batch)
        return found, batch.image_id, batch.mask
