"""What packages exchange: a batch of images, the training state, the facts of a data set, and metrics.

Dimension names in shapes, everywhere: batch, height, width, channel, classes.
"""

import dataclasses
from typing import Any

from flax import struct

DETECTION = "detection"  # `config.task` of detectors; classifiers have none

PyTree = Any
Leaf = Any  # of a pytree: an array of jax or numpy, or the shape and sharding of one


class Batch(struct.PyTreeNode):
    """One global batch, or the rows of it that one process holds.

    Attributes:
      image: uint8, (batch, height, width, channel), as decoded and cropped by the host; of an evaluation in several
        views a tuple of (batch, views, height, width, channel), one for each size of view.
      label: int32, (batch,), in [0, num_classes).
      mask: float32, (batch,): 1 for an image, 0 for padding (only evaluation pads).
    """

    image: Leaf
    label: Leaf
    mask: Leaf


class TrainState(struct.PyTreeNode):
    """All that a step changes; a checkpoint is this and the config, nothing else.

    There is no random-number state: every draw is keyed by (seed, step, position in the global batch).

    Attributes:
      step: int32 scalar, the number of optimizer updates made so far.
      params: float32 parameters, by path (`stage3/block2/conv2/kernel`).
      batch_stats: float32 running mean and variance of every batch norm.
      opt_state: the optimizer's state (the momentum buffers).
      ema: exponential moving averages of `params` and `batch_stats`, in a dict of these names; None: none are kept.
    """

    step: Leaf
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree = None

    @property
    def variables(self) -> PyTree:
        """`params` and `batch_stats`, to evaluate: averaged ones where there are any."""
        return {"params": self.params, "batch_stats": self.batch_stats} if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The facts of one split of a data set.

    Attributes:
      name: as in `config.data.name`.
      num_images: images in this split.
      class_names: one name per class, in label order.
      image_shape: (height, width, channel) where every image has the same; None where they differ.
      num_channels: that images of many shapes are decoded to: 3, or 1 for grey.
    """

    name: str
    num_images: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    num_channels: int = 3

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def batch_channels(self) -> int:
        """Channels of the images in a batch."""
        return self.image_shape[2] if self.image_shape else self.num_channels


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that a task reports.

    Attributes:
      name: field of a row in metrics.jsonl, such as "top1".
      label: name for people, such as "top-1".
      format: format specification of its value, such as ".2%".
      is_accuracy: True for a share of right answers, which curves show as an error.
    """

    name: str
    label: str
    format: str
    is_accuracy: bool = False

    def show(self, value: float) -> str:
        return f"{self.label} {value:{self.format}}"
