"""What the parts of the detector exchange: images with their true boxes, batches of them, and detections."""

import dataclasses

import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Float64, Int, Int32, Int64

from resnext_jax.types import Leaf

# True boxes of one image in a batch; COCO's images have up to 93.
MAX_BOXES = 100


class DetectionBatch(struct.PyTreeNode):
    """One global batch of images of one static size, or the rows of it that one process holds.

    Boxes are x1, y1, x2, y2 in pixels of the resized image. Their corners belong to them, as in py-faster-rcnn: a box
    is x2 - x1 + 1 wide.

    Attributes:
      image: uint8, (batch, height, width, 3), resized and flipped by the host, with zeros at the right and the bottom.
      size_px: float32, (batch, 2): height and width of the resized image inside of `image`.
      scale: float32, (batch,): size of the resized image / size of the original one, before the size is rounded.
      boxes: float32, (batch, max_boxes, 4): true boxes, padded with zeros.
      label: int32, (batch, max_boxes): 1 to num_classes in the order of the ids of the file; 0 is padding.
      crowd: bool, (batch, max_boxes): True for a box around a crowd of objects.
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
class Annotations:
    """True boxes of a data set as its file has them, sorted by image.

    Attributes:
      id: id in the file.
      image: index of the image.
      label: 1 to num_classes, in the order of the ids of the file.
      boxes: x, y, width, height in pixels.
      area: area of the object in square pixels; at COCO that of its outline.
      crowd: True for a box around a crowd of objects.
    """

    id: Int64[np.ndarray, " annotations"]
    image: Int32[np.ndarray, " annotations"]
    label: Int32[np.ndarray, " annotations"]
    boxes: Float64[np.ndarray, "annotations 4"]
    area: Float64[np.ndarray, " annotations"]
    crowd: Bool[np.ndarray, " annotations"]

    def __len__(self) -> int:
        return len(self.id)


@dataclasses.dataclass(frozen=True)
class DetectionData:
    """Images and true boxes of one split, in arrays; images are sorted by their id.

    Attributes:
      class_names: names of the classes in the order of their ids; class k has the label k + 1.
      class_ids: ids of the classes in the file, ascending.
      image_ids: ids of the images in the file, ascending.
      size_px: height and width of each image.
      files: path of each image below the directory of the images.
      annotations: true boxes.
      notes: sentences for the user: what is unusual, and what training leaves out.
    """

    class_names: tuple[str, ...]
    class_ids: Int64[np.ndarray, " classes"]
    image_ids: Int64[np.ndarray, " images"]
    size_px: Int32[np.ndarray, "images 2"]
    files: tuple[str, ...]
    annotations: Annotations
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclasses.dataclass(frozen=True)
class Detections:
    """Boxes that a detector found in any number of images, in pixels of the original images.

    Attributes:
      image: index of the image in the data set.
      label: 1 to num_classes, as in `Annotations`.
      score: confidence; larger is better.
      boxes: x, y, width, height, as in COCO's files.
    """

    image: Int[np.ndarray, " detections"]
    label: Int[np.ndarray, " detections"]
    score: Float[np.ndarray, " detections"]
    boxes: Float[np.ndarray, "detections 4"]

    def __len__(self) -> int:
        return len(self.score)
