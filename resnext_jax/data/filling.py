"""What stands in the rows of a batch: each image read, cropped and put in its place."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from resnext_jax.data import decode
from resnext_jax.data.policies import Alter
from resnext_jax.data.readers import GatherSource, Record, Source
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.data.workers import Watch
from resnext_jax.errors import UserError
from resnext_jax.types import Batch

Crop = Callable[[Record], UInt8[np.ndarray, "size_px size_px channel"]]


def crop_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """The random numbers of one image: row `row` of the global batch at `step`. No other image shares any of them."""
    # A counter-based generator: the low word counts the draws, the others are the address.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row, step]))


def policy_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """Other random numbers of the same image, for a policy: they do not depend on how many its crop took."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, row, step]))


def altered(
    record: Record, *, crop: Crop, alter: Alter, seed: int, step: int, row: int
) -> UInt8[np.ndarray, "size_px size_px channel"]:
    """The crop of what stands in a row of the global batch, altered by a policy."""
    return alter(crop(record), policy_rng(seed, step, row))


def random_crop(
    record: Record, *, size_px: int, num_channels: int, seed: int, step: int, row: int
) -> UInt8[np.ndarray, "size_px size_px channel"]:
    """The training crop of what stands in a row of the global batch."""
    rng = crop_rng(seed, step, row)  # anew for each record: a stand-in is cropped as the one that it stands in for
    if isinstance(record.image, bytes) and num_channels == 3:
        return decode.read_random_sized_crop(record.image, record.name, size_px, rng)
    return decode.random_sized_crop(pixels(record, num_channels), size_px, rng)


def center_crop(
    record: Record, *, size_px: int, num_channels: int, resize_px: int, interpolation: str
) -> UInt8[np.ndarray, "size_px size_px channel"]:
    """The crop of evaluation."""
    return decode.center_crop(pixels(record, num_channels), size_px, resize_px, interpolation)


def pixels(record: Record, num_channels: int) -> UInt8[np.ndarray, "height width channel"]:
    """The decoded image of a record (`decode.decode`)."""
    if isinstance(record.image, bytes):
        return decode.decode(record.image, record.name, num_channels=num_channels)
    return record.image


def fill_rows(
    batch: Batch,
    rows: slice,
    source: Source,
    indices: Int[np.ndarray, " rows"],
    crops: Sequence[Crop] | None,
    watch: Watch,
) -> None:
    """Puts images and labels of `indices` into `rows`, each record through its own crop (None: as it is).

    Raises:
      UserError: an image cannot be read, and the source has no stand-in for it.
    """
    if crops is None:
        assert isinstance(source, GatherSource)  # as the pipeline made sure
        batch.image[rows], batch.label[rows] = source.gather(indices)
        return
    with watch.reading() as begin:
        for row, index, crop in zip(range(rows.start, rows.stop), indices.tolist(), crops, strict=True):
            batch.image[row], batch.label[row] = _example(source, index, crop, begin)


def _example(
    source: Source, index: int, crop: Crop, begin: Callable[[int], None]
) -> tuple[UInt8[np.ndarray, "size_px size_px channel"], int]:
    """The crop and the label at `index`, or of its stand-in where the source has one."""
    while True:
        begin(index)
        try:
            record = source[index]
            return crop(record), record.label
        except UserError as error:
            if not isinstance(source, ReplacingSource):
                raise
            index = source.stand_in(index, error)
