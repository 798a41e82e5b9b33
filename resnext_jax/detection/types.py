"""What the parts of the detector exchange: a batch of images with their true boxes, and detections."""

import dataclasses

import numpy as np
from flax import struct
from jaxtyping import Float, Int

from resnext_jax.types import Leaf

# True boxes of one image in a batch; COCO's images have up to 93, without crowds.
MAX_BOXES = 100


class DetectionBatch(struct.PyTreeNode):
    """One global batch of images of one static size, or the rows of it that one process holds.

    Boxes are x1, y1, x2, y2 in pixels of the resized image. Their corners belong to them, as in py-faster-rcnn: a box
    is x2 - x1 + 1 wide.

    Attributes:
      image: uint8, (batch, height, width, 3), resized and flipped by the host, with zeros at the right and the bottom.
      size_px: float32, (batch, 2): height and width of the resized image inside of `image`.
      scale: float32, (batch,): size of the resized image / size of the original one, before the size is rounded.
      boxes: float32, (batch, MAX_BOXES, 4): true boxes, padded with zeros.
      label: int32, (batch, MAX_BOXES): 1 to num_classes in the order of the ids of the file; 0 is padding.
      crowd: bool, (batch, MAX_BOXES): True for a box around a crowd of objects.
      image_id: int32, (batch,): index of the image in the data set, not the id in the file.
      mask: float32, (batch,): 1 for an image, 0 for padding.
    """

    image: Leaf
    size_px: Leaf
    scale: Leaf
    boxes: Leaf
    label: Leaf
    crowd: Leaf
    image_id: Leaf
    mask: Leaf


@dataclasses.dataclass(frozen=True)
class Detections:
    """Boxes that a detector found in one or more images, in pixels of the original images.

    Attributes:
      image: index of the image in the data set.
      label: 1 to num_classes, as in `DetectionBatch`.
      score: confidence, 0 to 1.
      boxes: x, y, width, height, as in COCO's files.
    """

    image: Int[np.ndarray, " detections"]
    label: Int[np.ndarray, " detections"]
    score: Float[np.ndarray, " detections"]
    boxes: Float[np.ndarray, "detections 4"]

    def __len__(self) -> int:
        return len(self.score)
