"""The validation images, as a config prepares them."""

from collections.abc import Callable

from ml_collections import ConfigDict

from resnext_jax import metrics
from resnext_jax.data.sources import Source
from resnext_jax.evaluate.classify import evaluate
from resnext_jax.progress import Progress, Silent
from resnext_jax.sharding import Place
from resnext_jax.train import report
from resnext_jax.types import PyTree


def evaluate_all(
    config: ConfigDict, step: Callable, variables: PyTree, source: Source, place: Place
) -> dict[str, float]:
    """Loss, top-1, top-5 and the number of images of `source`, as the config prepares them."""
    progress = show_progress(place, "evaluate", len(source), "image")
    sums = evaluate(
        step,
        variables,
        source,
        place,
        batch_size=config.evaluate.batch_size,
        image_size_px=config.data.image_size_px,
        resize_px=config.data.resize_px,
        crop=config.data.crop,
        interpolation=config.data.get("interpolation", "bicubic"),  # which checkpoints of before do not have
        num_threads=config.data.num_threads,
        progress=lambda sums: progress.update(int(sums.images), report.evaluation_line(sums)),
    )
    progress.close()
    return metrics.means(sums) | {"images": int(sums.images)}


def show_progress(place: Place, label: str, total: int, unit: str, start: int = 0) -> Progress | Silent:
    """The progress line of one phase; only the first process has one."""
    return Progress(label, total, unit, start) if place.speaks else Silent()
