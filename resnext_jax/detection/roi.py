"""Features of regions, all of one size: RoI max-pooling (Girshick 2015, section 2.1) and RoIAlign (He et al. 2017).

Both read only the part of the feature map that belongs to the image, not the padding. A cell of the feature map is
`stride_px` pixels of the image.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from resnext_jax.detection.boxes import columns
from resnext_jax.ops.conv_products import precision

Features = Float[Array, "height width channel"]
Pooled = Float[Array, "regions bins bins channel"]

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
    # Every bin is a few neighboring columns of a few neighboring rows.
    in_columns = _bins(x1, x2, size_cells[1], stride_px, width, bins)
    by_column = _largest("rjw,hwc->rjhc", features, 1, *in_columns, _bounds(width, bins))
    in_rows = _bins(y1, y2, size_cells[0], stride_px, height, bins)
    return _largest("rih,rjhc->rijc", by_column, 2, *in_rows, _bounds(height, bins))


def _bins(
    start: Float[Array, " regions"],
    end: Float[Array, " regions"],
    size: Int[Array, ""],
    stride_px: int,
    cells: int,
    bins: int,
) -> tuple[Int[Array, "regions bins"], Int[Array, "regions bins"]]:
    """Return first cell, and last cell + 1, of every bin of every region, in one direction."""
    first, last = (jnp.floor(corner / stride_px + 0.5).astype(jnp.int32) for corner in (start, end))
    bounds = jnp.asarray(_bounds(cells, bins))[jnp.clip(last - first + 1, 1, cells + 1)]
    bounds = jnp.clip(bounds + first[:, None, None], 0, size)
    return bounds[:, 0], bounds[:, 1]


def _bounds(cells: int, bins: int) -> Int[np.ndarray, "lengths 2 bins"]:
    """Return first cell, and last cell + 1, of each bin of a region at cell 0, by the length of the region in cells.

    A table, in Caffe's float32: a compiler may divide by the constant with other rounding, and a bound that lies on a
    cell would move to the next. Corners are rounded, so a region may be one cell longer than the map.
    """
    bin_cells = np.arange(cells + 2, dtype=np.float32)[:, None] / np.float32(bins)
    number = np.arange(bins, dtype=np.float32)
    return np.stack([np.floor(number * bin_cells), np.ceil((number + 1) * bin_cells)], axis=1).astype(np.int32)


def _largest(
    formula: str,
    x: Float[Array, "..."],
    axis: int,
    begin: Int[Array, "regions bins"],
    end: Int[Array, "regions bins"],
    bounds: Int[np.ndarray, "lengths 2 bins"],
) -> Float[Array, "regions bins *dims"]:
    """Return the largest value of cells `begin` to `end - 1` of each bin; 0 for a bin without cells.

    It is the larger of two windows that cover the bin: of 5, 6 or 7 cells the first 4 and the last 4. So windows of 1,
    2 and 4 cells are computed for all places, and two are picked for each bin. To pick is to multiply by a matrix of
    zeros and ones, which is exact. On a TPU it is several times as fast as a masked reduction or a gather, and so is
    its gradient.

    Args:
      formula: of the product with a matrix (region, bin, cell), for `jnp.einsum`; its result has the regions and the
        bins first.
      x: values.
      axis: the axis of x that is the cells.
      begin: first cell of each bin.
      end: last cell + 1 of each bin.
      bounds: the table of all bins.
    """
    cell = np.arange(x.shape[axis], dtype=np.int32)[None, None]
    begin, end = begin[:, :, None], end[:, :, None]
    window, picked = x, []
    for level in range(int(np.diff(bounds, axis=1).max()).bit_length()):
        if level:
            window = _larger(window, _ahead(window, 2 ** (level - 1), axis))
        width = 2**level
        fits = (end - begin >= width) & (end - begin < 2 * width)
        pick = jnp.concatenate([fits & (cell == begin), fits & (cell == end - width)], axis=1)
        picked.append(jnp.einsum(formula, pick.astype(x.dtype), window, precision=precision(x)))
    # All but one are zeros.
    first, last = jnp.split(functools.reduce(jnp.add, picked), 2, axis=1)
    return _larger(first, last)


def _ahead(x: Float[Array, "*dims"], places: int, axis: int) -> Float[Array, "*dims"]:
    """Return the values so many places ahead; past the end there are zeros, which no bin picks."""
    padding = [(0, places if dimension == axis else 0) for dimension in range(x.ndim)]
    return lax.slice_in_dim(jnp.pad(x, padding), places, None, axis=axis)


def _larger(a: Float[Array, "*dims"], b: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Return the larger of two values; of equals the first, which gets the whole gradient."""
    return jnp.where(a >= b, a, b)


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
