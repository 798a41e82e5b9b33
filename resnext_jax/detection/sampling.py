"""What a step trains on: anchors and regions of one image with labels, drawn by the key of the image.

The rules and numbers are those of py-faster-rcnn (`anchor_target_layer.py`, `proposal_target_layer.py`, `config.py`)
and of the paper's appendix B.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from resnext_jax.detection.boxes import encode, iou, share_inside

POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3  # TRAIN.RPN_POSITIVE_OVERLAP, TRAIN.RPN_NEGATIVE_OVERLAP
FOREGROUND_IOU = 0.5  # TRAIN.FG_THRESH; everything below is background, as in the paper
CROWD_SHARE = 0.7  # TRAIN.CROWD_FILTER_THRESH of Detectron
# Standard deviations of the box codes of regions (TRAIN.BBOX_NORMALIZE_STDS).
REGION_STD = (0.1, 0.1, 0.2, 0.2)


class AnchorSample(NamedTuple):
    """Anchors of an image that are trained; rows are unused where an image has too few."""

    index: Int[Array, " samples"]  # place among all anchors
    label: Float[Array, " samples"]  # 1 for an object, 0 for none
    target: Float[Array, "samples 4"]  # box code; it counts only where the label is 1
    used: Bool[Array, " samples"]


class RegionSample(NamedTuple):
    """Regions of an image that are trained; rows are unused where an image has too few."""

    boxes: Float[Array, "samples 4"]
    label: Int[Array, " samples"]  # 0 for background
    target: Float[Array, "samples 4"]  # box code in units of `REGION_STD`; it counts only where the label is not 0
    used: Bool[Array, " samples"]


def label_anchors(
    anchors: Float[Array, "anchors 4"],
    candidate: Bool[Array, " anchors"],
    boxes: Float[Array, "boxes 4"],
    is_object: Bool[Array, " boxes"],
) -> tuple[Int[Array, " anchors"], Int[Array, " anchors"]]:
    """Return label and box of every anchor: 1 for an object, 0 for none, -1 for neither, and the index of a box.

    An anchor is positive if its IoU with a box is 0.7 or more, or if no other anchor has a larger IoU with some box.
    Anchors that tie are all positive. All others are negative if their IoU with every box is below 0.3.
    A box without any overlap has no best anchor. In py-faster-rcnn all anchors are the best of such a box.

    Args:
      candidate: which anchors may be trained.
      boxes: true boxes of the image.
      is_object: which rows of `boxes` are objects to find, not padding and not crowds.
    """
    counts = candidate[:, None] & is_object[None]
    # Computed once: two programs of it could differ in the last bit, and an anchor would not equal the best.
    overlap = lax.optimization_barrier(jnp.where(counts, iou(anchors, boxes), 0.0))
    best = overlap.max(axis=0)
    is_best = ((overlap == best[None]) & (best > 0)[None]).any(axis=1)
    most = overlap.max(axis=1)
    label = jnp.where(is_best | (most >= POSITIVE_IOU), 1, jnp.where(most < NEGATIVE_IOU, 0, -1))
    return jnp.where(candidate, label, -1).astype(jnp.int32), overlap.argmax(axis=1).astype(jnp.int32)


def sample_anchors(
    key: Key[Array, ""],
    anchors: Float[Array, "anchors 4"],
    candidate: Bool[Array, " anchors"],
    boxes: Float[Array, "boxes 4"],
    is_object: Bool[Array, " boxes"],
    num_samples: int = 256,
    positive_share: float = 0.5,
) -> AnchorSample:
    """Draw the anchors of an image to train the RPN on; see `label_anchors`.

    Args:
      key: key of the image in this step.
      num_samples: anchors to draw (TRAIN.RPN_BATCHSIZE). Negatives take the places that positives leave free.
      positive_share: largest share of positives (TRAIN.RPN_FG_FRACTION).
    """
    label, match = label_anchors(anchors, candidate, boxes, is_object)
    index, used = draw(key, label == 1, label == 0, num_samples, int(positive_share * num_samples))
    target = encode(boxes[match[index]], anchors[index])
    return AnchorSample(index, (label[index] == 1).astype(jnp.float32), target, used)


def sample_regions(
    key: Key[Array, ""],
    proposals: Float[Array, "proposals 4"],
    present: Bool[Array, " proposals"],
    boxes: Float[Array, "boxes 4"],
    label: Int[Array, " boxes"],
    crowd: Bool[Array, " boxes"],
    num_samples: int = 64,
    foreground_share: float = 0.25,
) -> RegionSample:
    """Draw the regions of an image to train Fast R-CNN on, from its proposals and its true boxes.

    A region with IoU 0.5 or more with an object gets the class and the box of the object of the largest IoU. Every
    other region is background, except those that lie in a crowd with more than 0.7 of their area.

    Args:
      key: key of the image in this step.
      proposals: boxes from the RPN.
      present: which of them are proposals, not padding.
      boxes: true boxes of the image.
      label: their classes from 1; 0 for padding.
      crowd: which of them are crowds, which are never to be found.
      num_samples: regions to draw (appendix B). Background takes the places that objects leave free.
      foreground_share: largest share of objects (TRAIN.FG_FRACTION).
    """
    is_object = (label > 0) & ~crowd
    regions = jnp.concatenate([proposals, boxes])
    candidate = jnp.concatenate([present, is_object])
    overlap = jnp.where(is_object[None], iou(regions, boxes), 0.0)
    match, most = overlap.argmax(axis=1), overlap.max(axis=1)
    in_crowd = (crowd & (label > 0))[None] & (share_inside(regions, boxes) > CROWD_SHARE)
    foreground = candidate & (most >= FOREGROUND_IOU)
    background = candidate & (most < FOREGROUND_IOU) & ~in_crowd.any(axis=1)
    index, used = draw(key, foreground, background, num_samples, int(foreground_share * num_samples))
    match = match[index]
    target = encode(boxes[match], regions[index]) / jnp.asarray(REGION_STD, jnp.float32)[None]
    return RegionSample(regions[index], jnp.where(foreground[index], label[match], 0), target, used)


def draw(
    key: Key[Array, ""],
    positive: Bool[Array, " rows"],
    negative: Bool[Array, " rows"],
    num_samples: int,
    most_positives: int,
) -> tuple[Int[Array, " samples"], Bool[Array, " samples"]]:
    """Return the indices of rows drawn at random without replacement, and which of them are used.

    Up to `most_positives` positives come first, then negatives up to `num_samples`.
    """
    num_rows = len(positive)
    number = jax.random.uniform(key, (num_rows,), jnp.float32)
    value, index = lax.top_k(jnp.where(positive, number, -1.0), min(most_positives, num_rows))
    chosen = jnp.zeros(num_rows, bool).at[index].set(value >= 0)
    number = jnp.where(chosen, number + 1, jnp.where(negative, number, -1.0))
    value, index = lax.top_k(number, min(num_samples, num_rows))
    return index, value >= 0
