"""Small data sets in COCO's format, as files and in memory."""

import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from resnext_jax.detection.types import Annotations, DetectionData, Detections

SIZES_PX = ((48, 64), (64, 48), (40, 80))  # height, width


def pixels(height: int, width: int, seed: int) -> np.ndarray:
    """An image without fine detail, so that a JPEG keeps it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def content(num_images: int = 6, first_id: int = 1, folder: str = "train") -> dict[str, Any]:
    """Annotations of `num_images` images: image k has k % 3 boxes of 10 x 8 px, so that some have none."""
    images, annotations = [], []
    for number in range(num_images):
        height, width = SIZES_PX[number % 3]
        name = f"{folder}/{number:04}.png" if folder else f"{number:04}.png"
        images.append({"id": first_id + number, "file_name": name, "height": height, "width": width})
        for place in range(number % 3):
            annotations.append(
                {
                    "id": 1000 * first_id + len(annotations),
                    "image_id": first_id + number,
                    "category_id": (7, 3)[place],
                    "bbox": [2 + 11 * place, 3, 10, 8],
                    "area": 80,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 7, "name": "zebra"}, {"id": 3, "name": "ant"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(directory: pathlib.Path, name: str, own: dict[str, Any], folder: str = "") -> pathlib.Path:
    """Writes annotations to `name` and their images, PNG files, below `folder`; returns the directory."""
    for image in own["images"]:
        path = directory / folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(pixels(image["height"], image["width"], image["id"])).save(path)
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own))
    return directory


def in_memory(boxes: list[dict[str, Any]], num_images: int = 1, num_classes: int = 1) -> DetectionData:
    """A data set from boxes with `box`, and where it matters `image`, `label`, `crowd`, `area` and `id`."""
    boxes = sorted(boxes, key=lambda box: box.get("image", 0))

    def column(name: str, dtype: type, default: Any) -> np.ndarray:
        return np.array([own.get(name, default(place, own)) for place, own in enumerate(boxes)], dtype)

    own = Annotations(
        column("id", np.int64, lambda place, _: place + 1),
        column("image", np.int32, lambda *_: 0),
        column("label", np.int32, lambda *_: 1),
        np.array([own["box"] for own in boxes], np.float64).reshape(-1, 4),
        column("area", np.float64, lambda _, own: own["box"][2] * own["box"][3]),
        column("crowd", bool, lambda *_: False),
    )
    return DetectionData(
        tuple(f"class {k}" for k in range(num_classes)),
        3 * np.arange(num_classes) + 2,
        10 * np.arange(num_images) + 5,
        np.full((num_images, 2), 1000, np.int32),
        tuple(f"{k}.jpg" for k in range(num_images)),
        own,
        (),
    )


def detections(*rows: tuple[float, list[float]], image: int = 0, label: int = 1) -> Detections:
    """Detections of one class in one image from (score, box)."""
    boxes = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    scores = np.array([score for score, _ in rows], np.float64)
    return Detections(np.full(len(rows), image, np.int32), np.full(len(rows), label, np.int32), scores, boxes)
