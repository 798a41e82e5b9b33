"""Augmentation policies: draw operations and their strengths for each image, on the host.

Pillow applies them, as in the recipes that they come from; on a device the results would differ.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnext_jax.data.image_ops import OPS

Pixels = UInt8[np.ndarray, "height width channel"]
Drawn = list[tuple[str, float]]
Alter = Callable[[Pixels, np.random.Generator], Pixels]

NUM_STRENGTHS = 31


# TrivialAugment's wide space (Müller and Hutter 2021, arXiv 2103.10158, Table 1) as in torchvision: the weakest and the
# strongest of 31 evenly spaced values, whether the sign is random, and the argument of the operation for a value.
WIDE: dict[str, tuple[float, float, bool, Callable[[float], float]]] = {
    "identity": (0.0, 0.0, False, float),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.99, True, float)),
    # Pixels of the crop, whatever its size.
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 32.0, True, lambda pixels: -int(pixels))),
    "rotate": (0.0, 135.0, True, float),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.0, 0.99, True, lambda value: 1.0 + value)),
    "posterize": (8.0, 2.0, False, round),
    "solarize": (1.0, 0.0, False, lambda share: 255.0 * share),
    **dict.fromkeys(("auto_contrast", "equalize"), (0.0, 0.0, False, float)),
}


def trivial_augment(rng: np.random.Generator, height: int, width: int, magnitude: float) -> Drawn:
    """Return one operation of `WIDE` with one of 31 strengths, all equally likely."""
    del height, width, magnitude
    name = tuple(WIDE)[rng.integers(len(WIDE))]
    return [(name, wide_argument(name, int(rng.integers(NUM_STRENGTHS)), negative=rng.random() < 0.5))]


def wide_argument(name: str, strength: int, *, negative: bool) -> float:
    """Return the argument of an operation of `WIDE` for a strength in [0, 31)."""
    first, last, signed, argument = WIDE[name]
    # The same bits as torch.linspace, which counts from the nearer end: the last bit can change a pixel.
    step = float(np.float32((np.float32(last) - np.float32(first)) / np.float32(NUM_STRENGTHS - 1)))
    left = NUM_STRENGTHS - 1 - strength
    last = float(np.float32(last))
    value = float(np.float32(first + step * strength if strength < left else last - step * left))
    return argument(-value if signed and negative else value)


# timm's RandAugment in the form "inc1", where every operation is stronger at a higher level: the argument of each
# operation for a level in [0, 1], a sign, and the height and width.
INCREASING: dict[str, Callable[[float, int, int, int], float]] = {
    **dict.fromkeys(("auto_contrast", "equalize", "invert"), lambda level, sign, height, width: 0.0),
    "rotate": lambda level, sign, height, width: sign * 30.0 * level,
    "posterize": lambda level, sign, height, width: max(1, 4 - int(level * 4)),  # Pillow has no image of 0 bits
    "solarize": lambda level, sign, height, width: 256 - min(256, int(level * 256)),
    "solarize_add": lambda level, sign, height, width: min(128, int(level * 110)),
    **dict.fromkeys(
        ("color", "contrast", "brightness", "sharpness"),
        lambda level, sign, height, width: max(0.1, 1.0 + sign * 0.9 * level),
    ),
    **dict.fromkeys(("shear_x", "shear_y"), lambda level, sign, height, width: sign * 0.3 * level),
    "translate_x": lambda level, sign, height, width: sign * 0.45 * level * width,
    "translate_y": lambda level, sign, height, width: sign * 0.45 * level * height,
}
MAX_MAGNITUDE = 10
MAGNITUDE_STD = 0.5
NUM_LAYERS = 2
LAYER_PROBABILITY = 0.5


def rand_augment(rng: np.random.Generator, height: int, width: int, magnitude: float) -> Drawn:
    """Return two random operations of `INCREASING`, which may be equal, each kept with probability 1/2.

    Source: Cubuk et al. 2019 (arXiv 1909.13719), as timm's `rand-m<magnitude>-mstd0.5-inc1`.
    """
    drawn = []
    for _ in range(NUM_LAYERS):
        name = tuple(INCREASING)[rng.integers(len(INCREASING))]
        made, level, sign = rng.random(), rng.normal(magnitude, MAGNITUDE_STD), 1 if rng.random() < 0.5 else -1
        if made < LAYER_PROBABILITY:
            share = min(max(level, 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
            drawn.append((name, INCREASING[name](share, sign, height, width)))
    return drawn


@dataclasses.dataclass(frozen=True)
class Policy:
    """A row of the table.

    Attributes:
      draw: (rng, height, width, magnitude) -> names of operations in `image_ops.OPS` and their arguments.
      resample: interpolation of the operations that move pixels.
      fills_with_mean: fill pixels from outside the image with the mean color of the data set instead of black.
    """

    draw: Callable[[np.random.Generator, int, int, float], Drawn]
    resample: Image.Resampling
    fills_with_mean: bool


POLICIES = {
    "none": None,
    "trivial_augment": Policy(trivial_augment, Image.Resampling.BILINEAR, fills_with_mean=False),
    "rand_augment": Policy(rand_augment, Image.Resampling.BICUBIC, fills_with_mean=True),
}


def make_alter(name: str, *, magnitude: float, flip: bool, mean: Sequence[float]) -> Alter | None:
    """Return a function (image, rng) -> image that applies a row of `POLICIES`; None for the row "none".

    Args:
      magnitude: magnitude of rand_augment, in [0, 10].
      flip: mirror with probability 1/2 before the other operations, because a shear is not symmetric.
      mean: mean of each channel, on the scale 0..255.
    """
    policy = POLICIES[name]
    if policy is None:
        return None
    color = tuple(round(channel) for channel in mean) if policy.fills_with_mean else (0,) * len(mean)

    def alter(image: Pixels, rng: np.random.Generator) -> Pixels:
        if flip and rng.random() < 0.5:
            image = image[:, ::-1]
        height, width, _ = image.shape
        return apply(image, policy.draw(rng, height, width, magnitude), policy.resample, color)

    return alter


def apply(image: Pixels, drawn: Drawn, resample: Image.Resampling, color: tuple[int, ...]) -> Pixels:
    """Return the image after the drawn operations; it has one or three channels."""
    is_gray = image.shape[2] == 1
    pillow = Image.fromarray(np.ascontiguousarray(image[..., 0] if is_gray else image))
    for name, argument in drawn:
        pillow = OPS[name](pillow, argument, resample, color[0] if is_gray else color)
    return np.asarray(pillow).reshape(image.shape)
