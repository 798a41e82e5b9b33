"""A trained detector for notebooks and for prediction."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from resnext_jax.checkpoint import locate, read_description, read_variables
from resnext_jax.detection.batches import single
from resnext_jax.detection.detector import Detector, build_detector
from resnext_jax.detection.draw import draw_boxes
from resnext_jax.detection.evaluation import sizes_of
from resnext_jax.errors import UserError
from resnext_jax.ops.conv_choice import chip_of
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.types import PyTree

Picture = UInt8[np.ndarray, "_ _ 3"]  # of any size
Objects = list[dict[str, Any]]  # one dict per object: class, score, box


class DetectionNet:
    """Finds objects: `net.detect(images)`.

    Attributes:
      detector: both networks.
      variables: their `params` and `batch_stats`.
      config: the resolved config of the second stage.
      class_names: one per class; label 1 is the first.
    """

    def __init__(self, detector: Detector, variables: PyTree, class_names: tuple[str, ...]):
        self.detector, self.variables, self.class_names = detector, variables, class_names
        self.config: dict[str, Any] = detector.config.to_dict()
        self._sizes = sizes_of(detector.config)
        self._detect = jax.jit(detector.detect)

    def __repr__(self) -> str:
        return f"DetectionNet({self.config['model']}, {len(self.class_names)} classes)"

    def __call__(self, images: Any) -> Any:
        """Raise UserError: a detector has no logits of an image."""
        raise UserError("this is a detector, and it has no logits of a whole image: use net.detect(images).")

    def detect(self, images: np.ndarray | Sequence[np.ndarray], *, min_score: float | None = None) -> list[Objects]:
        """Return the objects in every image, the best first: dicts of `class`, `score` and `box`.

        A box is [x, y, width, height] in pixels of the image, as in COCO's files. Each image size of a batch is
        compiled when it is first seen; the config has four.

        Args:
          images: one decoded RGB image, uint8 (height, width, 3), or several of any sizes.
          min_score: smallest score to return; by default that of the config's evaluation.

        Raises:
          UserError: an image of another shape or dtype.
        """
        pictures = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else list(images)
        wrong = [
            f"image {number} is {getattr(image, 'dtype', type(image).__name__)} of shape {np.shape(image)}: give uint8 "
            "of shape (height, width, 3), such as numpy.asarray(PIL.Image.open(FILE).convert('RGB'))."
            for number, image in enumerate(pictures)
            if np.ndim(image) != 3 or np.shape(image)[2] != 3 or getattr(image, "dtype", None) != np.uint8
        ]
        if wrong:
            raise UserError(*wrong)
        return [self._objects(np.asarray(picture), min_score or 0.0) for picture in pictures]

    def draw(self, image: Picture, objects: Objects) -> Picture:
        """Return a copy of the image with the boxes, classes and scores of `detect`."""
        boxes = np.array([found["box"] for found in objects], np.float64).reshape(-1, 4)
        labels = np.array([self.class_names.index(found["class"]) + 1 for found in objects], np.int64)
        return draw_boxes(image, boxes, labels, [f"{found['class']} {found['score']:.2f}" for found in objects])

    def _objects(self, image: Picture, min_score: float) -> Objects:
        batch = single(image, self._sizes)
        found = jax.tree.map(lambda rows: np.asarray(rows)[0], self._detect(self.variables, batch))
        right, bottom = image.shape[1] - 1, image.shape[0] - 1
        objects = []
        for (x1, y1, x2, y2), label, score, present in zip(*map(np.ndarray.tolist, found), strict=True):
            if present and score >= min_score:
                x1, x2, y1, y2 = max(x1, 0.0), min(x2, right), max(y1, 0.0), min(y2, bottom)
                box = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
                objects.append({"class": self.class_names[label - 1], "score": score, "box": box})
        return objects


def load_detector(path: str) -> DetectionNet:
    """Return the detector of a checkpoint.

    Args:
      path: a workdir, its `checkpoints` directory (then the newest), or one checkpoint.

    Raises:
      UserError: there is no complete checkpoint, or it holds only the first stage.
    """
    checkpoint = locate(path)
    description = read_description(checkpoint)
    config = ConfigDict(description["config"])
    require_whole(config, str(checkpoint))
    device = jax.local_devices()[0]
    place = Place(make_mesh([device]), device.platform, chip_of(device.device_kind))
    class_names = tuple(description["dataset"]["class_names"])
    variables = read_variables(checkpoint, jax.sharding.SingleDeviceSharding(device))
    return DetectionNet(build_detector(config, len(class_names), place), variables, class_names)


def require_whole(config: ConfigDict, checkpoint: str) -> None:
    """Raise UserError for a checkpoint of the first stage, which only proposes boxes."""
    if config.stage == "rpn":
        raise UserError(
            f"{checkpoint} holds the first stage of a detector (RPN), which proposes boxes without classes. Give the "
            "workdir above it, once the second stage has a checkpoint there."
        )
