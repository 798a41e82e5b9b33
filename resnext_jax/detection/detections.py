"""The objects of an image, from the outputs of Fast R-CNN (py-faster-rcnn's `test.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from resnext_jax.detection import boxes as box_math
from resnext_jax.detection.nms import nms
from resnext_jax.detection.sampling import REGION_STD


class Detections(NamedTuple):
    """Objects found in an image, best first; rows are unused where fewer are found."""

    boxes: Float[Array, "detections 4"]
    label: Int[Array, " detections"]  # from 1; 0 in unused rows
    score: Float[Array, " detections"]  # probability of the class; 0 in unused rows
    present: Bool[Array, " detections"]


def find_objects(
    logits: Float[Array, "regions classes_and_background"],
    deltas: Float[Array, "regions classes 4"],
    regions: Float[Array, "regions 4"],
    present: Bool[Array, " regions"],
    size_px: Float[Array, "2"],
    *,
    smallest_score: float = 0.05,
    iou_threshold: float = 0.3,
    num_detections: int = 100,
) -> Detections:
    """Return the best boxes of all classes, after an NMS for each class.

    A region may be found as an object of several classes, each with a box of its own.

    Args:
      logits: of the classes of each region; class 0 is the background.
      deltas: box codes of each region for each class from 1, in units of `REGION_STD`.
      regions: boxes, in the pixels that the results shall have.
      present: which of them are proposals, not padding.
      size_px: height and width of the image, in the same pixels.
      smallest_score: boxes of this score or less are dropped (`test_net`'s `thresh`).
      iou_threshold: of NMS (TEST.NMS).
      num_detections: most boxes of all classes together (`test_net`'s `max_per_image`).
    """
    num_regions = len(regions)
    std = jnp.asarray(REGION_STD, jnp.float32)[None, None]
    around = jnp.broadcast_to(regions[:, None], deltas.shape)
    boxes = box_math.clip(box_math.decode(deltas * std, around), size_px).swapaxes(0, 1)
    scores = jax.nn.softmax(logits, axis=-1)[:, 1:].T
    scores = jnp.where(present[None] & (scores > smallest_score), scores, -jnp.inf)

    def best_of_class(boxes: Array, scores: Array) -> tuple[Array, Array]:
        # The best of all classes are among the best of each, so no class needs more places.
        index, chosen = nms(boxes, scores, iou_threshold, min(num_detections, num_regions))
        return boxes[index], jnp.where(chosen, scores[index], -jnp.inf)

    boxes, scores = jax.vmap(best_of_class)(boxes, scores)
    score, place = lax.top_k(scores.reshape(-1), min(num_detections, scores.size))
    present = score > -jnp.inf
    label = jnp.where(present, place // scores.shape[1] + 1, 0).astype(jnp.int32)
    boxes = jnp.where(present[:, None], boxes.reshape(-1, 4)[place], 0)
    return Detections(boxes, label, jnp.where(present, score, 0), present)
