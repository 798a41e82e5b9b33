"""How an image becomes the square of pixels in a batch."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from resnext_jax.data import decode
from resnext_jax.data.policies import Alter
from resnext_jax.data.readers import Record
from resnext_jax.errors import unknown
from resnext_jax.types import DatasetInfo

CROPS = ("none", "random_sized", "resize")
Square = UInt8[np.ndarray, "size_px size_px channel"]


def crop_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """Return the random numbers of row `row` of the global batch at `step`; no other image shares them."""
    # A counter-based generator: the low word counts the draws, the others are the address.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row, step]))


def policy_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """Return other random numbers of the same image, for a policy: they do not depend on how many its crop took."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, row, step]))


def pixels(record: Record, num_channels: int) -> UInt8[np.ndarray, "height width channel"]:
    """Return the decoded image of a record (`decode.decode`)."""
    if isinstance(record.image, bytes):
        return decode.decode(record.image, record.name, num_channels=num_channels)
    return record.image


@dataclasses.dataclass(frozen=True)
class Crop:
    """How images are cropped, in training and in evaluation.

    Attributes:
      kind: "none" (the images have that size already), "random_sized" (`decode.random_sized_crop`) or "resize" (the
        short side to that size, and the center). Evaluation takes the center with both of the latter.
      size_px: height and width of the crop.
      resize_px: short side of the image from which evaluation cuts the center, at least size_px; unused in training.
      interpolation: a row of `resize.FILTERS`, for evaluation.
      rounding: of evaluation; see `decode.rounding_of`.
      alter: (image, rng) -> image of the same size, for training; `policies.make_alter`.
    """

    kind: str
    size_px: int
    resize_px: int = 0
    interpolation: str = "bicubic"
    rounding: str = decode.TORCH7
    alter: Alter | None = None

    def problems(self, info: DatasetInfo) -> list[str]:
        """Return what is wrong with this crop for images of a data set."""
        problems = [unknown("crop", self.kind, CROPS)] if self.kind not in CROPS else []
        shape = info.image_shape
        if self.kind == "none" and (shape is None or shape[:2] != (self.size_px, self.size_px)):
            found = "images of many sizes" if shape is None else f"images of {shape[0]}x{shape[1]} px"
            change = "Set --config.data.crop=random_sized, =resize"
            change += "." if shape is None or shape[0] != shape[1] else f" or --config.data.image_size_px={shape[0]}."
            problems.append(
                f"data set {info.name!r} has {found}, and without a crop (data.crop is 'none') all must be of "
                f"data.image_size_px = {self.size_px}. {change}"
            )
        return problems

    def train(self, record: Record, num_channels: int, *, seed: int, step: int, row: int) -> Square:
        """Return the crop for row `row` of the global batch at `step`, altered by the policy if there is one."""
        rng = crop_rng(seed, step, row)
        if self.kind == "none":
            image = pixels(record, num_channels)
        elif self.kind == "resize":
            image = decode.center_crop(pixels(record, num_channels), self.size_px, self.size_px, "bicubic")
        elif isinstance(record.image, bytes) and num_channels == 3:
            image = decode.read_random_sized_crop(record.image, record.name, self.size_px, rng)
        else:
            image = decode.random_sized_crop(pixels(record, num_channels), self.size_px, rng)
        return image if self.alter is None else self.alter(image, policy_rng(seed, step, row))

    def center(self, record: Record, num_channels: int) -> Square:
        """Return the crop of evaluation."""
        image = pixels(record, num_channels)
        return decode.center_crop(image, self.size_px, self.resize_px, self.interpolation, self.rounding)
