"""How images are prepared for published weights: one row per file in `weights.tsv`, told apart by its checksum or name.

Columns: whose format; our network; the name of the weights there; the first 8 digits of the file's SHA-256 (part of its
published name; "-" where there is none); then the preprocessing: the side of the crop, the short side before it, the
interpolation, mean and standard deviation on the scale 0..1. Of timm's weights, that of their published accuracy.
"""

import dataclasses
import functools
import hashlib
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
        """As the fields of `config.data`, on the scale 0..255."""
        return {
            "image_size_px": self.image_size_px,
            "resize_px": self.resize_px,
            "interpolation": self.interpolation,
            "mean": tuple(round(255 * value, 6) for value in self.mean),
            "std": tuple(round(255 * value, 6) for value in self.std),
        }


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What most of all weights want; and those of fb.resnet.torch and ResNeXt (datasets/imagenet.lua there).
USUAL = Weights("", "", "", "-", 224, 256, "bilinear", *IMAGENET)
TORCH7 = Weights("torch7", "", "", "-", 224, 256, "bicubic", *IMAGENET)


@functools.cache
def table() -> tuple[Weights, ...]:
    """The rows."""
    rows = []
    for line in FILE.read_text(encoding="utf-8").splitlines()[1:]:
        their, model, name, sha256, *sizes, interpolation, mean, std = line.split("\t")
        image_size_px, resize_px = map(int, sizes)
        mean, std = (tuple(map(float, text.split(","))) for text in (mean, std))
        rows.append(Weights(their, model, name, sha256, image_size_px, resize_px, interpolation, mean, std))
    return tuple(rows)


def sha256_of(path: str) -> str:
    """The checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(their: str, model: str, sha256: str, name: str | None) -> Weights:
    """The row of a file.

    Args:
      their: its format.
      model: our network.
      sha256: of the file.
      name: of the weights, where the user gives one.

    Raises:
      UserError: the model has no weights of that name, or has several and the file is none of them.
    """
    if their == "torch7":
        return TORCH7
    rows = [row for row in table() if (row.format, row.model) == (their, model)]
    if name is not None:
        names = [row.name for row in rows]
        if name not in names:
            raise UserError(unknown(f"weights of {their}'s {model}", name, names) if names else _none(their, model))
        return rows[names.index(name)]
    same = [row for row in rows if sha256.startswith(row.sha256)]
    if same:
        return same[0]
    if len({str(row.preprocessing()) for row in rows}) > 1:
        raise UserError(
            f"the file is none of {their}'s {model} by its checksum, and they want different preprocessing:",
            *(
                f"  --weights={row.name}: {row.image_size_px} px of {row.resize_px}, {row.interpolation}"
                for row in rows
            ),
            "Say whose it is by --weights=NAME; that of your own by --weights=NAME of those that it was trained like.",
        )
    return rows[0] if rows else USUAL


def _none(their: str, model: str) -> str:
    others = ", ".join(sorted({row.model for row in table() if row.format == their}))
    return f"no weights of {their}'s {model} are known here, but those of {others}. Leave out --weights."


def class_names_problem(names: Sequence[str], num_classes: int, where: str) -> list[str]:
    """One sentence where these are not the names of the classes of a file."""
    if len(names) == num_classes and len(set(names)) == num_classes:
        return []
    return [
        f"{where} has {len(names)} names ({len(set(names))} different), and the file {num_classes} classes: one each."
    ]
