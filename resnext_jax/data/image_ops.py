"""Operations of the augmentation policies on Pillow images, as in torchvision and timm."""

import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

Fill = int | tuple[int, ...]
Op = Callable[[Image.Image, float, Image.Resampling, Fill], Image.Image]

SOLARIZE_ADD_BELOW = 128


def _affine(matrix: Callable[[float], tuple[float, ...]]) -> Op:
    """Return an operation that takes the pixel (x, y) from (a x + b y + c, d x + e y + f) of the image."""
    return lambda image, amount, resample, fill: image.transform(
        image.size, Image.Transform.AFFINE, matrix(amount), resample, fillcolor=fill
    )


def _rotate(image: Image.Image, degrees: float, resample: Image.Resampling, fill: Fill) -> Image.Image:
    return image.rotate(degrees, resample, fillcolor=fill)


def _solarize_add(image: Image.Image, added: float, *_: object) -> Image.Image:
    table = [min(255, level + int(added)) if level < SOLARIZE_ADD_BELOW else level for level in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Op:
    return lambda image, factor, *_: enhancer(image).enhance(factor)


OPS: dict[str, Op] = {
    "identity": lambda image, *_: image,
    "shear_x": _affine(lambda slope: (1, slope, 0, 0, 1, 0)),
    "shear_y": _affine(lambda slope: (1, 0, 0, slope, 1, 0)),
    "translate_x": _affine(lambda left_px: (1, 0, left_px, 0, 1, 0)),
    "translate_y": _affine(lambda up_px: (1, 0, 0, 0, 1, up_px)),
    "rotate": _rotate,
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": lambda image, bits, *_: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold, *_: ImageOps.solarize(image, math.ceil(threshold)),
    "solarize_add": _solarize_add,
    "auto_contrast": lambda image, *_: ImageOps.autocontrast(image),
    "equalize": lambda image, *_: ImageOps.equalize(image),
    "invert": lambda image, *_: ImageOps.invert(image),
}
