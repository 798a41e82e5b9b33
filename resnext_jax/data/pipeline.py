"""Batches by step: what the global batch holds is computed from (seed, step), never from what came before.

So a run that starts at step 400,000 costs no more than one that starts at 0, several processes agree without a word,
and no generator state needs saving. Grain's threads work ahead of the training step.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence

import grain
import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int, UInt8

from resnext_jax.data import decode
from resnext_jax.data.readers import GatherSource, Source
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.types import Batch

CROPS = ("none", "random_sized")
SMALL_NUM_IMAGES = 1 << 16
# Of the cipher behind index_shuffle. Grain's own shuffle uses 4, with which an image's successor is far from random
# (chi-square of tenths 31,000 at 262,000 images, where 81 is expected); from 8 on none of that shows.
SHUFFLE_ROUNDS = 16


@functools.lru_cache(maxsize=8)
def _epoch_key(seed: int, epoch: int) -> int:
    """64 well mixed bits: neighbouring seeds and epochs must not give related orders."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])


@functools.lru_cache(maxsize=2)
def _small_permutation(num_images: int, key: int) -> Int[np.ndarray, " num_images"]:
    return np.argsort(np.random.Philox(key=key).random_raw(num_images), kind="stable")


def _shuffled(num_images: int, key: int, offsets: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
    # index_shuffle needs no memory, but its cost grows as the set shrinks (5 us at 10^6 images, 700 us at 100);
    # below SMALL_NUM_IMAGES a table of 0.5 MB is quicker.
    if num_images <= SMALL_NUM_IMAGES:
        return _small_permutation(num_images, key)[offsets]
    # Where the largest index is a power of two (65,537 images, 262,145, ...), index_shuffle takes a block that is one
    # bit too short, and maps two indices to one. So there it shuffles one number more, which is passed over.
    largest = num_images - 1 + ((num_images - 1) & (num_images - 2) == 0)
    shuffle = functools.partial(index_shuffle, max_index=largest, seed=key & 0xFFFFFFFF, rounds=SHUFFLE_ROUNDS)
    indices = [shuffle(offset) for offset in offsets.tolist()]
    return np.array([index if index < num_images else shuffle(index) for index in indices], np.int64)


def train_indices(num_images: int, seed: int, positions: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
    """Which image stands at each position of the endless stream of epochs, every epoch a permutation of its own.

    Constant memory, and the same cost at any position.

    Args:
      num_images: images in the data set.
      seed: the run's seed, 0 or more.
      positions: step * batch_size + row in the global batch.
    """
    epochs, offsets = np.divmod(positions, num_images)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        indices[rows] = _shuffled(num_images, _epoch_key(seed, epoch), offsets[rows])
    return indices


def crop_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """The random numbers of one image: row `row` of the global batch at `step`. No other image shares any of them."""
    # A counter-based generator: the low word counts the draws, the others are the address.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row, step]))


def _images(
    source: Source, indices: Int[np.ndarray, " batch"], crops: Sequence[Callable] | None
) -> tuple[UInt8[np.ndarray, "batch height width channel"], Int[np.ndarray, " batch"]]:
    """Images and labels of `indices`, each image through its own crop; None leaves them as they are."""
    if crops is None:
        assert isinstance(source, GatherSource)  # as _check made sure
        return source.gather(indices)
    images, labels = [], []
    for index, crop in zip(indices.tolist(), crops, strict=True):
        image, label = _image(source, index)
        images.append(crop(image))
        labels.append(label)
    return np.stack(images), np.array(labels, np.int32)


def _image(source: Source, index: int) -> tuple[UInt8[np.ndarray, "height width channel"], int]:
    """The pixels and the label at `index`, or of its stand-in where the source has one."""
    while True:
        try:
            record = source[index]
            if not isinstance(record.image, bytes):
                return record.image, record.label
            return decode.decode(record.image, record.name), record.label
        except UserError as error:
            if not isinstance(source, ReplacingSource):
                raise
            index = source.stand_in(index, error)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """`batch_at` as the indexable object that Grain reads from."""

    num_steps: int
    batch_at: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> Batch:
        return self.batch_at(index)


def _stream(steps: _Steps, start_step: int, num_threads: int) -> Generator[Batch]:
    # Every waiting batch is memory, and one per thread and one more keeps the threads busy.
    options = grain.ReadOptions(num_threads, prefetch_buffer_size=num_threads + 1 if num_threads else 0)
    iterator = iter(grain.MapDataset.source(steps)[start_step:].to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()  # drops the batches in waiting; the threads end with the one at hand


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
        change = "Set --config.data.crop=random_sized"
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
      crop: "none" (the images have that size already) or "random_sized" (`decode.random_sized_crop`).
      process_index, process_count: process p of P holds rows [p * batch_size / P, (p + 1) * batch_size / P).
      num_threads: batches prepared ahead, at once; 0 prepares each when asked for.

    Yields:
      numpy `Batch`es: uint8 (batch_size / process_count, image_size_px, image_size_px, channel), the mask all 1.

    Raises:
      UserError: at the call, for arguments that do not fit; while iterating, for an image that cannot be read.
    """
    _check(source, batch_size, image_size_px, crop, process_index, process_count)
    if seed < 0:
        raise_all([f"seed {seed} is negative; it must be 0 or more. Change --config.seed."])
    rows = _local_rows(batch_size, process_index, process_count)

    def batch_at(step: int) -> Batch:
        indices = train_indices(len(source), seed, step * batch_size + np.arange(rows.start, rows.stop))
        crops = None
        if crop == "random_sized":
            crops = [
                functools.partial(decode.random_sized_crop, size_px=image_size_px, rng=crop_rng(seed, step, row))
                for row in rows
            ]
        try:
            images, labels = _images(source, indices, crops)
        except UserError as error:
            if isinstance(source, ReplacingSource):
                raise
            raise UserError(f"{error} Or train on without it: --config.data.on_bad_image=replace.") from None
        return Batch(images, labels, np.ones(len(rows), np.float32))

    return _stream(_Steps(num_steps, batch_at), start_step, num_threads)


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    image_size_px: int,
    resize_px: int,
    crop: str,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
) -> Generator[Batch]:
    """Every image once, in the source's order; the same number of batches on every process.

    The last global batch is filled up with zero images of label 0 and mask 0.

    Args:
      crop: "none", or as the training crop "random_sized", for which evaluation takes the centre: the short side
        resized to `resize_px`, then a square of `image_size_px` cut out.
      resize_px: at least image_size_px; unused without a crop.
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
    channels = source.info.image_shape[2] if source.info.image_shape else 3
    center_crop = functools.partial(decode.center_crop, size_px=image_size_px, resize_px=resize_px)

    def batch_at(step: int) -> Batch:
        images = np.zeros((len(rows), image_size_px, image_size_px, channels), np.uint8)
        labels, mask = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.float32)
        first = step * batch_size + rows.start
        indices = np.arange(first, min(first + len(rows), len(source)))
        if n := len(indices):
            images[:n], labels[:n] = _images(source, indices, None if crop == "none" else [center_crop] * n)
            mask[:n] = 1
        return Batch(images, labels, mask)

    return _stream(_Steps(-(-len(source) // batch_size), batch_at), 0, num_threads)
