"""The curves of a run, from its rows to the picture."""

import numpy as np
import pytest
from PIL import Image

from resnext_jax.runtime.curves import draw_curves, errors_by_epoch
from resnext_jax.types import Metric


def train(epoch, images, top1):
    return {"phase": "train", "epoch": epoch, "images": images, "top1": top1}


def evaluate(epoch, top1):
    return {"phase": "evaluate", "epoch": epoch, "images": 3000, "top1": top1}


# First epoch: (100 * 0.2 + 300 * 0.6) / 400 = 0.5 right. What follows the last evaluation is not yet an epoch.
ROWS = [
    train(0.25, 100, 0.2),
    train(1.0, 300, 0.6),
    evaluate(1.0, 0.55),
    train(2.0, 400, 0.75),
    evaluate(2.0, 0.6),
    train(2.5, 100, 0.9),
]


def test_errors_of_another_accuracy():
    rows = [row | ({"top1_present": 0.75} if row["phase"] == "evaluate" else {}) for row in ROWS]
    epochs, train_errors, errors = errors_by_epoch(rows, "top1_present")
    assert (epochs, train_errors) == errors_by_epoch(ROWS)[:2]
    assert errors == [25.0] * len(epochs)


TOP1 = Metric("top1", "top-1", ".2%", is_accuracy=True)


def test_errors_by_epoch():
    epochs, train_errors, errors = errors_by_epoch(ROWS)
    assert epochs == [1.0, 2.0]
    assert train_errors == pytest.approx([50.0, 25.0])
    assert errors == pytest.approx([45.0, 40.0])


def test_picture(tmp_path):
    path = draw_curves(ROWS, str(tmp_path), "a title", TOP1)
    assert path == str(tmp_path / "curves.png")
    with Image.open(str(path)) as image:
        assert image.format == "PNG"
        assert image.size == (1050, 660)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in ((0x44, 0x77, 0xAA), (0xCC, 0x33, 0x11)):  # training, validation
        assert (pixels == color).all(axis=1).sum() > 500


def test_no_picture_before_the_first_evaluation(tmp_path):
    assert draw_curves(ROWS[:2], str(tmp_path), "a title", TOP1) is None
    assert list(tmp_path.iterdir()) == []


def test_a_score_without_training_values_is_drawn_as_it_is(tmp_path):
    """As of a detector, whose rows of training have no average precision."""
    rows = [{"step": n, "epoch": n / 2, "phase": "evaluate", "ap": n / 10} for n in (1, 2, 3)]
    assert draw_curves(rows, str(tmp_path), "a detector", Metric("ap", "AP", ".3f"))
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == (0xCC, 0x33, 0x11)).all(axis=1).sum() > 500
    assert not (pixels == (0x44, 0x77, 0xAA)).all(axis=1).any()
