"""Batches of images and boxes by step, in a few static sizes; threads read ahead (`data.stream`).

Sources: py-faster-rcnn, lib/datasets/coco.py (boxes) and lib/datasets/imdb.py (`append_flipped_images`).
"""

import dataclasses
from collections.abc import Generator

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt8

from resnext_jax.data import resize
from resnext_jax.data.crops import crop_rng, pixels
from resnext_jax.data.pipeline import local_rows
from resnext_jax.data.readers import Record
from resnext_jax.data.stream import Watched, batches, example
from resnext_jax.detection.coco import kept_in_training
from resnext_jax.detection.order import SizedOrder
from resnext_jax.detection.sizes import Sizes
from resnext_jax.detection.sources import DetectionSource, size_problem
from resnext_jax.detection.types import MAX_BOXES, DetectionBatch, DetectionData
from resnext_jax.errors import UserError
from resnext_jax.types import Batch, PyTree

Pixels = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class _Boxes:
    """Boxes of training with corners in pixels of the original image, and the range of each image."""

    corners: Float64[np.ndarray, "boxes 4"]
    label: Int[np.ndarray, " boxes"]
    crowd: Bool[np.ndarray, " boxes"]
    starts: Int[np.ndarray, " images_and_one"]


def _boxes(source: DetectionSource, max_boxes: int) -> _Boxes:
    data, own = source.data, source.data.annotations
    size_px = data.size_px[own.image].astype(np.int64)
    kept = kept_in_training(own.boxes, size_px)
    box, last = own.boxes[kept], size_px[kept][:, ::-1] - 1
    low, high = box[:, :2], box[:, :2] + np.maximum(box[:, 2:] - 1, 0)
    corners = np.concatenate([np.clip(low, 0, last), np.clip(high, 0, last)], 1)
    starts = np.searchsorted(own.image[kept], np.arange(len(data) + 1))
    counts = np.diff(starts)
    if counts.max() > max_boxes:
        worst = int(counts.argmax())
        raise UserError(
            f"{(counts > max_boxes).sum():,} of {len(data):,} images have more than max_boxes = {max_boxes} boxes, up "
            f"to {counts[worst]} ({data.files[worst]}). A batch fits so many in each image: set "
            f"--config.data.max_boxes={counts[worst]}."
        )
    return _Boxes(corners, own.label[kept], own.crowd[kept], starts)


def prepare_image(image: Pixels, sizes: Sizes, *, flip: bool = False) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Return the image, mirrored where `flip` says so, and resized."""
    [(height, width)] = sizes.resized(np.array([image.shape[:2]])).tolist()
    return resize.scale(np.ascontiguousarray(image[:, ::-1]) if flip else image, height, width, "bilinear")


def flipped(corners: Float64[np.ndarray, "boxes 4"], width: int) -> Float64[np.ndarray, "boxes 4"]:
    """Return boxes x1, y1, x2, y2 in the mirrored image of this width: x becomes width - x - 1."""
    x1, y1, x2, y2 = corners.T
    return np.stack([width - x2 - 1, y1, width - x1 - 1, y2], 1)


def single(image: Pixels, sizes: Sizes) -> DetectionBatch:
    """Return a batch of one image of any size, without boxes, for prediction.

    Raises:
      UserError: it fits into none of the static sizes.
    """
    size_px = np.array([image.shape[:2]])
    batch = _zeros(1, sizes.canvases_px[int(sizes.canvas(size_px)[0])], 1)
    _fill_image(batch.image, 0, prepare_image(image, sizes))
    batch.image["scale"][0] = sizes.scale(size_px)[0]
    batch.mask[0] = 1
    return _detection_batch(batch)


def train_batches(
    source: DetectionSource,
    sizes: Sizes,
    *,
    batch_size: int,
    seed: int,
    steps: range,
    max_boxes: int = MAX_BOXES,
    process: tuple[int, int] = (0, 1),
    num_threads: int = 2,
) -> Generator[DetectionBatch]:
    """Return this process's rows of the global batches of some steps; every batch is of one size.

    Half of the images, drawn by (seed, step, row), are mirrored. Images without boxes are there too; boxes are clipped
    to their image, and left out where nothing is left of them.

    Args:
      source, sizes: images, and how they are resized.
      batch_size: images in a global batch, a multiple of the number of processes.
      seed: seed of the order and the mirroring, 0 or more.
      steps: steps to yield; a resumed run begins with the number of steps done.
      max_boxes: places for the boxes of an image.
      process: index of this process and number of processes.
      num_threads: threads that read the coming batches; 0 reads each when asked for it.

    Raises:
      UserError: at the call, for arguments or images that do not fit; while iterating, for an image that cannot be
        read, or whose reading hangs.
    """
    rows = local_rows(batch_size, process)
    if seed < 0:
        raise UserError(f"seed {seed} is negative; it must be 0 or more. Change --config.seed.")
    canvas, boxes = sizes.canvas(source.data.size_px), _boxes(source, max_boxes)
    order = SizedOrder(canvas, num_sizes=len(sizes.canvases_px), batch_size=batch_size, seed=seed)
    watched = Watched(source)
    filler = _Rows(source.data, watched, sizes, boxes)

    def fill(batch: Batch, step: int, part: range) -> None:
        for i, index in enumerate(order.at(step).images[part.start : part.stop].tolist()):
            flip = bool(crop_rng(seed, step, part.start + i).random() < 0.5)
            filler.fill(batch, i, index, flip=flip)

    return _converted(
        batches(
            fill,
            images=lambda step: _zeros(len(rows), sizes.canvases_px[order.at(step).size], max_boxes).image,
            steps=steps,
            rows=rows,
            watched=watched,
            num_threads=num_threads,
        )
    )


def evaluation_batches(
    source: DetectionSource,
    sizes: Sizes,
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    num_threads: int = 2,
) -> Generator[DetectionBatch]:
    """Return every image once, those of one size together; the same number of batches on every process.

    There are no boxes in these batches: the evaluation takes them from the data set. The last batch of each size is
    filled up with rows of mask 0. The arguments and errors are otherwise those of `train_batches`.
    """
    rows, watched = local_rows(batch_size, process), Watched(source)
    filler = _Rows(source.data, watched, sizes, None)
    canvas = sizes.canvas(source.data.size_px)
    groups = [(size, np.flatnonzero(canvas == size)) for size in np.unique(canvas).tolist()]
    steps = [
        (size, members[start : start + batch_size].tolist())
        for size, members in groups
        for start in range(0, len(members), batch_size)
    ]

    def fill(batch: Batch, step: int, part: range) -> None:
        for i, index in enumerate(steps[step][1][part.start : part.stop]):
            filler.fill(batch, i, index, flip=False)

    return _converted(
        batches(
            fill,
            images=lambda step: _zeros(len(rows), sizes.canvases_px[steps[step][0]], 1).image,
            steps=range(len(steps)),
            rows=rows,
            watched=watched,
            num_threads=num_threads,
        )
    )


def _zeros(num_rows: int, canvas_px: tuple[int, int], max_boxes: int) -> Batch:
    """Return an empty batch; `data.stream` fills a `Batch`, so the further arrays stand beside the image."""
    arrays = {
        "image": np.zeros((num_rows, *canvas_px, 3), np.uint8),
        "size_px": np.tile(np.array(canvas_px, np.float32), (num_rows, 1)),  # of padding: no zero to divide by
        "scale": np.ones(num_rows, np.float32),
        "boxes": np.zeros((num_rows, max_boxes, 4), np.float32),
        "label": np.zeros((num_rows, max_boxes), np.int32),
        "crowd": np.zeros((num_rows, max_boxes), bool),
    }
    return Batch(arrays, np.zeros(num_rows, np.int32), np.zeros(num_rows, np.float32))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Fills the rows of batches; without boxes, only images."""

    data: DetectionData
    watched: Watched
    sizes: Sizes
    boxes: _Boxes | None

    def fill(self, batch: Batch, row: int, index: int, *, flip: bool) -> None:
        arrays, size_px = batch.image, self.data.size_px[index : index + 1]
        height, width = size_px[0].tolist()

        def read(record: Record) -> Pixels:
            image = pixels(record, 3)
            if image.shape[:2] != (height, width):
                raise UserError(size_problem(record.name, image.shape[:2], (height, width)))
            return prepare_image(image, self.sizes, flip=flip)

        image, batch.label[row] = example(self.watched, index, read)
        _fill_image(arrays, row, image)
        scale = self.sizes.scale(size_px)[0]
        arrays["scale"][row], batch.mask[row] = scale, 1
        if self.boxes is None:
            return
        own = slice(self.boxes.starts[index], self.boxes.starts[index + 1])
        corners = flipped(self.boxes.corners[own], width) if flip else self.boxes.corners[own]
        arrays["boxes"][row, : len(corners)] = corners * scale
        arrays["label"][row, : len(corners)] = self.boxes.label[own]
        arrays["crowd"][row, : len(corners)] = self.boxes.crowd[own]


def _fill_image(arrays: PyTree, row: int, image: Pixels) -> None:
    height, width = image.shape[:2]
    arrays["image"][row, :height, :width] = image
    arrays["size_px"][row] = height, width


def _converted(filled: Generator[Batch]) -> Generator[DetectionBatch]:
    try:
        for batch in filled:
            yield _detection_batch(batch)
    finally:
        filled.close()


def _detection_batch(batch: Batch) -> DetectionBatch:
    return DetectionBatch(**batch.image, image_id=batch.label, mask=batch.mask)
