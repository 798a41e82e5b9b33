"""Features of regions, all of one size: RoI max-pooling (Girshick 2015, section 2.1) and RoIAlign (He et al. 2017).

Both read only the part of the feature map that belongs to the image, not the padding. A cell of the feature map is
`stride_px` pixels of the image.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

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
    first, last = _picks(*_bins(x1, x2, size_cells[1], stride_px, width, bins), width, bins)
    windows = _windows(features, 1, first.shape[2])
    by_column = _larger(*(_product("rjkw,khwc->rjhc", pick, windows) for pick in (first, last)))
    first, last = _picks(*_bins(y1, y2, size_cells[0], stride_px, height, bins), height, bins)
    windows = _windows(by_column, 2, first.shape[2])
    return _larger(*(_product("rikh,krjhc->rijc", pick, windows) for pick in (first, last)))


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


# The largest of a few neighbors is the larger of two windows that cover them: of 5, 6 or 7, the first 4 and the last 4.
# So windows of 1, 2 and 4 neighbors are computed once for the map, and two are picked for each bin. Picking is a product
# with a matrix of zeros and ones, which is exact; on a TPU it is many times faster than a gather or a masked reduction,
# and so is its gradient. The gradient goes to the first of equals because `_larger` prefers the first window.


def _windows(x: Float[Array, "*dims"], axis: int, num_levels: int) -> Float[Array, "levels *dims"]:
    """Return the largest of 1, 2, 4, ... values along an axis, from each place on; past the end there is nothing."""
    levels = [x]
    for level in range(num_levels - 1):
        padding = [(0, 2**level if dimension == axis else 0) for dimension in range(x.ndim)]
        ahead = lax.slice_in_dim(jnp.pad(levels[-1], padding), 2**level, None, axis=axis)
        levels.append(_larger(levels[-1], ahead))
    return jnp.stack(levels)


def _picks(
    begin: Int[Array, "regions bins"], end: Int[Array, "regions bins"], cells: int, bins: int
) -> tuple[Bool[Array, "regions bins levels cells"], Bool[Array, "regions bins levels cells"]]:
    """Return the two windows of `_windows` whose larger value is the largest of cells `begin` to `end - 1`.

    Neither picks anything for a bin without cells: the product is 0.
    """
    longest = int(np.diff(_bounds(cells, bins), axis=1).max())
    width = 2 ** np.arange(longest.bit_length(), dtype=np.int32)[None, None, :, None]
    begin, end = begin[:, :, None, None], end[:, :, None, None]
    fits = (end - begin >= width) & (end - begin < 2 * width)  # the level of the bin
    cell = np.arange(cells, dtype=np.int32)[None, None, None]
    return fits & (cell == begin), fits & (cell == end - width)


def _larger(a: Float[Array, "*dims"], b: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Return the larger of two values; of equals the first, which gets the whole gradient."""
    return jnp.where(a >= b, a, b)


def _product(formula: str, pick: Bool[Array, "*dims"], values: Float[Array, "*others"]) -> Float[Array, "..."]:
    return jnp.einsum(formula, pick.astype(values.dtype), values, precision=precision(values))


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
