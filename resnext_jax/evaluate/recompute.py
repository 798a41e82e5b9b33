"""Batch-norm statistics of trained weights, averaged over many training batches instead of the last few.

During training the running statistics follow weights that change. After training, the mean and the unbiased variance
of every batch-norm group are averaged over many images with equal weights, as in the code of the published ResNets
(He et al.: statistics "on a sufficiently large training batch after training") and in pycls ("precise BN").
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from resnext_jax import metrics, sharding
from resnext_jax.builders import (
    build_augment,
    facts,
    open_data,
    require_same_classes,
    require_same_on_all_hosts,
    training_batches,
)
from resnext_jax.checkpoint import DIRECTORY, Checkpoints, absolute, finished_steps, read_variables
from resnext_jax.data.sources import Source
from resnext_jax.errors import UserError, raise_all
from resnext_jax.evaluate.loaded import LoadedCheckpoint
from resnext_jax.evaluate.validation import show_progress
from resnext_jax.models.layers import BN_MOMENTUM
from resnext_jax.models.zoo import Network
from resnext_jax.ops.augment import image_keys
from resnext_jax.runtime.writer import MetricsWriter
from resnext_jax.types import Batch, PyTree, TrainState

# Directory of the checkpoints with recomputed statistics in a workdir, and phase of their row in its metrics.
RECOMPUTED = "recomputed_bn"
DEFAULT_IMAGES = 8192  # as in pycls


def statistics_step(
    variables: PyTree,
    batch: Batch,
    step: Int[Array, ""],
    *,
    model: Network,
    augment: Callable[[Array, Array], Array],
    seed: int,
    mesh: Mesh,
) -> PyTree:
    """`batch_stats` of one training batch alone: the means over its groups of their mean and unbiased variance.

    Args:
      variables: `params` and `batch_stats`; of these only the shapes are used.
      step: with the seed it keys the augmentation, as in training.
      model, augment, seed, mesh: as for `train.step.train_step`.
    """
    keys = image_keys(seed, step, batch.label.shape[0])
    images_per_unit = model.bn_group_images * mesh.size
    apart = images_per_unit > 0 and batch.label.shape[0] % images_per_unit == 0
    # From zeros one update leaves this share of the batch's own statistics.
    share = (1.0 - BN_MOMENTUM) * (mesh.size if apart else 1)

    def compute(variables: PyTree, rows: tuple[Batch, Array]) -> PyTree:
        batch, keys = rows
        _, updated = model.apply(variables, augment(batch.image, keys), train=True, keys=keys, mutable=["batch_stats"])
        return jax.tree.map(lambda stat: stat / share, updated["batch_stats"])

    everywhere = sharding.sum_over_devices(compute, mesh) if apart else compute
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    return everywhere({"params": variables["params"], "batch_stats": zeros}, (batch, keys))


def average_statistics(
    step: Callable[[PyTree, Batch, np.int32], PyTree],
    variables: PyTree,
    batches: Iterable[Batch],
    first_step: int,
    place: sharding.Place,
    progress: Callable[[int], None] = lambda done: None,
) -> PyTree:
    """The mean of `step(variables, batch, number)` over all batches, added in float64 on the host.

    Args:
      step: `statistics_step`, jitted with its keyword arguments bound.
      variables: `params` and `batch_stats`, replicated.
      batches: this process's rows of each.
      first_step: the number of the first batch.
      progress: called with the number of batches done.

    Returns:
      `batch_stats`, float32, on the host.
    """
    total, done, pending = None, 0, None
    for number, batch in enumerate(batches, start=first_step):
        running = step(variables, sharding.to_global(place.mesh, batch), np.int32(number))
        # One batch behind: the host fetches the last statistics while the device computes the next.
        if pending is not None:
            total, done = _added(total, pending), done + 1
            progress(done)
        pending = running
    if pending is None:
        raise ValueError("no batches")
    total, done = _added(total, pending), done + 1
    progress(done)
    return jax.tree.map(lambda stat: (stat / done).astype(np.float32), total)


def _added(total: PyTree | None, stats: PyTree) -> PyTree:
    stats = jax.tree.map(lambda stat: stat.astype(np.float64), jax.device_get(stats))
    return stats if total is None else metrics.add(total, stats)


def jit_statistics(config: ConfigDict, model: Network, mesh: Mesh) -> Callable:
    """Return (variables, batch, step) -> batch-norm statistics of that training batch, jitted for the devices."""
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        partial(statistics_step, model=model, augment=build_augment(config), seed=config.seed, mesh=mesh),
        in_shardings=(everywhere, split, everywhere),
        out_shardings=everywhere,
    )


# ------------------------------------------------------------------------------------------------ Saved in a workdir


def recompute_bn(
    config: ConfigDict,
    model: Network,
    variables: PyTree,
    step: int,
    description: dict[str, Any],
    source: Source,
    workdir: str,
    place: sharding.Place,
) -> PyTree:
    """Recompute statistics over the training batches that would come next, save them once, and return the variables.

    Args:
      config: resolved config. `recompute_bn_images` is the number of images, rounded up to whole batches (0: as many as
        pycls takes).
      variables: `params` and `batch_stats`, replicated.
      step: number of steps that they were trained for. The batches are those of the steps after it.
      description: JSON item of their checkpoint.
      workdir: workdir of the run. The checkpoint is written to `workdir/recomputed_bn`, without optimizer state.

    Returns:
      The variables as they were read back.
    """
    path = checkpoint_path(workdir, step)
    if not is_saved(path, place):
        num_batches = math.ceil((config.get("recompute_bn_images") or DEFAULT_IMAGES) / config.batch_size)
        batches = training_batches(config, source, place, step, step + num_batches)
        progress = show_progress(place, "batch norm", num_batches, "batch")
        stats = average_statistics(
            jit_statistics(config, model, place.mesh),
            variables,
            batches,
            step,
            place,
            lambda done: progress.update(done, ""),
        )
        progress.close()
        state = TrainState(
            step=jnp.asarray(step, jnp.int32),
            params=variables["params"],
            batch_stats=sharding.put_replicated(place.mesh, stats),
            opt_state={},
        )
        checkpoints = Checkpoints(str(epath.Path(workdir) / RECOMPUTED), keep_newest=1_000_000, keep_best=0)
        checkpoints.save(state, description, {"recomputed_bn_images": num_batches * config.batch_size})
        checkpoints.close()
    return read_variables(path, sharding.replicated(place.mesh))


def checkpoint_path(workdir: str, step: int) -> epath.Path:
    """Return where the checkpoint of `step` with recomputed statistics belongs."""
    return absolute(workdir) / RECOMPUTED / DIRECTORY / str(step)


def is_saved(path: epath.Path, place: sharding.Place) -> bool:
    """Return whether that checkpoint is complete. In a bucket, one that a kill cut short exists too."""
    return bool(sharding.from_first_process(place, int(path.name) in finished_steps(path.parent)))


def recompute_checkpoint(loaded: LoadedCheckpoint) -> tuple[epath.Path, dict[str, float]]:
    """Recompute the statistics of a checkpoint outside a run, and return where they were saved and their evaluation.

    Raises:
      UserError: they exist already, or the training images are not those of the checkpoint.
    """
    config, place, name = loaded.config, loaded.place, loaded.checkpoint.name
    problems = sharding.check_batch_size("batch_size", config.batch_size, place.mesh.size)
    if not name.isdecimal() or loaded.checkpoint.parent.name != DIRECTORY:
        problems.append(
            f"recompute_bn writes beside {DIRECTORY}/STEP of a workdir, and {loaded.checkpoint} is not in one: copy it "
            f"to DIR/{DIRECTORY}/STEP, and give --workdir=DIR."
        )
    raise_all(problems)
    step = int(name)
    workdir = str(loaded.checkpoint.parent.parent)
    path = checkpoint_path(workdir, step)
    if is_saved(path, place):
        raise UserError(f"{path} is there already, and is never overwritten: move it away to make it anew.")
    source = open_data(config, "train")
    require_same_classes(facts(source.info), loaded.description["dataset"], str(loaded.checkpoint))
    require_same_on_all_hosts(place, train=source)
    args = config, loaded.model, loaded.variables, step, loaded.description, source, workdir, place
    row = loaded.evaluate(recompute_bn(*args))
    if place.is_primary:
        writer = MetricsWriter(str(path.parent.parent))
        writer.write(step, step * config.batch_size / len(source), RECOMPUTED, row)
        writer.close()
    return path, row
