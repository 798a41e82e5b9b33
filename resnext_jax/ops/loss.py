"""Training losses: the cross-entropy of one answer, or of a yes or no for every class."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resnext_jax.ops.mix import Labels


def targets(
    labels: Labels, num_classes: int, smoothing: float, dtype: DTypeLike = jnp.float32
) -> Float[Array, "batch classes"]:
    """Return the shares of the classes, `(1 - smoothing) * shares + smoothing / classes`; they sum to 1."""
    shares = jax.nn.one_hot(labels.own, num_classes, dtype=dtype)
    if labels.other is not None and labels.weight is not None:
        other = jax.nn.one_hot(labels.other, num_classes, dtype=dtype)
        shares = labels.weight[:, None] * shares + (1.0 - labels.weight)[:, None] * other
    return optax.smooth_labels(shares, smoothing)


def softmax(
    logits: Float[Array, "batch classes"], labels: Labels, *, smoothing: float, threshold: float | None = None
) -> Float[Array, " batch"]:
    """Return the softmax cross-entropy per image, in nats; it has no threshold."""
    del threshold
    return optax.softmax_cross_entropy(logits, targets(labels, logits.shape[-1], smoothing, logits.dtype))


def sigmoid(
    logits: Float[Array, "batch classes"], labels: Labels, *, smoothing: float, threshold: float | None = None
) -> Float[Array, " batch"]:
    """Return the mean binary cross-entropy of the classes per image, in nats (Wightman et al. 2021, section 2.2).

    The targets are those of the softmax, or with a threshold 1 for larger ones and 0 for the others.
    """
    shares = targets(labels, logits.shape[-1], smoothing, logits.dtype)
    if threshold is not None:
        shares = (shares > threshold).astype(logits.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, shares).mean(axis=-1)


LOSSES = {"softmax": softmax, "sigmoid": sigmoid}
