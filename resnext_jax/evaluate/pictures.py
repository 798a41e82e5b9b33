"""The pictures of a report: the confusion matrix, and the most confident mistakes."""

import contextlib
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from resnext_jax.evaluate.per_class import most_confused

MOST_CLASSES = 30  # of which the numbers in the cells can be read
NAME_LENGTH = 28
COLUMNS = 8
TILE_PX = 200


class Tile(NamedTuple):
    """One image of the contact sheet, uint8 (height, width, 1 or 3), and the lines below it."""

    image: UInt8[np.ndarray, "height width channel"]
    lines: tuple[str, ...]


def draw_confusion(matrix: Int[np.ndarray, "classes classes"], names: Sequence[str], title: str) -> bytes:
    """Return a PNG of a confusion matrix, true classes in rows.

    Of more than MOST_CLASSES classes it shows those in the most frequent confusions, and all others together in a last
    row and column.
    """
    if len(matrix) > MOST_CLASSES:
        shown = most_confused(matrix, MOST_CLASSES)
        title += f"\nthe {len(shown)} of {len(matrix):,} classes in the most frequent confusions"
        group = np.full(len(matrix), len(shown))
        group[shown] = np.arange(len(shown))
        together = np.zeros((len(shown) + 1, len(shown) + 1), np.int64)
        np.add.at(together, (group[:, None], group[None]), matrix)
        matrix, names = together, [*(names[place] for place in shown), "all others"]
    count = len(matrix)
    with _drawing(4.2 + 0.42 * count, 3.2 + 0.36 * count) as (figure, picture):
        axes = figure.add_subplot()
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in zip(*np.nonzero(matrix), strict=True):
            number, color = matrix[row, column], "white" if share[row, column] > 0.5 else "black"
            size = 8 if number < 10_000 else 6
            axes.text(column, row, f"{number}", ha="center", va="center", fontsize=size, color=color)
        labels = [plain(name) for name in names]
        axes.set_xticks(range(count), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(count), labels, fontsize=8)
        for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            tick.set_parse_math(False)
        axes.set(xlabel="answer", ylabel="right class")
        axes.set_title(_wrapped(title, figure), fontsize=10, parse_math=False)
        figure.colorbar(drawn, label="share of the images of the right class", fraction=0.04, pad=0.02)
    return picture.getvalue()


def draw_sheet(tiles: Sequence[Tile], title: str) -> bytes:
    """Return a PNG with one image or more, each with its lines below it."""
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    with _drawing(max(6.0, 1.9 * columns), 0.6 + 2.35 * rows) as (figure, picture):
        figure.suptitle(_wrapped(title, figure), fontsize=10, parse_math=False)
        for number, tile in enumerate(tiles):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.set_axis_off()
            axes.imshow(_thumbnail(tile.image), interpolation="nearest")
            text = "\n".join(plain(line) for line in tile.lines)
            axes.text(0.5, -0.03, text, ha="center", va="top", fontsize=7, transform=axes.transAxes, parse_math=False)
    return picture.getvalue()


def plain(text: str, length: int = NAME_LENGTH) -> str:
    """Return a text that can be drawn: printable, and not longer than `length`."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _wrapped(title: str, figure: Any) -> str:
    letters = int(11 * figure.get_figwidth())
    return "\n".join(textwrap.fill(plain(line, 1000), letters) for line in title.splitlines())


def _thumbnail(image: UInt8[np.ndarray, "height width channel"]) -> UInt8[np.ndarray, "new_height new_width 3"]:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    picture.thumbnail((TILE_PX, TILE_PX))  # shrinks only
    return np.asarray(picture)


@contextlib.contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """Yields a figure of a size in inches, and the PNG that it becomes at the end."""
    # Imported here: a run on a pod host should not need a font cache to start.
    import matplotlib.figure

    figure, picture = matplotlib.figure.Figure(figsize=(width, height), dpi=120, layout="constrained"), io.BytesIO()
    yield figure, picture
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # A letter that no font has becomes a box; the CSV files have it.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(picture, format="png")
