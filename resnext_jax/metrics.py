"""Masked sums of metrics. They can be added exactly over batches and devices; the mean is taken once at the end."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from resnext_jax.types import Leaf

Tree = TypeVar("Tree")

# Fields of metrics.jsonl that depend on the machine and its load. All others are equal in every run of a config.
TIMED_FIELDS = frozenset(
    {
        *("images_per_s", "images_per_s_per_chip", "step_p50_s", "step_p95_s", "step_max_s"),
        *("input_wait", "input_wait_p95_s", "mfu", "device_memory_peak_bytes"),
    }
)


class Sums(struct.PyTreeNode):
    """Sums over the images that the mask keeps."""

    loss: Leaf  # cross-entropies without label smoothing, in nats
    top1: Leaf  # number of images whose label has the largest logit
    top5: Leaf  # ... whose label is among the five largest logits (all images if there are at most five classes)
    images: Leaf  # number of images


class PresentSums(Sums):
    """Sums with `top1` and `top5` also among only the classes that the images have."""

    top1_present: Leaf
    top5_present: Leaf


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Return the softmax cross-entropy of each image, in nats."""
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype))


def count(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], mask: Float[Array, " batch"]) -> Sums:
    """Return the sums of one batch. A tie with the label's logit counts as wrong, so constant logits score 0."""
    return _sums(cross_entropy(logits, labels), _ahead(logits, labels), mask > 0)


def count_present(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Float[Array, " batch"],
    present: Bool[np.ndarray, " classes"],
) -> PresentSums:
    """Return the sums of one batch among all classes and among the classes marked by `present`."""
    ahead, keep = _ahead(logits, labels, jnp.asarray(present)[None]), mask > 0
    return PresentSums(
        **vars(count(logits, labels, mask)),
        top1_present=jnp.sum(keep & (ahead < 1)),
        top5_present=jnp.sum(keep & (ahead < 5)),
    )


def _ahead(logits: Array, labels: Array, among: Array | bool = True) -> Int[Array, " batch"]:
    """Return how many other classes have a logit at least as large as the label's. A NaN counts as larger."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.sum(~(logits < own) & among, axis=-1) - 1


def _sums(losses: Array, ahead: Array, keep: Array) -> Sums:
    return Sums(
        loss=jnp.sum(jnp.where(keep, losses, 0.0)),
        top1=jnp.sum(keep & (ahead < 1)),
        top5=jnp.sum(keep & (ahead < 5)),
        images=jnp.sum(keep),
    )


def count_any(
    logits: Float[Array, "batch classes"], accepted: Int[Array, "batch most"], mask: Float[Array, " batch"]
) -> Sums:
    """Return the sums of one batch with several correct labels per image; images without any are not counted.

    The labels (`accepted`) are padded with -1. Source: Beyer et al. 2020, "Are we done with ImageNet?", section 3.
    """
    right = accepted >= 0
    own = jnp.where(right, jnp.take_along_axis(logits, jnp.maximum(accepted, 0), axis=-1), -jnp.inf)
    best = own.max(axis=-1, keepdims=True)
    # The rank of the best correct class among the wrong classes.
    is_right = (jnp.arange(logits.shape[-1])[None, None] == accepted[:, :, None]).any(axis=1)
    ahead = jnp.sum(~(logits < best) & ~is_right, axis=-1)
    keep = (mask > 0) & right.any(axis=-1)
    log_probability = jax.nn.logsumexp(own, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    return _sums(-log_probability, ahead, keep)


def add(left: Tree, right: Tree) -> Tree:
    """Return the sum of two trees of the same structure, leaf by leaf."""
    return jax.tree.map(lambda a, b: a + b, left, right)


def zeros() -> Sums:
    """Return sums of no images, on the host (float64 and int64, exact for any data set)."""
    return Sums(loss=np.float64(0), top1=np.int64(0), top5=np.int64(0), images=np.int64(0))


def means(sums: Sums) -> dict[str, float]:
    """Return the mean `loss` and the accuracies in 0..1: `top1`, `top5`, and those of `PresentSums`.

    Raises:
      ValueError: there were no images.
    """
    if not sums.images:
        raise ValueError("no images were counted")
    images = int(sums.images)
    counts = {name: int(count) / images for name, count in vars(sums).items() if name not in ("loss", "images")}
    return {"loss": float(sums.loss) / images, **counts}


def interval(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy (Wilson score interval)."""
    share, z = right / images, 1.959964
    middle = share + z**2 / (2 * images)
    half = z * (share * (1 - share) / images + z**2 / (4 * images**2)) ** 0.5
    scale = 1 + z**2 / images
    return (middle - half) / scale, (middle + half) / scale
