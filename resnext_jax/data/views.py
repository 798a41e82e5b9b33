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
from resnext_jax.data.crops import pixels
from resnext_jax.data.pipeline import local_rows
from resnext_jax.data.readers import Record, Source
from resnext_jax.data.stream import Watched, batches, example
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
      shapes: sort of an image -> (number, height, width) of its views of each size.
      cut: (image, sort) -> the views, (number, height, width, channel) for each size.
      sort: (height, width) of an image -> its sort; None if the views of all images have the same shapes.
    """

    shapes: Callable[[Sort], tuple[tuple[int, int, int], ...]]
    cut: Callable[[Pixels, Sort], tuple[np.ndarray, ...]]
    sort: Callable[[int, int], Sort] | None = None


def ten_crop(size_px: int, resize_px: int, interpolation: str, rounding: str = decode.TORCH7) -> Views:
    """Return the center and the four corners of the whole resized rectangle, and those of its mirror.

    The center of the mirror is not the mirror of the center if an odd number of pixels is left beside it.
    Source: datasets/transforms.lua of fb.resnet.torch, TenCrop.

    Args:
      size_px: height and width of each crop.
      resize_px: short side of the resized image, at least size_px.
      interpolation: row of `resize.FILTERS`.
      rounding: see `decode.rounding_of`.
    """

    def cut(image: Pixels, _: Sort) -> tuple[np.ndarray, ...]:
        image = decode.scale_short_side(image, resize_px, interpolation, rounding)
        bottom, right = image.shape[0] - size_px, image.shape[1] - size_px
        corners = ((0, 0), (0, right), (bottom, 0), (bottom, right))
        crops = []
        for side in (image, image[:, ::-1]):
            crops.append(decode.central(side, size_px, size_px, rounding))
            crops += [side[top : top + size_px, left : left + size_px] for top, left in corners]
        return (np.stack(crops),)

    return Views(shapes=lambda _: ((10, size_px, size_px),), cut=cut)


def multi_scale(size_px: int, resize_px: int, interpolation: str, rounding: str = decode.TORCH7) -> Views:
    """Return the whole image at the five scales of SCALES, for a network that is applied densely.

    Every shape needs its own compiled program, so there must be few: the long side is cut at both ends to a whole
    number of sevenths of the short side, `LONGEST` at most. `resize_px` and `rounding` are unused: no library has this.

    Args:
      size_px: smallest short side, that of the center crop.
      interpolation: row of `resize.FILTERS`.
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
    source: Source, views: Views, *, batch_size: int, process: tuple[int, int] = (0, 1), num_threads: int = 2
) -> Generator[Batch]:
    """Return every image once, those with views of the same shapes together; the same batches on every process.

    The last batch of each sort is filled up with zeros of label 0 and mask 0. The `image` of a batch is a tuple of
    uint8 arrays. The arguments and errors are those of `pipeline.train_batches`.
    """
    rows, watched = local_rows(batch_size, process), Watched(source)
    steps = [
        (sort, indices[start : start + batch_size].tolist())
        for sort, indices in _sorted(source, views)
        for start in range(0, len(indices), batch_size)
    ]

    def images(step: int) -> tuple[np.ndarray, ...]:
        shapes = views.shapes(steps[step][0])
        return tuple(np.zeros((len(rows), *shape, source.info.batch_channels), np.uint8) for shape in shapes)

    def fill(batch: Batch, step: int, part: range) -> None:
        sort, indices = steps[step]
        for i, index in enumerate(indices[part.start : part.stop]):
            cuts, batch.label[i] = example(
                watched, index, lambda record: views.cut(pixels(record, source.info.num_channels), sort)
            )
            batch.mask[i] = 1
            for array, cut in zip(batch.image, cuts, strict=True):
                array[i] = cut

    return batches(fill, images=images, steps=range(len(steps)), rows=rows, watched=watched, num_threads=num_threads)


def _sorted(source: Source, views: Views) -> list[tuple[Sort, np.ndarray]]:
    """Return the indices of each sort, in the source's order, from the headers of all images if there are sorts."""
    if views.sort is None:
        return [((0, 0), np.arange(len(source)))]
    found = defaultdict(list)
    with ThreadPoolExecutor(SIZE_THREADS) as threads:  # a bucket answers slowly
        sizes = threads.map(lambda index: _size(source[index]), range(len(source)))
        for index, (height, width) in enumerate(sizes):
            found[views.sort(height, width)].append(index)
    return [(key, np.array(found[key])) for key in sorted(found)]


def _size(record: Record) -> tuple[int, int]:
    return decode.size(record.image, record.name) if isinstance(record.image, bytes) else record.image.shape[:2]
