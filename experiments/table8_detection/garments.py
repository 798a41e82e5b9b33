"""A small data set for detection with real pixels: garments of Fashion-MNIST on photographs, in COCO's format.

The garments are the images inside the package. The photographs are the two of scikit-learn, cut into random squares:
training has the left three fifths of each, validation the right two fifths. No garment is in both splits either.

python experiments/table8_detection/garments.py --out=DIR [--train=3000] [--validation=500] [--size_px=128] [--seed=0]
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from resnext_jax.data.readers import GatherSource
from resnext_jax.data.sources import FASHION_MNIST_CLASSES, open_source
from resnext_jax.errors import UserError, raise_all, user_errors_reported
from resnext_jax.files import write_whole

MOST_OBJECTS = 5
SIZES = (0.8, 1.8)  # of a garment, relative to its 28 px
MOST_OVERLAP = 0.3  # of the area of either box
TRIES = 20
TRAIN_SHARE = 0.6  # of the width of a photograph
LEAST_PX, MOST_PX = 64, 160  # 160: 1.6 times as large is what validation has of a photograph


@dataclasses.dataclass(frozen=True)
class Garments:
    """What to make.

    Attributes:
      size_px: height and width of a picture.
      classes: labels of Fashion-MNIST.
      train, validation: number of pictures.
    """

    size_px: int = 128
    classes: tuple[int, ...] = (1, 5, 8, 9)  # trouser, sandal, bag, ankle boot
    train: int = 3000
    validation: int = 500


def make(directory: Path, wanted: Garments, seed: int = 0) -> None:
    """Write `directory` in the layout that `detection.sources.open_source` calls "own".

    Raises:
      UserError: scikit-learn, whose photographs are used, is not installed.
    """
    photographs = _photographs()
    (directory / "annotations").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate((("train", wanted.train), ("validation", wanted.validation))):
        rng = np.random.default_rng((seed, number))
        images, labels = _garments(split, wanted.classes)
        parts = [_part(photograph, split) for photograph in photographs]
        (directory / split).mkdir(exist_ok=True)
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": label + 1, "name": FASHION_MNIST_CLASSES[label]} for label in wanted.classes],
        }
        for index in range(count):
            canvas = _square(rng, parts[rng.integers(len(parts))], wanted.size_px)
            boxes = _place(rng, wanted.size_px, int(rng.integers(MOST_OBJECTS + 1)))
            for x, y, side in boxes:
                chosen = int(rng.integers(len(images)))
                found = _paste(canvas, images[chosen], (x, y, side), rng.uniform(0.4, 1.0, 3))
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": index + 1,
                        "category_id": int(labels[chosen]) + 1,
                        "bbox": found,
                        "area": found[2] * found[3],
                        "iscrowd": 0,
                    }
                )
            name = f"{split}/{index + 1:06}.png"
            Image.fromarray(canvas.astype(np.uint8)).save(directory / name)
            content["images"].append(
                {"id": index + 1, "file_name": name, "height": wanted.size_px, "width": wanted.size_px}
            )
        write_whole(epath.Path(directory, "annotations", f"{split}.json"), json.dumps(content))


def _photographs() -> list[UInt8[np.ndarray, "height width 3"]]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise UserError("the garments are placed on photographs of scikit-learn: pip install scikit-learn") from None
    return [np.asarray(image) for image in load_sample_images().images]


def _part(photograph: UInt8[np.ndarray, "height width 3"], split: str) -> UInt8[np.ndarray, "height part 3"]:
    column = int(TRAIN_SHARE * photograph.shape[1])
    return photograph[:, :column] if split == "train" else photograph[:, column:]


def _garments(split: str, classes: tuple[int, ...]) -> tuple[list[UInt8[np.ndarray, "height width"]], list[int]]:
    source = open_source("builtin", split, data_dir=None, image_size_px=28, num_channels=1)
    assert isinstance(source, GatherSource)
    chosen = np.flatnonzero(np.isin(source.all_labels(), classes))
    images, labels = source.gather(chosen)
    return list(images[..., 0]), labels.tolist()


def _square(
    rng: np.random.Generator, photograph: UInt8[np.ndarray, "height width 3"], size_px: int
) -> Float[np.ndarray, "size size 3"]:
    """Return a random square of the photograph, between 1 and 1.6 times as large and then resized, maybe mirrored."""
    side = int(size_px * rng.uniform(1, 1.6))
    top, left = (int(rng.integers(extent - side + 1)) for extent in photograph.shape[:2])
    square = Image.fromarray(photograph[top : top + side, left : left + side]).resize((size_px, size_px))
    pixels = np.asarray(square, np.float64)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels.copy()


def _place(rng: np.random.Generator, size_px: int, count: int) -> list[tuple[int, int, int]]:
    """Return (left, top, side) of squares that overlap little; fewer than `count` where no place is left."""
    placed: list[tuple[int, int, int]] = []
    for _ in range(count):
        side = round(28 * rng.uniform(*SIZES))
        for _ in range(TRIES):
            x, y = (int(rng.integers(size_px - side + 1)) for _ in range(2))
            if all(_overlap((x, y, side), other) <= MOST_OVERLAP for other in placed):
                placed.append((x, y, side))
                break
    return placed


def _overlap(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the common area of two squares over that of the smaller one."""
    common = 1
    for axis in (0, 1):
        common *= max(0, min(one[axis] + one[2], other[axis] + other[2]) - max(one[axis], other[axis]))
    return common / min(one[2], other[2]) ** 2


def _paste(
    canvas: Float[np.ndarray, "size size 3"],
    garment: UInt8[np.ndarray, "height width"],
    place: tuple[int, int, int],
    tint: Float[np.ndarray, "3"],
) -> list[float]:
    """Draw a garment with a tint, where it is not black; return its box as x, y, width, height in pixels."""
    x, y, side = place
    pixels = np.asarray(Image.fromarray(garment).resize((side, side), Image.Resampling.BILINEAR), np.float64)
    opacity = np.clip(pixels / 64, 0, 1)[..., None]
    region = canvas[y : y + side, x : x + side]
    region[:] = (1 - opacity) * region + opacity * (40 + 215 / 255 * pixels[..., None] * tint)
    rows, columns = np.flatnonzero((opacity > 0.5).any((1, 2))), np.flatnonzero((opacity > 0.5).any((0, 2)))
    return [
        float(x + columns[0]),
        float(y + rows[0]),
        float(columns[-1] - columns[0] + 1),
        float(rows[-1] - rows[0] + 1),
    ]


def main() -> None:
    """Make the data set that the flags describe."""
    wanted = Garments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="new directory")
    for name, default in (("train", wanted.train), ("validation", wanted.validation), ("size_px", wanted.size_px)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = Path(arguments.out).expanduser()
    problems = [f"--{name} must be 1 or more." for name in ("train", "validation") if getattr(arguments, name) < 1]
    if not LEAST_PX <= arguments.size_px <= MOST_PX:
        problems.append(f"--size_px={arguments.size_px} must be in [{LEAST_PX}, {MOST_PX}]: the photographs are small.")
    if out.exists():
        problems.append(f"{out} is there already: give a new directory with --out=DIR.")
    raise_all(problems)
    counts = {"train": arguments.train, "validation": arguments.validation}
    make(out, dataclasses.replace(wanted, size_px=arguments.size_px, **counts), arguments.seed)
    print(f"{out}: {arguments.train:,} pictures for training, {arguments.validation:,} for validation")


if __name__ == "__main__":
    with user_errors_reported():
        main()
