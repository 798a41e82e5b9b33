"""Features of regions, all of one size: RoI max-pooling (Girshick 2015, section 2.1) and RoIAlign (He et al. 2017).

Both read only the part of the feature map that belongs to the image, not the padding. A cell of the feature map is
`stride_px` pixels of the image.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from resnext_jax.detection.boxes import columns
from resnext_jax.ops.conv_products import precision

Features = Float[Array, "height width channel"]
Pooled = Float[Array, "regions bins bins channel"]
# Which row, and which column, is in which bin.
Rows = Bool[Array, "regions bins height"]
Columns = Bool[Array, "regions bins width"]
ByColumn = Float[Array, "regions bins height channel"]  # each row in each bin of columns

BINS = 14  # the head's first convolution has stride 2 and makes 7x7 of it (He et al. 2015, section 4.1)


def roi_max_pool(
    features: Features, boxes: Float[Array, "regions 4"], size_cells: Int[Array, "2"], stride_px: int, bins: int = BINS
) -> Pooled:
    """Return the largest value of each bin, as Caffe's `ROIPooling` of py-faster-rcnn; 0 for a bin without cells.

    Corners are rounded to cells and belong to the region. Bins overlap where the region does not divide evenly.
    The gradient goes to the largest value; of equals to the one of the smallest row, then column.

    Args:
      features: feature map of one image.
      boxes: regions, in pixels of the image and inside of it.
      size_cells: height and width of the image's part of the feature map.
      stride_px: distance of neighboring cells.
      bins: bins in each direction.
    """
    x1, y1, x2, y2 = columns(boxes)
    height, width = features.shape[:2]
    in_rows = _bins(y1, y2, size_cells[0], stride_px, height, bins)
    in_columns = _bins(x1, x2, size_cells[1], stride_px, width, bins)
    return _pool(features, in_rows, in_columns)


def _bins(
    start: Float[Array, " regions"],
    end: Float[Array, " regions"],
    size: Int[Array, ""],
    stride_px: int,
    cells: int,
    bins: int,
) -> Bool[Array, "regions bins cells"]:
    """Return which of the cells, in one direction, are in which bin of which region."""
    first, last = (jnp.floor(corner / stride_px + 0.5).astype(jnp.int32) for corner in (start, end))
    bounds = jnp.asarray(_bounds(cells + 1, bins))[jnp.clip(last - first + 1, 1, cells + 1)] + first[:, None, None]
    cell = jnp.arange(cells, dtype=jnp.int32)[None, None]
    return (cell >= bounds[:, :1].swapaxes(1, 2)) & (cell < bounds[:, 1:].swapaxes(1, 2)) & (cell < size)


def _bounds(longest: int, bins: int) -> Int[np.ndarray, "lengths 2 bins"]:
    """Return first cell, and last cell + 1, of each bin of a region by its length in cells.

    A table, in Caffe's float32: a compiler may divide by the constant with other rounding, and a bound that lies on a
    cell would move to the next.
    """
    bin_cells = np.arange(longest + 1, dtype=np.float32)[:, None] / np.float32(bins)
    number = np.arange(bins, dtype=np.float32)
    return np.stack([np.floor(number * bin_cells), np.ceil((number + 1) * bin_cells)], axis=1).astype(np.int32)


# Two reductions, over columns and then over rows, of products of a mask that are never stored. Gathers need several
# times the memory on a TPU. With a gradient by XLA (equal shares for equals) the masks would be stored.


@jax.custom_vjp
def _pool(features: Features, in_rows: Rows, in_columns: Columns) -> Pooled:
    largest = _over_rows(_over_columns(features, in_columns), in_rows)
    return jnp.where(largest > -jnp.inf, largest, 0)


def _over_columns(features: Features, in_columns: Columns) -> ByColumn:
    """Return the largest value of each row of the map in each bin of columns; -inf where there is no column."""
    masked = jnp.where(in_columns[:, :, None, :, None], features[None, None], -jnp.inf)
    return masked.max(axis=3)


def _over_rows(by_column: ByColumn, in_rows: Rows) -> Pooled:
    masked = jnp.where(in_rows[:, :, None, :, None], by_column[:, None], -jnp.inf)
    return masked.max(axis=3)


def _forward(features: Features, in_rows: Rows, in_columns: Columns) -> tuple[Pooled, tuple[Features, Rows, Columns]]:
    return _pool(features, in_rows, in_columns), (features, in_rows, in_columns)


def _backward(saved: tuple[Features, Rows, Columns], grad_out: Pooled) -> tuple[Features, None, None]:
    features, in_rows, in_columns = saved
    height, width = features.shape[:2]
    row, column = jnp.arange(height, dtype=jnp.int32), jnp.arange(width, dtype=jnp.int32)
    by_column = _over_columns(features, in_columns)
    pooled = _over_rows(by_column, in_rows)

    # The row of the winner of each bin; then what each row of a bin of columns gets; then the same for columns.
    wins = in_rows[:, :, None, :, None] & (by_column[:, None] == pooled[:, :, :, None])
    winner = jnp.where(wins, row[None, None, None, :, None], height).min(axis=3)
    reaches = winner[:, :, :, None] == row[None, None, None, :, None]
    grad_by_column = jnp.where(reaches, grad_out[:, :, :, None].astype(jnp.float32), 0).sum(axis=1)

    wins = in_columns[:, :, None, :, None] & (features[None, None] == by_column[:, :, :, None])
    winner = jnp.where(wins, column[None, None, None, :, None], width).min(axis=3)
    reaches = winner[:, :, :, None] == column[None, None, None, :, None]
    grad = jnp.where(reaches, grad_by_column[:, :, :, None], 0).sum(axis=(0, 1))
    return grad.astype(features.dtype), None, None


_pool.defvjp(_forward, _backward)


def roi_align(
    features: Features,
    boxes: Float[Array, "regions 4"],
    size_cells: Int[Array, "2"],
    stride_px: int,
    bins: int = BINS,
    points: int = 2,
) -> Pooled:
    """Return the mean of points of each bin, each interpolated between four cells, without any rounding.

    As torchvision's `roi_align(aligned=True)` of boxes that end at the end of their last pixel. A weight is a product
    of one by row and one by column, so all of it is two matrix products.

    Args:
      features: feature map of one image.
      boxes: regions, in pixels of the image and inside of it.
      size_cells: height and width of the image's part of the feature map.
      stride_px: distance of neighboring cells.
      bins: bins in each direction.
      points: points of a bin in each direction.
    """
    x1, y1, x2, y2 = columns(boxes)
    height, width = features.shape[:2]
    by_row = _weights(y1, y2, size_cells[0], stride_px, height, bins, points).astype(features.dtype)
    by_column = _weights(x1, x2, size_cells[1], stride_px, width, bins, points).astype(features.dtype)
    rows = jnp.einsum("rih,hwc->riwc", by_row, features, precision=precision(features))
    return jnp.einsum("rjw,riwc->rijc", by_column, rows, precision=precision(features))


def _weights(
    start: Float[Array, " regions"],
    end: Float[Array, " regions"],
    size: Int[Array, ""],
    stride_px: int,
    cells: int,
    bins: int,
    points: int,
) -> Float[Array, "regions bins cells"]:
    """Return the weight of each cell in each bin, in one direction."""
    first, last = start / stride_px - 0.5, (end + 1) / stride_px - 0.5
    place = (np.arange(bins * points, dtype=np.float32) + 0.5) / np.float32(bins * points)
    point = first[:, None] + (last - first)[:, None] * jnp.asarray(place)[None]
    is_near = (point >= -1) & (point <= size.astype(jnp.float32))
    point = jnp.clip(point, 0, (size - 1).astype(jnp.float32))
    distance = jnp.abs(point[:, :, None] - jnp.arange(cells, dtype=jnp.float32)[None, None])
    weight = jnp.where(is_near[:, :, None], jnp.maximum(1 - distance, 0), 0)
    return weight.reshape(len(start), bins, points, cells).mean(axis=2)
