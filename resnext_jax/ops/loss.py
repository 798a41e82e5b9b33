"""What is minimised: the cross-entropy of one answer, or of a yes or no for every class."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resnext_jax.ops.mix import Labels


def targets(
    labels: Labels, num_classes: int, smoothing: float, dtype: DTypeLike = jnp.float32
) -> Float[Array, "batch classes"]:
    """The shares of the classes, `(1 - smoothing) * shares + smoothing / classes`; they sum to 1."""
    shares = jax.nn.one_hot(labels.own, num_classes, dtype=dtype)
    if labels.other is not None and labels.weight is not None:
        other = jax.nn.one_hot(labels.other, num_classes, dtype=dtype)
        shares = labels.weight[:, None] * shares + (1.0 - labels.weight)[:, None] * other
    return optax.smooth_labels(shares, smoothing)


def softmax(
    logits: Float[Array, "batch classes"], labels: Labels, *, smoothing: float, threshold: float | None = None
) -> Float[Array, " batch"]:
    """Softmax cross-entropy per image, in nats; it has no threshold."""
    del threshold
    return optax.softmax_cross_entropy(logits, targets(labels, logits.shape[-1], smoothing, logits.dtype))


def sigmoid(
    logits: Float[Array, "batch classes"], labels: Labels, *, smoothing: float, threshold: float | None = None
) -> Float[Array, " batch"]:
    """Binary cross-entropy per image, the mean over the classes, in nats (Wightman et al. 2021, section 2.2).

    Args:
      logits: of the network.
      labels: what the images show.
      smoothing: as for the softmax, so that with C classes the wrong ones are wanted at smoothing / C.
      threshold: a class of a larger share is wanted at 1, all others at 0; None for the shares as they are.
    """
    wanted = targets(labels, logits.shape[-1], smoothing, logits.dtype)
    if threshold is not None:
        wanted = (wanted > threshold).astype(logits.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, wanted).mean(axis=-1)


LOSSES = {"softmax": softmax, "sigmoid": sigmoid}
