"""Batches by step: what the global batch holds is computed from (seed, step), never from what came before.

So a run starts at step 400,000 as fast as at 0, several processes need no communication, and no generator state is
saved. Threads work ahead of the training step (`stream`).
"""

from collections.abc import Generator, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Integer, UInt8

from resnext_jax.data.crops import Crop
from resnext_jax.data.order import positions, train_indices
from resnext_jax.data.readers import GatherSource, Source
from resnext_jax.data.stream import Watched, batches, example
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.errors import UserError, raise_all
from resnext_jax.types import Batch


def local_rows(batch_size: int, process: tuple[int, int], problems: Sequence[str] = ()) -> range:
    """Return the rows of the global batch that a process, given as (index, number of processes), holds.

    Raises:
      UserError: the batch cannot be shared evenly, there is no such process, or there are other `problems`.
    """
    index, count = process
    problems = list(problems)
    if batch_size < 1 or batch_size % count:
        problems.append(
            f"batch_size {batch_size} cannot be shared evenly by {count} process(es). "
            f"Take a positive multiple of {count} with --config.batch_size."
        )
    if not 0 <= index < count:
        problems.append(f"process_index {index} must be in [0, {count}), the number of processes.")
    raise_all(problems)
    num_rows = batch_size // count
    return range(index * num_rows, (index + 1) * num_rows)


def _zeros(source: Source, crop: Crop, rows: range) -> UInt8[np.ndarray, "batch size_px size_px channel"]:
    return np.zeros((len(rows), crop.size_px, crop.size_px, source.info.batch_channels), np.uint8)


def _gather(batch: Batch, source: Source, indices: Integer[np.ndarray, " rows"]) -> None:
    """Copy images as they are in one go: image by image would take several times as long."""
    assert isinstance(source, GatherSource)  # as `Crop.problems` made sure
    batch.image[:], batch.label[:] = source.gather(indices)


def train_batches(
    source: Source,
    crop: Crop,
    *,
    batch_size: int,
    seed: int,
    steps: range,
    repeats: int = 1,
    group_images: int = 0,
    process: tuple[int, int] = (0, 1),
    num_threads: int = 2,
) -> Generator[Batch]:
    """Return this process's rows of the global batches of some steps.

    Args:
      batch_size: images in a global batch, a multiple of the number of processes.
      seed: seed of the order and of the crops, 0 or more.
      steps: steps to yield; a resumed run begins with the number of steps done.
      repeats, group_images: repeats and groups of `order.positions`.
      process: index p of this process and number P of processes. It holds rows [p * batch_size / P,
        (p + 1) * batch_size / P).
      num_threads: threads that read the coming batches; 0 reads each when asked for it.

    Yields:
      numpy `Batch`es: uint8 (batch_size / P, crop.size_px, crop.size_px, channel), the mask all 1.

    Raises:
      UserError: at the call, for arguments that do not fit; while iterating, for an image that cannot be read,
        or whose reading hangs.
    """
    rows = local_rows(batch_size, process, crop.problems(source.info))
    if seed < 0:
        raise UserError(f"seed {seed} is negative; it must be 0 or more. Change --config.seed.")
    watched, num_channels = Watched(source), source.info.num_channels
    gathers = crop.kind == "none" and crop.alter is None

    def fill(batch: Batch, step: int, part: range) -> None:
        places = positions(step, np.array(part), batch_size, repeats=repeats, group_images=group_images)
        indices = train_indices(len(source), seed, places)
        batch.mask[:] = 1
        if gathers:
            return _gather(batch, source, indices)
        try:
            for i, (row, index) in enumerate(zip(part, indices.tolist(), strict=True)):
                prepare = partial(crop.train, num_channels=num_channels, seed=seed, step=step, row=row)
                batch.image[i], batch.label[i] = example(watched, index, prepare)
        except UserError as error:
            if isinstance(source, ReplacingSource):
                raise
            raise UserError(f"{error} Or train on without it: --config.data.on_bad_image=replace.") from None

    return batches(
        fill,
        images=lambda _: _zeros(source, crop, rows),
        steps=steps,
        rows=rows,
        watched=watched,
        num_threads=num_threads,
        gathers=gathers,
    )


def evaluation_batches(
    source: Source, crop: Crop, *, batch_size: int, process: tuple[int, int] = (0, 1), num_threads: int = 2
) -> Generator[Batch]:
    """Return every image once, in the source's order; the same number of batches on every process.

    The last global batch is filled up with zero images of label 0 and mask 0. The crop is the center, except with the
    crop "none". The arguments and errors are otherwise those of `train_batches`.
    """
    rows = local_rows(batch_size, process, crop.problems(source.info))
    if crop.kind != "none" and crop.resize_px < crop.size_px:
        raise UserError(
            f"data.resize_px = {crop.resize_px} is smaller than the crop, data.image_size_px = {crop.size_px}. "
            f"Set --config.data.resize_px={crop.size_px * 8 // 7} (8/7 of the crop is usual)."
        )
    watched, gathers = Watched(source), crop.kind == "none"
    prepare = partial(crop.center, num_channels=source.info.num_channels)

    def fill(batch: Batch, step: int, part: range) -> None:
        first = step * batch_size + part.start
        indices = np.arange(first, min(first + len(part), len(source)))
        batch = jax.tree.map(lambda leaf: leaf[: len(indices)], batch)
        batch.mask[:] = 1
        if gathers:
            return _gather(batch, source, indices)
        for i, index in enumerate(indices.tolist()):
            batch.image[i], batch.label[i] = example(watched, index, prepare)

    return batches(
        fill,
        images=lambda _: _zeros(source, crop, rows),
        steps=range(-(-len(source) // batch_size)),
        rows=rows,
        watched=watched,
        num_threads=num_threads,
        gathers=gathers,
    )
