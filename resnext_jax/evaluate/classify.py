"""Exact top-1, top-5 and loss over any number of images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from resnext_jax import metrics
from resnext_jax.data.pipeline import evaluation_batches
from resnext_jax.data.sources import Source
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
    """Logits (batch, classes), with the running statistics; with `features` also the activations of every stage.

    Args:
      variables: `params` and `batch_stats`.
      images: (batch, height, width, channel), uint8 or float, on the scale 0..255.
      model: the network.
      mean, std: of the normalisation, per channel, on the same scale.
      features: see `models.template.ResNeXt`.
    """
    return model.apply(variables, normalize(images.astype("float32"), mean, std), train=False, features=features)


def evaluation_step(
    variables: PyTree, batch: Batch, *, model: Network, mean: Sequence[float], std: Sequence[float]
) -> metrics.Sums:
    """The sums of one batch; padding is masked."""
    logits = predict_step(variables, batch.image, model=model, mean=mean, std=std)
    return metrics.count(logits, batch.label, batch.mask)


def evaluate(
    step: Callable[[PyTree, Batch], metrics.Sums],
    variables: PyTree,
    source: Source,
    place: Place,
    *,
    batch_size: int,
    image_size_px: int,
    resize_px: int,
    crop: str,
    num_threads: int,
    interpolation: str = "bicubic",
    progress: Callable[[metrics.Sums], None] = lambda sums: None,
) -> metrics.Sums:
    """Adds the sums of every image of `source`, on the host and in float64, so that their number does not round.

    Args:
      step: `evaluation_step`, jitted with its keyword arguments bound.
      variables: `params` and `batch_stats`, replicated.
      source: the images.
      place: the devices and this process.
      batch_size, image_size_px, resize_px, crop, num_threads, interpolation: see `data.pipeline.evaluation_batches`.
      progress: called with the sums so far after each batch.
    """
    batches = evaluation_batches(
        source,
        batch_size=batch_size,
        image_size_px=image_size_px,
        resize_px=resize_px,
        crop=crop,
        interpolation=interpolation,
        process_index=place.process_index,
        process_count=place.process_count,
        num_threads=num_threads,
    )
    total, pending = metrics.zeros(), None
    for batch in batches:
        running = step(variables, to_global(place.mesh, batch))
        # One batch behind: the host fetches the last sums while the device computes the next.
        if pending is not None:
            total = metrics.add(total, _on_host(pending))
            progress(total)
        pending = running
    if pending is not None:
        total = metrics.add(total, _on_host(pending))
        progress(total)
    return total


def _on_host(sums: metrics.Sums) -> metrics.Sums:
    host = jax.device_get(sums)
    return metrics.Sums(
        loss=host.loss.astype("float64"),
        top1=host.top1.astype("int64"),
        top5=host.top5.astype("int64"),
        images=host.images.astype("int64"),
    )
