"""Preprocessing of published weights: one row per file in `weights.tsv`, found by checksum or name.

Columns: format; our network; name of the weights; first 8 digits of the SHA-256 of the file, which are part of its
published name ("-" if there are none); then the preprocessing: side of the crop, short side before the crop,
interpolation, mean and standard deviation on the scale 0..1. For timm it is that of the published accuracy.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from resnext_jax.errors import UserError, unknown

FILE = pathlib.Path(__file__).with_name("weights.tsv")


@dataclasses.dataclass(frozen=True)
class Weights:
    """One row; see above."""

    format: str
    model: str
    name: str
    sha256: str
    image_size_px: int
    resize_px: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def preprocessing(self) -> dict[str, Any]:
        """Return the fields of `config.data`, on the scale 0..255."""
        return {
            "image_size_px": self.image_size_px,
            "resize_px": self.resize_px,
            "interpolation": self.interpolation,
            "mean": tuple(round(255 * value, 6) for value in self.mean),
            "std": tuple(round(255 * value, 6) for value in self.std),
        }


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Preprocessing of unknown weights: the default of each library (for Torch7: fb.resnet.torch, datasets/imagenet.lua).
USUAL = {
    their: Weights(their, "", "", "-", 224, 256, interpolation, *IMAGENET)
    for their, interpolation in {"torchvision": "bilinear", "timm": "bicubic", "torch7": "bicubic"}.items()
}


@functools.cache
def table() -> tuple[Weights, ...]:
    """Return the rows."""
    rows = []
    for line in FILE.read_text(encoding="utf-8").splitlines()[1:]:
        their, model, name, sha256, *sizes, interpolation, mean, std = line.split("\t")
        image_size_px, resize_px = map(int, sizes)
        mean, std = (tuple(map(float, text.split(","))) for text in (mean, std))
        rows.append(Weights(their, model, name, sha256, image_size_px, resize_px, interpolation, mean, std))
    return tuple(rows)


def find_weights(their: str, model: str, sha256: str, name: str | None) -> Weights:
    """Return the row of a file by name or checksum, otherwise that of USUAL; raises UserError for an unknown name."""
    rows = [row for row in table() if (row.format, row.model) == (their, model)]
    if name is not None:
        names = [row.name for row in rows]
        if not names:
            others = ", ".join(sorted({row.model for row in table() if row.format == their}))
            raise UserError(
                f"no weights of {their}'s {model} are known here, but those of {others}. Leave out --weights."
            )
        if name not in names:
            raise UserError(unknown(f"weights of {their}'s {model}", name, names))
        return rows[names.index(name)]
    return next((row for row in rows if sha256.startswith(row.sha256)), USUAL[their])


def others_note(their: str, model: str, row: Weights) -> list[str]:
    """Return a note if the weights are unknown, and published weights of the network have other preprocessing."""
    wanted = USUAL[their].preprocessing()
    others = [other for other in table() if (other.format, other.model) == (their, model)]
    if row.name or all(other.preprocessing() == wanted for other in others):
        return []
    return [
        f"note: by its checksum the file is none of {their}'s; of published weights of {model} the images are to be",
        *(
            f"  {other.image_size_px} px of {other.resize_px}, {other.interpolation}: --weights={other.name}"
            for other in others
        ),
    ]


def class_names_problem(names: Sequence[str], num_classes: int, where: str) -> list[str]:
    """Return a sentence if the names are not distinct names for all classes of a file."""
    if len(names) == num_classes and len(set(names)) == num_classes:
        return []
    return [
        f"{where} has {len(names)} names ({len(set(names))} different), and the file {num_classes} classes: one each."
    ]
