"""Boxes as (x1, y1, x2, y2) in pixels, both corners inside the box: a width is x2 - x1 + 1, as in py-faster-rcnn."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# The largest exp(dw) and exp(dh) make 16 px into 1000 px (Detectron, utils/boxes.py, BBOX_XFORM_CLIP).
LARGEST_LOG_RATIO = math.log(1000.0 / 16)

Boxes = Float[Array, "boxes 4"]


def columns(boxes: Float[Array, "*dims 4"]) -> tuple[Float[Array, "*dims"], ...]:
    """Return x1, y1, x2 and y2 of the boxes. Four arrays are fast on a TPU, where a last dimension of 4 is not."""
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def sides(boxes: Float[Array, "*dims 4"]) -> tuple[Float[Array, "*dims"], Float[Array, "*dims"]]:
    """Return width and height of the boxes."""
    x1, y1, x2, y2 = columns(boxes)
    return x2 - x1 + 1, y2 - y1 + 1


def areas(boxes: Float[Array, "*dims 4"]) -> Float[Array, "*dims"]:
    """Return the areas of the boxes, 0 for those without a width or a height."""
    return _product(*sides(boxes))


def intersections(a: Float[Array, "num_a 4"], b: Float[Array, "num_b 4"]) -> Float[Array, "num_a num_b"]:
    """Return the area that each box of `a` shares with each of `b`."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = columns(a), columns(b)
    width = jnp.minimum(ax2[:, None], bx2[None]) - jnp.maximum(ax1[:, None], bx1[None]) + 1
    height = jnp.minimum(ay2[:, None], by2[None]) - jnp.maximum(ay1[:, None], by1[None]) + 1
    return _product(width, height)


def iou(a: Float[Array, "num_a 4"], b: Float[Array, "num_b 4"]) -> Float[Array, "num_a num_b"]:
    """Return the intersection over union of each box of `a` with each of `b`; 0 where both are empty."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def share_inside(a: Float[Array, "num_a 4"], b: Float[Array, "num_b 4"]) -> Float[Array, "num_a num_b"]:
    """Return the share of the area of each box of `a` that lies inside each of `b`."""
    return intersections(a, b) / jnp.maximum(areas(a), 1e-6)[:, None]


def encode(boxes: Float[Array, "*dims 4"], anchors: Float[Array, "*dims 4"]) -> Float[Array, "*dims 4"]:
    """Return (dx, dy, dw, dh), which takes the anchors to the boxes (Girshick et al. 2014, appendix C).

    dx and dy are distances of the centers in widths and heights of the anchor; dw and dh are logarithms of ratios.
    """
    (width, height), (anchor_width, anchor_height) = sides(boxes), sides(anchors)
    dx = (_center(boxes[..., 0], width) - _center(anchors[..., 0], anchor_width)) / anchor_width
    dy = (_center(boxes[..., 1], height) - _center(anchors[..., 1], anchor_height)) / anchor_height
    return jnp.stack([dx, dy, jnp.log(width / anchor_width), jnp.log(height / anchor_height)], axis=-1)


def decode(deltas: Float[Array, "*dims 4"], anchors: Float[Array, "*dims 4"]) -> Float[Array, "*dims 4"]:
    """Return the boxes that `deltas` takes the anchors to: the inverse of `encode`.

    The right and lower corners are those of Detectron. py-faster-rcnn's lie one pixel further out.
    """
    dx, dy, dw, dh = columns(deltas)
    anchor_width, anchor_height = sides(anchors)
    x = dx * anchor_width + _center(anchors[..., 0], anchor_width)
    y = dy * anchor_height + _center(anchors[..., 1], anchor_height)
    width = anchor_width * jnp.exp(jnp.minimum(dw, LARGEST_LOG_RATIO))
    height = anchor_height * jnp.exp(jnp.minimum(dh, LARGEST_LOG_RATIO))
    x1, y1 = x - 0.5 * width, y - 0.5 * height
    return jnp.stack([x1, y1, x1 + width - 1, y1 + height - 1], axis=-1)


def clip(boxes: Float[Array, "*dims 4"], size_px: Float[Array, "2"]) -> Float[Array, "*dims 4"]:
    """Return the boxes with all corners moved into an image of `size_px` (height, width)."""
    x1, y1, x2, y2 = columns(boxes)
    bottom, right = size_px[0] - 1, size_px[1] - 1
    return jnp.stack(
        [jnp.clip(x1, 0, right), jnp.clip(y1, 0, bottom), jnp.clip(x2, 0, right), jnp.clip(y2, 0, bottom)], axis=-1
    )


def _product(width: Float[Array, "*dims"], height: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Return width * height, 0 where one is negative.

    The choice comes after the product. So a compiler cannot make the product and a later sum into one operation with
    other rounding, and two programs of one IoU have the same bits.
    """
    return jnp.where((width > 0) & (height > 0), width * height, 0)


def _center(start: Float[Array, "*dims"], size: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    return start + 0.5 * size
