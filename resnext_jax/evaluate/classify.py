"""Exact top-1, top-5 and loss over any number of images."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from resnext_jax import metrics
from resnext_jax.models.zoo import Network
from resnext_jax.ops.augment import normalize
from resnext_jax.sharding import Place, to_global
from resnext_jax.types import Batch, PyTree


def predict_step(
    variables: PyTree,
    images: jax.Array,
    *,
    model: Network,
    mean: Sequence[float],
    std: Sequence[float],
    features: bool = False,
) -> Any:
    """Return logits (batch, classes) in inference mode; with `features` also the activations of every stage.

    Args:
      variables: `params` and `batch_stats`.
      images: (batch, height, width, channel), uint8 or float, on the scale 0..255.
      mean, std: normalization per channel, on the same scale.
      features: see `models.resnext.ResNeXt`.
    """
    return model.apply(variables, normalize(images.astype("float32"), mean, std), train=False, features=features)


def evaluation_step(
    variables: PyTree,
    batch: Batch,
    *,
    model: Network,
    mean: Sequence[float],
    std: Sequence[float],
    present: Bool[np.ndarray, " classes"] | None = None,
) -> metrics.Sums:
    """The sums of one batch; padding is masked. With `present` also among these classes (`metrics.PresentSums`)."""
    logits = predict_step(variables, batch.image, model=model, mean=mean, std=std)
    if present is not None:
        return metrics.count_present(logits, batch.label, batch.mask, present)
    return metrics.count(logits, batch.label, batch.mask)


def evaluate(
    step: Callable[[PyTree, Batch], metrics.Sums],
    variables: PyTree,
    batches: Iterable[Batch],
    place: Place,
    *,
    progress: Callable[[metrics.Sums], None] = lambda sums: None,
) -> metrics.Sums:
    """Adds the sums of all batches, on the host and in float64, so that their number does not round.

    Args:
      step: `evaluation_step`, or `protocols.score_step`, jitted with its keyword arguments bound.
      variables: what the step takes, replicated.
      batches: this process's rows of each, numpy (`data.pipeline.evaluation_batches`, `data.views.view_batches`).
      progress: called with the sums so far after each batch.
    """
    total, pending = None, None

    def add(sums: metrics.Sums) -> metrics.Sums:
        host = _on_host(sums)
        return host if total is None else metrics.add(total, host)

    for batch in batches:
        running = step(variables, to_global(place.mesh, batch))
        # One batch behind: the host fetches the last sums while the device computes the next.
        if pending is not None:
            total = add(pending)
            progress(total)
        pending = running
    if pending is not None:
        total = add(pending)
        progress(total)
    return metrics.zeros() if total is None else total


def _on_host(sums: metrics.Sums) -> metrics.Sums:
    host = jax.device_get(sums)
    return jax.tree.map(np.int64, host).replace(loss=np.float64(host.loss))
