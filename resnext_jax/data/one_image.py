"""Prepare one image for a network, for prediction and notebooks."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from resnext_jax.data.decode import TORCH7, center_crop
from resnext_jax.errors import UserError

GRAY_WEIGHTS = ((0.299,), (0.587,), (0.114,))

# Fields of `config.data` by image size, for ImageNet, CIFAR-10 and Fashion-MNIST, as in configs/common.py.
_IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_CIFAR10 = dict(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
_FASHION_MNIST = dict(mean=(72.94,), std=(90.02,))
USUAL: dict[int, dict[str, Any]] = {
    224: dict(image_size_px=224, resize_px=256, interpolation="bicubic", crop="random_sized", **_IMAGENET),
    32: dict(image_size_px=32, resize_px=32, interpolation="bicubic", crop="none", **_CIFAR10),
    28: dict(image_size_px=28, resize_px=28, interpolation="bicubic", crop="none", **_FASHION_MNIST),
}


def prepare(image: np.ndarray, data: dict[str, Any]) -> UInt8[np.ndarray, "1 size size channel"]:
    """Return a batch of one image, resized and cropped as in evaluation.

    Args:
      image: gray (with or without a channel dimension) or RGB image of any size.
      data: `config.data`, and `rounding` if it is not the original's (`decode.rounding_of`). The image is converted
        between RGB and gray to have as many channels as `mean`.

    Raises:
      UserError: another shape or dtype.
    """
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape or image.dtype != np.uint8:
        raise UserError(
            f"an image of shape {image.shape} and dtype {image.dtype}: give one image, (height, width) or (height, "
            "width, 1 or 3), as uint8 in 0..255. Of a file: np.asarray(PIL.Image.open(FILE).convert('RGB'))."
        )
    if image.shape[-1] == 3 and len(data["mean"]) == 1:
        image = np.round(image @ np.array(GRAY_WEIGHTS)).astype(np.uint8)
    elif image.shape[-1] == 1 and len(data["mean"]) == 3:
        image = np.repeat(image, 3, axis=-1)
    # Without a crop the images have the size of the network: the whole short side is kept.
    resize_px = data["image_size_px"] if data["crop"] == "none" else data["resize_px"]
    rounding = data.get("rounding", TORCH7)
    return center_crop(image, data["image_size_px"], resize_px, data["interpolation"], rounding)[None]
