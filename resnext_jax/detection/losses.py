"""The losses of one image: RPN and Fast R-CNN (Ren et al. 2015, equation 1; Girshick 2015, equations 1 to 3)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from resnext_jax.detection.sampling import AnchorSample, RegionSample

# Where smooth L1 becomes linear: 1 / sigma^2, with py-faster-rcnn's sigma of 3 for the RPN and 1 for regions.
RPN_BETA = 1 / 9
REGION_BETA = 1.0

Losses = tuple[Float[Array, ""], Float[Array, ""]]  # of the classes, of the boxes


def smooth_l1(
    predicted: Float[Array, "samples 4"], target: Float[Array, "samples 4"], beta: float
) -> Float[Array, " samples"]:
    """Return 0.5 d^2 / beta where |d| < beta, else |d| - beta / 2; summed over the four numbers of a box code."""
    return optax.huber_loss(predicted, target, delta=beta).sum(axis=1) / beta


def rpn_losses(logits: Float[Array, " anchors"], deltas: Float[Array, "anchors 4"], sample: AnchorSample) -> Losses:
    """Return sigmoid cross-entropy and smooth L1 of the sampled anchors, both over their number.

    Args:
      logits: of all anchors; above 0 for an object.
      deltas: predicted box codes of all anchors.
      sample: the anchors to train on.
    """
    sample = jax.lax.stop_gradient(sample)
    entropy = optax.sigmoid_binary_cross_entropy(logits[sample.index], sample.label)
    return _mean(entropy, sample), _mean(_distance(deltas[sample.index], sample, RPN_BETA), sample)


def region_losses(
    logits: Float[Array, "samples classes_and_background"],
    deltas: Float[Array, "samples classes 4"],
    sample: RegionSample,
    beta: float = REGION_BETA,
) -> Losses:
    """Return softmax cross-entropy and smooth L1 of the sampled regions, both over their number.

    Args:
      logits: of the sampled regions; class 0 is the background.
      deltas: predicted box codes of the sampled regions for each class from 1.
      sample: the regions to train on.
      beta: where smooth L1 becomes linear.
    """
    sample = jax.lax.stop_gradient(sample)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, sample.label)
    column = jnp.maximum(sample.label - 1, 0)
    of_class = jnp.take_along_axis(deltas, column[:, None, None], axis=1)[:, 0]
    return _mean(entropy, sample), _mean(_distance(of_class, sample, beta), sample)


def _distance(
    predicted: Float[Array, "samples 4"], sample: AnchorSample | RegionSample, beta: float
) -> Float[Array, " samples"]:
    """Return smooth L1 of the box codes of objects, and 0 for the background, whose targets may be anything."""
    is_object = (sample.label > 0)[:, None]
    return smooth_l1(jnp.where(is_object, predicted, 0), jnp.where(is_object, sample.target, 0), beta)


def _mean(values: Float[Array, " samples"], sample: AnchorSample | RegionSample) -> Float[Array, ""]:
    """Return the sum over the samples in use, over their number; an image without samples gives 0."""
    return jnp.where(sample.used, values, 0).sum() / jnp.maximum(sample.used.sum(dtype=jnp.float32), 1)
