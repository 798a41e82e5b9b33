"""Non-maximum suppression with static shapes: the boxes that a greedy loop keeps, found block by block."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from resnext_jax.detection.boxes import iou

BLOCK = 512  # boxes that are compared with each other at once


class _Kept(NamedTuple):
    """What is known after some blocks."""

    block: Int[Array, ""]  # number of the next block
    count: Int[Array, ""]  # boxes kept so far; may be larger than `num_outputs`
    boxes: Float[Array, "outputs 4"]
    index: Int[Array, " outputs"]


def nms(
    boxes: Float[Array, "boxes 4"],
    scores: Float[Array, " boxes"],
    iou_threshold: float,
    num_outputs: int,
    num_inputs: int | None = None,
) -> tuple[Int[Array, " outputs"], Bool[Array, " outputs"]]:
    """Return the indices of the boxes kept, best first, and which of them are boxes; the rest is index 0.

    From the best score down, a box is kept if its IoU with every box kept before is at most the threshold. Of equal
    scores the one with the smaller index comes first. The result is that of the loop over single boxes for every
    input; only the IoU is rounded (float32).

    Args:
      boxes: candidates.
      scores: their scores; a candidate of score -inf (or NaN) is none.
      iou_threshold: IoU above which a box is dropped.
      num_outputs: most boxes to keep.
      num_inputs: most candidates to look at, the best ones; None for all.
    """
    num_inputs = min(num_inputs or len(scores), len(scores))
    block_boxes = min(BLOCK, num_inputs)
    num_blocks = -(-num_inputs // block_boxes)

    scores = jnp.where(scores > -jnp.inf, scores, -jnp.inf)
    order = jnp.argsort(scores, stable=True, descending=True)[:num_inputs].astype(jnp.int32)
    padding = num_blocks * block_boxes - num_inputs
    order = jnp.pad(order, (0, padding))
    is_candidate = (scores[order] > -jnp.inf) & (jnp.arange(len(order)) < num_inputs)
    ordered = boxes[order]

    def unfinished(kept: _Kept) -> Bool[Array, ""]:
        first = jnp.minimum(kept.block * block_boxes, len(order) - 1)
        return (kept.block < num_blocks) & (kept.count < num_outputs) & is_candidate[first]

    def next_block(kept: _Kept) -> _Kept:
        start = kept.block * block_boxes
        ours = lax.dynamic_slice_in_dim(ordered, start, block_boxes)
        index = lax.dynamic_slice_in_dim(order, start, block_boxes)
        alive = lax.dynamic_slice_in_dim(is_candidate, start, block_boxes)
        earlier = jnp.arange(num_outputs) < kept.count
        alive &= ~((iou(kept.boxes, ours) > iou_threshold) & earlier[:, None]).any(axis=0)
        alive = _greedy(alive, ours, iou_threshold)
        # Places past the end are dropped.
        place = jnp.where(alive, kept.count + jnp.cumsum(alive, dtype=jnp.int32) - 1, num_outputs)
        return _Kept(
            kept.block + 1,
            kept.count + alive.sum(dtype=jnp.int32),
            kept.boxes.at[place].set(ours, mode="drop"),
            kept.index.at[place].set(index, mode="drop"),
        )

    zero = jnp.int32(0)
    empty = _Kept(zero, zero, jnp.zeros((num_outputs, 4), boxes.dtype), jnp.zeros(num_outputs, jnp.int32))
    kept = lax.while_loop(unfinished, next_block, empty)
    return kept.index, jnp.arange(num_outputs) < kept.count


def _greedy(
    alive: Bool[Array, " block"], boxes: Float[Array, "block 4"], iou_threshold: float
) -> Bool[Array, " block"]:
    """Return which boxes of a block are kept.

    Each round computes who is kept from who was kept before. The first n answers are right after n rounds, and a round
    that changes nothing has only right answers; that is so after a few rounds.
    """
    before = jnp.tri(len(alive), k=-1, dtype=bool).T  # [i, j]: i comes before j
    drops = (iou(boxes, boxes) > iou_threshold) & before

    def is_new(rounds: tuple[Array, Array]) -> Bool[Array, ""]:
        return (rounds[0] != rounds[1]).any()

    def next_round(rounds: tuple[Array, Array]) -> tuple[Array, Array]:
        kept = rounds[1]
        return kept, alive & ~(drops & kept[:, None]).any(axis=0)

    return lax.while_loop(is_new, next_round, (jnp.zeros_like(alive), next_round((alive, alive))[1]))[1]
