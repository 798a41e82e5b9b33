"""Batches by step: what the global batch holds is computed from (seed, step), never from what came before.

So a run that starts at step 400,000 costs no more than one that starts at 0, several processes agree without a word,
and no generator state needs saving. Threads work ahead of the training step.
"""

import functools
from collections.abc import Callable, Generator

import numpy as np

from resnext_jax.data.filling import Crop, altered, center_crop, fill_rows, pixels, random_crop
from resnext_jax.data.order import positions, train_indices
from resnext_jax.data.policies import Alter
from resnext_jax.data.readers import Source
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.data.workers import Watch, batches
from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.types import Batch

CROPS = ("none", "random_sized", "resize")
# Images in memory are copied, not decoded: more threads would only hold more batches.
GATHER_THREADS = 2


def _stream(
    source: Source,
    num_steps: int,
    start_step: int,
    *,
    num_rows: int,
    image_size_px: int,
    gathers: bool,
    fill: Callable[[Batch, int, slice, Watch], None],
    num_threads: int,
) -> Generator[Batch]:
    """`fill` in the threads of `workers.batches`, on batches of zeros whose mask is 0."""
    watch = Watch(source.locate)
    num_channels = source.info.image_shape[2] if source.info.image_shape else source.info.num_channels
    shape = (num_rows, image_size_px, image_size_px, num_channels)
    return batches(
        num_steps,
        start_step,
        num_rows,
        empty=lambda step: Batch(
            np.zeros(shape, np.uint8), np.zeros(num_rows, np.int32), np.zeros(num_rows, np.float32)
        ),
        fill=lambda batch, step, rows: fill(batch, step, rows, watch),
        watch=watch,
        num_threads=min(num_threads, GATHER_THREADS) if gathers else num_threads,
        num_parts=1 if gathers else max(1, num_threads),
    )


def _check(
    source: Source, batch_size: int, image_size_px: int, crop: str, process_index: int, process_count: int
) -> None:
    problems = [unknown("crop", crop, CROPS)] if crop not in CROPS else []
    if batch_size < 1 or batch_size % process_count:
        problems.append(
            f"batch_size {batch_size} cannot be shared evenly by {process_count} process(es). "
            f"Take a positive multiple of {process_count} with --config.batch_size."
        )
    if not 0 <= process_index < process_count:
        problems.append(f"process_index {process_index} must be in [0, {process_count}), the number of processes.")
    shape = source.info.image_shape
    if crop == "none" and (shape is None or shape[:2] != (image_size_px, image_size_px)):
        found = "images of many sizes" if shape is None else f"images of {shape[0]}x{shape[1]} px"
        change = "Set --config.data.crop=random_sized, =resize"
        change += "." if shape is None or shape[0] != shape[1] else f" or --config.data.image_size_px={shape[0]}."
        problems.append(
            f"data set {source.info.name!r} has {found}, and without a crop (data.crop is 'none') all must be of "
            f"data.image_size_px = {image_size_px}. {change}"
        )
    raise_all(problems)


def _local_rows(batch_size: int, process_index: int, process_count: int) -> range:
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    image_size_px: int,
    crop: str,
    alter: Alter | None = None,
    repeats: int = 1,
    group_images: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
) -> Generator[Batch]:
    """This process's rows of the global batches of steps `start_step` to `num_steps - 1`.

    Args:
      source: the training images.
      batch_size: images in a global batch, a multiple of process_count.
      seed: the run's seed, 0 or more.
      start_step: the first step to yield; a resumed run passes the number of steps done.
      num_steps: the steps of the whole run, not of this call.
      image_size_px: height and width of every image in the batch.
      crop: "none" (the images have that size already), "random_sized" (`decode.random_sized_crop`) or "resize" (the
        short side to that size, and the centre).
      alter: (image, rng) -> image, of the same size; `policies.make_alter`.
      repeats, group_images: see `order.positions`.
      process_index, process_count: process p of P holds rows [p * batch_size / P, (p + 1) * batch_size / P).
      num_threads: that fill the coming batches; 0 fills each when asked for.

    Yields:
      numpy `Batch`es: uint8 (batch_size / process_count, image_size_px, image_size_px, channel), the mask all 1.

    Raises:
      UserError: at the call, for arguments that do not fit; while iterating, for an image that cannot be read,
        or whose reading hangs.
    """
    _check(source, batch_size, image_size_px, crop, process_index, process_count)
    if seed < 0:
        raise_all([f"seed {seed} is negative; it must be 0 or more. Change --config.seed."])
    rows = _local_rows(batch_size, process_index, process_count)
    num_channels = source.info.num_channels
    crop_at_random = functools.partial(random_crop, size_px=image_size_px, num_channels=num_channels, seed=seed)
    crop_center = functools.partial(
        center_crop, size_px=image_size_px, num_channels=num_channels, resize_px=image_size_px, interpolation="bicubic"
    )

    gathers = crop == "none" and alter is None

    def crop_of(step: int, row: int) -> Crop:
        if crop == "random_sized":
            cropped: Crop = functools.partial(crop_at_random, step=step, row=row)
        else:
            cropped = crop_center if crop == "resize" else functools.partial(pixels, num_channels=num_channels)
        if alter is None:
            return cropped
        return functools.partial(altered, crop=cropped, alter=alter, seed=seed, step=step, row=row)

    def fill(batch: Batch, step: int, part: slice, watch: Watch) -> None:
        global_rows = np.arange(rows.start + part.start, rows.start + part.stop)
        places = positions(step, global_rows, batch_size, repeats=repeats, group_images=group_images)
        indices = train_indices(len(source), seed, places)
        crops = None if gathers else [crop_of(step, row) for row in global_rows.tolist()]
        try:
            fill_rows(batch, part, source, indices, crops, watch)
        except UserError as error:
            if isinstance(source, ReplacingSource):
                raise
            raise UserError(f"{error} Or train on without it: --config.data.on_bad_image=replace.") from None
        batch.mask[part] = 1

    return _stream(
        source,
        num_steps,
        start_step,
        num_rows=len(rows),
        image_size_px=image_size_px,
        gathers=gathers,
        fill=fill,
        num_threads=num_threads,
    )


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    image_size_px: int,
    resize_px: int,
    crop: str,
    interpolation: str = "bicubic",
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
) -> Generator[Batch]:
    """Every image once, in the source's order; the same number of batches on every process.

    The last global batch is filled up with zero images of label 0 and mask 0.

    Args:
      crop: "none", or as the training crop "random_sized" or "resize". Then evaluation takes the centre: the short side
        resized to `resize_px`, then a square of `image_size_px` cut out.
      resize_px: at least image_size_px; unused without a crop.
      interpolation: a row of `resize.FILTERS`; unused without a crop.
      The others, Yields and Raises: as in `train_batches`.
    """
    _check(source, batch_size, image_size_px, crop, process_index, process_count)
    if crop != "none" and resize_px < image_size_px:
        raise_all(
            [
                f"data.resize_px = {resize_px} is smaller than the crop, data.image_size_px = {image_size_px}. "
                f"Set --config.data.resize_px={image_size_px * 8 // 7} (8/7 of the crop is usual)."
            ]
        )
    rows = _local_rows(batch_size, process_index, process_count)
    crop_center = functools.partial(
        center_crop,
        size_px=image_size_px,
        num_channels=source.info.num_channels,
        resize_px=resize_px,
        interpolation=interpolation,
    )

    def fill(batch: Batch, step: int, part: slice, watch: Watch) -> None:
        first = step * batch_size + rows.start + part.start
        indices = np.arange(first, min(first + part.stop - part.start, len(source)))
        if n := len(indices):
            filled = slice(part.start, part.start + n)
            fill_rows(batch, filled, source, indices, None if crop == "none" else [crop_center] * n, watch)
            batch.mask[filled] = 1

    return _stream(
        source,
        -(-len(source) // batch_size),
        0,
        num_rows=len(rows),
        image_size_px=image_size_px,
        gathers=crop == "none",
        fill=fill,
        num_threads=num_threads,
    )
