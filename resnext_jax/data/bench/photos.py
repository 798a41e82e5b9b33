"""Real photographs at ImageNet's size, cut from the two that scikit-learn ships."""

import importlib.util
import io

import numpy as np
from PIL import Image

from resnext_jax.errors import UserError

WIDTH_PX, HEIGHT_PX, QUALITY = 500, 375, 96  # the median image of ImageNet: some 110 kB
CHINA_PER_FLOWER = 3  # china.jpg has much detail (100 to 118 kB), flower.jpg little (68 kB)


def photographs(count: int) -> list[bytes]:
    """Return JPEGs of 500 x 375 px, cut at places from a fixed seed; raises UserError without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("the photographs come with scikit-learn, which is not installed: pip install scikit-learn")
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        photo = china if number % (CHINA_PER_FLOWER + 1) else flower
        top = rng.integers(photo.shape[0] - HEIGHT_PX, endpoint=True)
        left = rng.integers(photo.shape[1] - WIDTH_PX, endpoint=True)
        stream, window = io.BytesIO(), photo[top : top + HEIGHT_PX, left : left + WIDTH_PX]
        Image.fromarray(window).save(stream, "JPEG", quality=QUALITY)
        files.append(stream.getvalue())
    return files
