"""Weights with recomputed batch-norm statistics, as a checkpoint in a workdir of their own inside that of the run."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from resnext_jax.builders import facts, open_data, same_classes, same_on_all_hosts, training_batches
from resnext_jax.checkpoint import DIRECTORY, Checkpoints, absolute, finished_steps, read_variables
from resnext_jax.data.sources import Source
from resnext_jax.errors import UserError, raise_all
from resnext_jax.evaluate.opened import Trained
from resnext_jax.evaluate.recompute import average_statistics
from resnext_jax.evaluate.validation import show_progress
from resnext_jax.runtime.writer import MetricsWriter
from resnext_jax.sharding import Place, check_batch_size, from_first_process, put_replicated, replicated
from resnext_jax.train.assemble import jit_statistics
from resnext_jax.train.report import RECOMPUTED
from resnext_jax.types import PyTree, TrainState

DEFAULT_IMAGES = 8192  # pycls's


def place_of(workdir: str, step: int) -> epath.Path:
    """Where the checkpoint of `step` lies, with recomputed statistics."""
    return absolute(workdir) / RECOMPUTED / DIRECTORY / str(step)


def is_there(path: epath.Path, place: Place) -> bool:
    """Whether that checkpoint is whole: in a bucket one that a kill cut short lies there, too."""
    return bool(from_first_process(place, int(path.name) in finished_steps(path.parent)))


def recompute_bn(
    config: ConfigDict,
    statistics_step: Callable,
    variables: PyTree,
    step: int,
    description: dict[str, Any],
    source: Source,
    workdir: str,
    place: Place,
) -> PyTree:
    """The same weights with statistics over the training batches that would come next; saved, if they are not yet.

    Args:
      config: `recompute_bn_images` says how many images, in whole batches (0: as many as pycls takes).
      statistics_step: see `assemble.jit_statistics`.
      variables: `params` and `batch_stats`, replicated.
      step: the steps that they were trained for; the batches are those of the steps after it.
      description: of their checkpoint.
      source: the training images.
      workdir: of the run; the checkpoint is written to `workdir/recomputed_bn`. It has no optimizer.
      place: the devices and this process.

    Returns:
      The variables, as they were read back.
    """
    path = place_of(workdir, step)
    if not is_there(path, place):
        num_batches = math.ceil((config.get("recompute_bn_images") or DEFAULT_IMAGES) / config.batch_size)
        batches = training_batches(config, source, place, step, step + num_batches)
        progress = show_progress(place, "batch norm", num_batches, "batch")
        stats = average_statistics(
            statistics_step, variables, batches, step, place, lambda done: progress.update(done, "")
        )
        progress.close()
        state = TrainState(
            step=jnp.asarray(step, jnp.int32),
            params=variables["params"],
            batch_stats=put_replicated(place.mesh, stats),
            opt_state={},
        )
        checkpoints = Checkpoints(str(epath.Path(workdir) / RECOMPUTED), keep_newest=1_000_000, keep_best=0)
        images = {"recomputed_bn_images": num_batches * config.batch_size}
        checkpoints.save(state, description, None, images)
        checkpoints.close()
    return read_variables(path, replicated(place.mesh))


def recompute_checkpoint(trained: Trained) -> tuple[epath.Path, dict[str, float]]:
    """`recompute_bn` of a checkpoint, outside any run: where it was written, and its evaluation.

    Raises:
      UserError: it is there already, or the training images are not those of the checkpoint.
    """
    config, place, step = trained.config, trained.place, int(trained.checkpoint.name)
    raise_all(check_batch_size("batch_size", config.batch_size, place.mesh.size))
    workdir = str(trained.checkpoint.parent.parent)
    path = place_of(workdir, step)
    if is_there(path, place):
        raise UserError(f"{path} is there already, and is never overwritten: move it away to make it anew.")
    source = open_data(config, "train")
    same_classes(facts(source.info), trained.description["dataset"], str(trained.checkpoint))
    same_on_all_hosts(place, train=source)
    statistics_step = jit_statistics(config, trained.model, place.mesh)
    args = config, statistics_step, trained.variables, step, trained.description, source, workdir, place
    row = trained.evaluate(recompute_bn(*args))
    if place.is_primary:
        writer = MetricsWriter(str(path.parent.parent), step)
        writer.write(step, step * config.batch_size / len(source), RECOMPUTED, row)
        writer.close()
    return path, row
