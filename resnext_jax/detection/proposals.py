"""Boxes that may hold an object, from the outputs of the RPN (py-faster-rcnn's `proposal_layer.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from resnext_jax.detection import boxes as box_math
from resnext_jax.detection.anchors import Grid
from resnext_jax.detection.anchors import present as anchors_present
from resnext_jax.detection.nms import nms


class Proposals(NamedTuple):
    """Proposals of an image, best first; rows are unused where an image has too few."""

    boxes: Float[Array, "proposals 4"]
    score: Float[Array, " proposals"]  # probability of an object, 0 in unused rows
    present: Bool[Array, " proposals"]


def propose(
    logits: Float[Array, " anchors"],
    deltas: Float[Array, "anchors 4"],
    grid: Grid,
    size_px: Float[Array, "2"],
    scale: Float[Array, ""],
    *,
    num_candidates: int = 6000,
    num_proposals: int = 300,
    iou_threshold: float = 0.7,
    smallest_px: float = 16.0,
) -> Proposals:
    """Return the proposals of one image. No gradient goes through them.

    Boxes are clipped to the image, small ones are dropped, and the best of the rest go through NMS. The defaults are
    those of a test; training takes 2,000 of 12,000.

    Args:
      logits: of all anchors; above 0 for an object.
      deltas: box codes of all anchors.
      grid: the anchors of the feature map, with its padding.
      size_px: height and width of the image.
      scale: size of the image over the original's.
      num_candidates: most boxes that go through NMS (RPN_PRE_NMS_TOP_N).
      num_proposals: most boxes that come out (RPN_POST_NMS_TOP_N).
      iou_threshold: of NMS (RPN_NMS_THRESH).
      smallest_px: shortest side, in pixels of the original image (RPN_MIN_SIZE).
    """
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    boxes = box_math.clip(box_math.decode(deltas, jnp.asarray(grid.anchors)), size_px)
    width, height = box_math.sides(boxes)
    # Sides are compared after the division: a side of just 16 px survives the rounding of the scale.
    is_large = jnp.minimum(width, height) / scale >= smallest_px - 1e-3
    scores = jnp.where(anchors_present(grid, size_px) & is_large, logits, -jnp.inf)
    index, present = nms(boxes, scores, iou_threshold, num_proposals, num_candidates)
    score = jnp.where(present, jax.nn.sigmoid(logits[index]), 0)
    return Proposals(jnp.where(present[:, None], boxes[index], 0), score, present)
