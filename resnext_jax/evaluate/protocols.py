"""How a network is tested: the views of each image, and how their scores become one.

The scores of the views are averaged, which ranks the classes as the original's sum of logits does. The members of an
ensemble have scores on scales of their own: their probabilities are averaged.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from resnext_jax import metrics
from resnext_jax.data.views import Views, multi_scale, ten_crop
from resnext_jax.errors import UserError
from resnext_jax.evaluate.classify import predict_step
from resnext_jax.models.vgg import Vgg
from resnext_jax.models.zoo import Network
from resnext_jax.ops.pool import dense_average
from resnext_jax.types import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way of testing.

    Attributes:
      image_size_px, resize_px: sizes of the center crop; None for those of the config.
      views: (image_size_px, resize_px, interpolation, rounding) -> the views of an image; None for the center crop.
      mirrored: every view also counts as seen in a mirror.
      dense: the classifier is applied at every position, and averaged.
    """

    image_size_px: int | None = None
    resize_px: int | None = None
    views: Callable[[int, int, str, str], Views] | None = None
    mirrored: bool = False
    dense: bool = False


PROTOCOLS = {
    "center": Protocol(),
    "center_320": Protocol(image_size_px=320, resize_px=365),  # 320 * 256 / 224: the share of the image that 224 is
    "ten_crop": Protocol(views=ten_crop),
    # Simonyan & Zisserman 2015 (section 3.2) mirror; He et al. 2016 (section 3.4) leave it open.
    "multi_scale": Protocol(views=multi_scale, mirrored=True, dense=True),
}


# Which classes an answer may be: all that the network knows, or those that the images have.
CANDIDATES = ("all", "present")


@dataclasses.dataclass(frozen=True)
class Member:
    """One network of an ensemble, with the normalisation that belongs to its weights."""

    model: Network
    mean: Sequence[float]
    std: Sequence[float]

    def dense(self, image_size_px: int) -> "Member":
        """The same network, for images of any size, its classifier applied at every position.

        Args:
          image_size_px: size of the center crop. Its last activations are one window.

        Raises:
          UserError: it does not end in an average over positions.
        """
        if isinstance(self.model, Vgg):
            raise UserError(
                "dense testing (protocol='multi_scale') is for networks that end in a global average; a VGG ends in "
                "fully connected layers over 7 x 7 positions. Take --config.protocol=ten_crop."
            )
        window_px = -(-image_size_px // self.model.arch.smallest_px)
        pool = partial(dense_average, window_px=window_px)
        return dataclasses.replace(self, model=self.model.clone(pool=pool))


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the labels of the data mean to a network.

    Attributes:
      label_of: (data classes,), the network's label of each class of the data; (images,), that of each image, where
        the batch's labels are the images' indices (`answers.Recorder`).
      candidates: the network's labels that an answer may have, ascending; None for all of them.
      accepted: (images, most) the right answers for each image, filled up with -1; the batch's labels are then the
        images' numbers. None where the label is the one right answer.
    """

    label_of: Int[np.ndarray, " data_classes"]
    candidates: Int[np.ndarray, " candidates"] | None = None
    accepted: Int[np.ndarray, "images most"] | None = None


def score_step(
    variables: Sequence[PyTree],
    batch: Batch,
    *,
    members: Sequence[Member],
    mirrored: bool,
    classes: Classes,
) -> metrics.Sums:
    """The sums of one batch; padding is masked.

    Args:
      batch: its `image` one array, or a tuple of views (`types.Batch`).
      mirrored: see `Protocol`.
      classes: see `Classes`.
    """
    logits, labels = logits_and_labels(variables, batch, members=members, mirrored=mirrored, classes=classes)
    return count_right(logits, labels, batch.mask, classes)


def logits_and_labels(
    variables: Sequence[PyTree], batch: Batch, *, members: Sequence[Member], mirrored: bool, classes: Classes
) -> tuple[Float[Array, "batch candidates"], Int[Array, " batch"]]:
    """The logits of the candidates, and the labels among them (rows of `Classes.accepted` if there are any)."""
    views = batch.image if isinstance(batch.image, tuple) else (batch.image[:, None],)
    scores = [
        view_scores(own, views, member=member, mirrored=mirrored)
        for own, member in zip(variables, members, strict=True)
    ]
    labels = batch.label if classes.accepted is not None else jnp.asarray(classes.label_of)[batch.label]
    if classes.candidates is not None:
        place = np.zeros(scores[0].shape[-1], np.int32)
        place[classes.candidates] = np.arange(len(classes.candidates))
        # Before the members are averaged: of each the softmax over the candidates alone.
        scores, labels = [one[:, classes.candidates] for one in scores], jnp.asarray(place)[labels]
    logits = scores[0]
    if len(scores) > 1:
        logits = jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(one) for one in scores]), axis=0) - np.log(len(scores))
    return logits, labels


def count_right(
    logits: Float[Array, "batch candidates"], labels: Int[Array, " batch"], mask: Array, classes: Classes
) -> metrics.Sums:
    """The sums of the logits and labels of `logits_and_labels`."""
    if classes.accepted is not None:
        return metrics.count_any(logits, jnp.asarray(classes.accepted)[labels], mask)
    return metrics.count(logits, labels, mask)


def view_scores(
    variables: PyTree, views: Sequence[Array], *, member: Member, mirrored: bool
) -> Float[Array, "batch classes"]:
    """The logits of each image, averaged over its views.

    Args:
      variables: `params` and `batch_stats`.
      views: (batch, views, height, width, channel) for each size.
      member, mirrored: see `score_step`.
    """
    predict = partial(predict_step, variables, model=member.model, mean=member.mean, std=member.std)

    def add(total: Array, images: Array) -> tuple[Array, None]:
        total = total + predict(images)
        return (total + predict(images[:, :, ::-1]) if mirrored else total), None

    total = jnp.zeros((), jnp.float32)
    for images in views:
        shape = jax.eval_shape(predict, images[:, 0])
        # One view after the other: a program, and activations, of the size of one.
        total_of_size, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), jnp.moveaxis(images, 1, 0))
        total = total + total_of_size
    return total / (sum(images.shape[1] for images in views) * (2 if mirrored else 1))
