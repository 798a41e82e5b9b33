"""Anchors: boxes of fixed sizes at every cell of the feature map, as in py-faster-rcnn's `generate_anchors.py`."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Sides of 64, 128, 256 and 512 px (Detectron's COCO configs), in three shapes (py-faster-rcnn's default).
BASE_PX = 16
SCALES = (4, 8, 16, 32)
RATIOS = (0.5, 1.0, 2.0)  # height / width


class Grid(NamedTuple):
    """The anchors of a feature map: row after row, cell after cell, all shapes of a cell together."""

    anchors: Float[np.ndarray, "anchors 4"]
    origin: Float[np.ndarray, "anchors 2"]  # y, x: first pixel of the anchor's cell


def cell_anchors(
    base_px: int = BASE_PX, scales: Sequence[float] = SCALES, ratios: Sequence[float] = RATIOS
) -> Float[np.ndarray, "anchors 4"]:
    """Return the anchors of the first cell, the scales of the first ratio first.

    A square of base_px is made into each ratio at equal area, and its sides are rounded (half to even, as NumPy
    does) before they are multiplied by the scales.

    Args:
      base_px: side of the square; for any stride the anchors have the center of the first square of this size.
      scales: factors of the sides.
      ratios: height / width.
    """
    ratio = np.asarray(ratios, np.float64)
    width = np.round(np.sqrt(base_px * base_px / ratio))
    height = np.round(width * ratio)
    half = (np.stack([width, height], axis=1)[:, None] * np.asarray(scales, np.float64)[:, None] - 1) / 2
    center = (base_px - 1) / 2
    return np.concatenate([center - half, center + half], axis=-1).reshape(-1, 4).astype(np.float32)


def grid(height: int, width: int, stride_px: int, cell: Float[np.ndarray, "cell_anchors 4"]) -> Grid:
    """Return the anchors of a feature map.

    Args:
      height: cells in a column.
      width: cells in a row.
      stride_px: distance of neighboring cells in the image.
      cell: anchors of the first cell.
    """
    y, x = np.meshgrid(np.arange(height) * stride_px, np.arange(width) * stride_px, indexing="ij")
    shift = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype(np.float32)
    anchors = (shift + cell).reshape(-1, 4)
    return Grid(anchors, np.repeat(shift[:, 0, 1::-1], len(cell), axis=0))


def present(grid: Grid, size_px: Float[Array, "2"]) -> Bool[Array, " anchors"]:
    """Return which anchors belong to cells of the image, not to its padding.

    Args:
      size_px: height and width of the image.
    """
    return (jnp.asarray(grid.origin) < size_px[None]).all(axis=1)


def inside(grid: Grid, size_px: Float[Array, "2"], border_px: float = 0.0) -> Bool[Array, " anchors"]:
    """Return which anchors lie inside the image, or reach out of it by at most `border_px`."""
    anchors, border = jnp.asarray(grid.anchors), jnp.float32(border_px)
    start, end = anchors[:, :2], anchors[:, 2:]
    return (start >= -border).all(axis=1) & (end < size_px[None, ::-1] + border).all(axis=1)
