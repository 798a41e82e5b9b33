"""Evaluation on the validation images, prepared as a config says."""

from collections.abc import Callable, Generator

from ml_collections import ConfigDict

from resnext_jax import metrics
from resnext_jax.data.crops import Crop
from resnext_jax.data.decode import TORCH7
from resnext_jax.data.pipeline import evaluation_batches
from resnext_jax.data.sources import Source
from resnext_jax.evaluate.classify import evaluate
from resnext_jax.progress import Progress, Silent
from resnext_jax.sharding import Place
from resnext_jax.types import Batch, PyTree


def evaluate_all(
    config: ConfigDict, step: Callable, variables: PyTree, source: Source, place: Place
) -> dict[str, float]:
    """Return loss, top-1, top-5 and the number of images of `source`, from center crops."""
    batches = center_batches(config, source, place)
    return metrics.means(sums := add_up(step, variables, batches, source, place)) | {"images": int(sums.images)}


def add_up(step: Callable, variables: PyTree, batches: Generator[Batch], source: Source, place: Place) -> metrics.Sums:
    """Add up the sums of the batches of `source`, with a progress line."""
    progress = show_progress(place, "evaluate", len(source), "image")
    sums = evaluate(
        step,
        variables,
        batches,
        place,
        progress=lambda sums: progress.update(int(sums.images), evaluation_line(sums)),
    )
    progress.close()
    return sums


def center_batches(
    config: ConfigDict, source: Source, place: Place, *, image_size_px: int | None = None, resize_px: int | None = None
) -> Generator[Batch]:
    """Yield this process's rows of the batches of an evaluation; by default in the sizes of the config."""
    crop = Crop(
        config.data.crop,
        image_size_px or config.data.image_size_px,
        resize_px or config.data.resize_px,
        config.data.interpolation,
        config.data.get("rounding", TORCH7),
    )
    return evaluation_batches(
        source,
        crop,
        batch_size=config.evaluate.batch_size,
        process=(place.process_index, place.process_count),
        num_threads=config.data.num_threads,
    )


def show_progress(place: Place, label: str, total: int, unit: str) -> Progress | Silent:
    """Return the progress line of one phase; only the primary process shows one."""
    return Progress(label, total, unit) if place.is_primary else Silent()


def evaluation_line(sums: metrics.Sums) -> str:
    """Return the end of the progress line of an evaluation."""
    if not sums.images:  # of ReaL's labels, some images have none
        return ""
    row = metrics.means(sums)
    return f"loss {row['loss']:.4f}  top-1 {row['top1']:.2%}  top-5 {row['top5']:.2%}"
