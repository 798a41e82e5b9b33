"""Batch-norm statistics of trained weights: averages over many training batches instead of the last few.

While training, the running statistics follow weights that change. Once these stand, the mean and the unbiased variance
of every batch-norm group are averaged over many images, all with the same weight, as in the code of the published
ResNets (He et al.: statistics "on a sufficiently large training batch after training") and in pycls ("precise BN").
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from resnext_jax import metrics, sharding
from resnext_jax.models.layers import BN_MOMENTUM
from resnext_jax.models.zoo import Network
from resnext_jax.ops.augment import image_keys
from resnext_jax.types import Batch, PyTree


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
      batch: a training batch.
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
      place: the devices and this process.
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
