"""Draw labeled boxes on pictures."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from resnext_jax.detection.types import Detections

_HUE_STEP = 0.618034  # the golden ratio: neighboring labels get colors far apart
_DARK_BELOW = 140  # of 255: on a darker color the text is white


def color_of(label: int) -> tuple[int, int, int]:
    """Return the color of a class."""
    red, green, blue = colorsys.hsv_to_rgb(label * _HUE_STEP % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: UInt8[np.ndarray, "height width 3"],
    boxes: Float[np.ndarray, "boxes 4"],
    labels: Int[np.ndarray, " boxes"],
    texts: Sequence[str],
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a copy of the image with boxes; the first are drawn last, on top of the others.

    Args:
      image: picture.
      boxes: x, y, width, height in pixels of the picture.
      labels: class of each box, which decides its color.
      texts: text above each box, or inside of it at the top of the picture; may be empty.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    short = min(picture.size)
    line_px, font = max(1, short // 200), ImageFont.load_default(max(10, short // 30))
    for (x, y, width, height), label, text in list(zip(boxes.tolist(), labels.tolist(), texts, strict=True))[::-1]:
        color = color_of(label)
        # Pillow wants the corners in order, and a broken box is best seen as a point.
        pen.rectangle((x, y, x + max(width - 1, 0), y + max(height - 1, 0)), outline=color, width=line_px)
        if not text:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), text, font)
        columns, rows = right - left + 4, bottom - top + 4
        corner_x = min(max(x, 0), max(picture.width - columns, 0))
        corner_y = y - rows if y >= rows else max(y, 0)
        pen.rectangle((corner_x, corner_y, corner_x + columns - 1, corner_y + rows - 1), fill=color)
        luminance = (299 * color[0] + 587 * color[1] + 114 * color[2]) / 1000
        ink = (255, 255, 255) if luminance < _DARK_BELOW else (0, 0, 0)
        pen.text((corner_x + 2 - left, corner_y + 2 - top), text, ink, font)
    return np.asarray(picture)


def draw_detections(
    image: UInt8[np.ndarray, "height width 3"], found: Detections, class_names: Sequence[str]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a copy of the image with the detections, all of this image: class and score above each box."""
    order = np.argsort(-found.score, kind="stable")
    labels = found.label[order]
    scores = found.score[order].tolist()
    texts = [f"{class_names[label - 1]} {score:.2f}" for label, score in zip(labels.tolist(), scores, strict=True)]
    return draw_boxes(image, found.boxes[order], labels, texts)
