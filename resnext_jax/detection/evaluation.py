"""Run a detector on all images of a data set, and score what it finds."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from resnext_jax.data.crops import pixels
from resnext_jax.detection.average_precision import evaluate, proposal_recall, require_each_once
from resnext_jax.detection.batches import evaluation_batches
from resnext_jax.detection.draw import draw_detections
from resnext_jax.detection.results import evaluate_by_pycocotools, from_corners, join
from resnext_jax.detection.sizes import Sizes
from resnext_jax.detection.sources import DetectionSource
from resnext_jax.detection.types import Detections
from resnext_jax.evaluate.validation import show_progress
from resnext_jax.sharding import Place, to_global
from resnext_jax.types import PyTree

PICTURES = "pictures"


def sizes_of(config: ConfigDict) -> Sizes:
    """Return how the images of a config are resized."""
    sides = [int(side) for side in config.data.canvases_px]
    canvases = tuple(zip(sides[::2], sides[1::2], strict=True))
    return Sizes(config.data.short_side_px, config.data.long_side_px, canvases)


def find_all(
    step: Callable[[PyTree, PyTree], Any],
    variables: PyTree,
    source: DetectionSource,
    config: ConfigDict,
    place: Place,
    label: str,
) -> Detections:
    """Return what a jitted step finds in all images, on every process; each image counts once.

    Args:
      step: (variables, batch) -> (detections of every image, image_id, mask), all replicated.
      label: name of the progress line.
    """
    progress = show_progress(place, label, len(source), "image")
    parts, seen = [], []
    batches = evaluation_batches(
        source,
        sizes_of(config),
        batch_size=config.evaluate.batch_size,
        process=(place.process_index, place.process_count),
        num_threads=config.data.num_threads,
    )
    for batch in batches:
        found, image_id, mask = jax.device_get(step(variables, to_global(place.mesh, batch)))
        kept = mask > 0
        seen += image_id[kept].tolist()
        # A box may reach half a pixel beyond the border, because the size of the resized image is rounded.
        limit = np.tile(source.data.size_px[image_id][:, None, ::-1] - 1, 2).astype(np.float32)
        boxes = np.clip(found.boxes, 0, limit)
        parts.append(from_corners(boxes, found.score, found.label, image_id, found.present & kept[:, None]))
        progress.update(len(seen), "")
    progress.close()
    require_each_once(np.asarray(seen), len(source))
    return join(parts)


def score_detections(source: DetectionSource, found: Detections, config: ConfigDict) -> dict[str, float]:
    """Return COCO's twelve numbers, computed as `evaluate.coco` asks."""
    if config.evaluate.coco == "pycocotools":
        return evaluate_by_pycocotools(source.data, found)
    return evaluate(source.data, found).summary


def score_proposals(source: DetectionSource, found: Detections) -> dict[str, float]:
    """Return the recall of proposals; see `average_precision.proposal_recall`."""
    return proposal_recall(source.data, found)


def of_image(found: Detections, index: int) -> Detections:
    """Return the detections of one image."""
    own = found.image == index
    return Detections(found.image[own], found.label[own], found.score[own], found.boxes[own])


def draw_some(source: DetectionSource, found: Detections, count: int) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """Return pictures of some images with their boxes, by file name; always the same images, spread over the set."""
    indices = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist() if count else []
    pictures = {}
    for index in indices:
        name = epath.Path(source.locate(index)).stem
        image = pixels(source[index], 3)
        pictures[f"{name}.png"] = draw_detections(image, of_image(found, index), source.data.class_names)
    return pictures
