"""Several views of one image, for evaluation: where each is cut, and batches of them.

Views of one size stand together: a batch's `image` is a tuple with an array (batch, views, height, width, channel) for
each size. The mirrors of `multi_scale` are made on the device.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8

from resnext_jax.data import decode, resize
from resnext_jax.data.filling import pixels
from resnext_jax.data.readers import Record, Source
from resnext_jax.data.workers import Watch, batches
from resnext_jax.types import Batch

Pixels = UInt8[np.ndarray, "height width channel"]
Sort = tuple[int, int]
SIZE_THREADS = 32
# Multi-scale testing, as multiples of `data.image_size_px`: short sides of 224, 256, 384, 480 and 640 px for 224 px
# (He et al. 2016, "Deep Residual Learning for Image Recognition", section 3.4).
SCALES = (7, 8, 12, 15, 20)
SCALE_UNIT = 7
# The long side of dense testing, in sevenths of the short side: at most twice as long.
LONGEST = 14


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of an image.

    Attributes:
      shapes: of the views of an image of some sort: (number, height, width) of each size.
      cut: (image, sort) -> the views, (number, height, width, channel) for each size.
      sort: (height, width) -> what decides on the shapes; None where all images have views of the same.
    """

    shapes: Callable[[Sort], tuple[tuple[int, int, int], ...]]
    cut: Callable[[Pixels, Sort], tuple[np.ndarray, ...]]
    sort: Callable[[int, int], Sort] | None = None


def ten_crop(size_px: int, resize_px: int, interpolation: str) -> Views:
    """The centre and the four corners of the whole resized rectangle, and those of its mirror.

    The centre of the mirror is not the mirror of the centre where an odd number of pixels is left beside it.
    Source: datasets/transforms.lua of fb.resnet.torch, TenCrop.

    Args:
      size_px: of a crop.
      resize_px: the short side, at least size_px.
      interpolation: a row of `resize.FILTERS`.
    """

    def cut(image: Pixels, _: Sort) -> tuple[np.ndarray, ...]:
        image = decode.scale_short_side(image, resize_px, interpolation)
        bottom, right = image.shape[0] - size_px, image.shape[1] - size_px
        corners = ((0, 0), (0, right), (bottom, 0), (bottom, right))
        crops = []
        for side in (image, image[:, ::-1]):
            crops += [decode.central(side, size_px, size_px)]
            crops += [side[top : top + size_px, left : left + size_px] for top, left in corners]
        return (np.stack(crops),)

    return Views(shapes=lambda _: ((10, size_px, size_px),), cut=cut)


def multi_scale(size_px: int, resize_px: int, interpolation: str) -> Views:
    """The whole image at the five scales of SCALES, for a network that is applied densely.

    Programs are compiled for shapes, so that those of rectangles must be few: the long side is cut at both ends to a
    whole number of sevenths of the short side, `LONGEST` at most.

    Args:
      size_px: of the smallest short side, that of the centre crop.
      resize_px: unused.
      interpolation: a row of `resize.FILTERS`.
    """
    short_sides = [size_px * scale // SCALE_UNIT for scale in SCALES]

    def sort(height: int, width: int) -> Sort:
        sevenths = min(LONGEST, SCALE_UNIT * max(height, width) // min(height, width))
        return (sevenths, SCALE_UNIT) if height > width else (SCALE_UNIT, sevenths)

    def shapes(of: Sort) -> tuple[tuple[int, int, int], ...]:
        return tuple((1, side * of[0] // SCALE_UNIT, side * of[1] // SCALE_UNIT) for side in short_sides)

    def cut(image: Pixels, of: Sort) -> tuple[np.ndarray, ...]:
        short = min(image.shape[:2])
        views = []
        for _, height, width in shapes(of):
            # In whole numbers: a long side that falls short by rounding would be narrower than the view.
            rows, columns = (min(height, width) * side // short for side in image.shape[:2])
            views.append(decode.central(resize.scale(image, rows, columns, interpolation), height, width)[None])
        return tuple(views)

    return Views(shapes, cut, sort)


def view_batches(
    source: Source,
    views: Views,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
) -> Generator[Batch]:
    """Every image once, those with views of the same shapes together; the same batches on every process.

    The last batch of each sort is filled up with zeros of label 0 and mask 0.

    Args:
      source: the images.
      views: how they are cut.
      batch_size: images in a global batch, a multiple of process_count.
      process_index, process_count: process p of P holds rows [p * batch_size / P, (p + 1) * batch_size / P).
      num_threads: that fill the coming batches; 0 fills each when asked for.

    Yields:
      numpy `Batch`es whose `image` is a tuple of arrays, uint8.

    Raises:
      UserError: an image cannot be read, or its reading hangs.
    """
    watch, num_channels = Watch(source.locate), source.info.num_channels
    steps = [
        (sort, indices[start : start + batch_size])
        for sort, indices in _sorted(source, views)
        for start in range(0, len(indices), batch_size)
    ]
    num_rows = batch_size // process_count
    first = process_index * num_rows

    def empty(step: int) -> Batch:
        shapes = views.shapes(steps[step][0])
        channels = source.info.image_shape[2] if source.info.image_shape else num_channels
        image = tuple(np.zeros((num_rows, *shape, channels), np.uint8) for shape in shapes)
        return Batch(image, np.zeros(num_rows, np.int32), np.zeros(num_rows, np.float32))

    def fill(batch: Batch, step: int, rows: slice) -> None:
        sort, indices = steps[step]
        with watch.reading() as begin:
            for row, index in enumerate(indices[first + rows.start : first + rows.stop].tolist(), rows.start):
                begin(index)
                record = source[index]
                for array, cut in zip(batch.image, views.cut(pixels(record, num_channels), sort), strict=True):
                    array[row] = cut
                batch.label[row], batch.mask[row] = record.label, 1

    return batches(
        len(steps),
        0,
        num_rows,
        empty=empty,
        fill=fill,
        watch=watch,
        num_threads=num_threads,
        num_parts=max(1, num_threads),
    )


def _sorted(source: Source, views: Views) -> list[tuple[Sort, np.ndarray]]:
    """The indices of each sort, in the source's order; read from the headers of all images where there are sorts."""
    sort = views.sort
    if sort is None:
        return [((0, 0), np.arange(len(source)))]
    found = defaultdict(list)
    with ThreadPoolExecutor(SIZE_THREADS) as threads:  # a bucket answers slowly
        sizes = threads.map(lambda index: _size(source[index]), range(len(source)))
        for index, (height, width) in enumerate(sizes):
            found[sort(height, width)].append(index)
    return [(key, np.array(found[key])) for key in sorted(found)]


def _size(record: Record) -> tuple[int, int]:
    return decode.size(record.image, record.name) if isinstance(record.image, bytes) else record.image.shape[:2]
