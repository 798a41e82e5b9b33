"""The data set of garments on photographs: it opens, its boxes fit the garments, and its splits share nothing."""

import numpy as np
import pytest
from PIL import Image

from experiments.table8_detection import garments
from resnext_jax.detection.sources import open_source, require_apart


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("garments")
    for name in ("one", "again"):
        garments.make(root / name, garments.Garments(train=12, validation=6))
    return root


def test_the_data_set_opens_without_a_note(made):
    splits = [open_source(str(made / "one"), split) for split in ("train", "validation")]
    assert [len(source) for source in splits] == [12, 6]
    assert splits[0].data.class_names == ("Trouser", "Sandal", "Bag", "Ankle boot")
    assert splits[0].data.notes == splits[1].data.notes == ()
    require_apart(splits[0].data, splits[1].data)
    own = splits[0].data.annotations
    assert ((own.boxes[:, :2] >= 0) & (own.boxes[:, :2] + own.boxes[:, 2:] <= 128)).all()
    # 0.8 to 1.8 times 28 px, less what is black around a garment
    assert own.boxes[:, 2:].max() <= 51
    assert np.bincount(own.image, minlength=12).max() <= 5


def test_the_same_seed_makes_the_same_pictures(made):
    paths = sorted(path.relative_to(made / "one") for path in (made / "one").rglob("*") if path.is_file())
    assert len(paths) == 20
    assert all((made / "one" / path).read_bytes() == (made / "again" / path).read_bytes() for path in paths)


def test_a_box_holds_its_garment():
    """A white square of 10 px in a garment of 28 px, drawn at twice its size at (3, 5)."""
    garment = np.zeros((28, 28), np.uint8)
    garment[8:18, 4:14] = 255
    canvas = np.zeros((80, 80, 3))
    x, y, width, height = garments._paste(canvas, garment, (3, 5, 56), np.ones(3))
    corners = np.array([x, y, x + width, y + height])
    assert np.abs(corners - [3 + 8, 5 + 16, 3 + 28, 5 + 36]).max() <= 1  # resizing blurs the edges
    drawn = np.argwhere(canvas[..., 0] > 128)[:, ::-1]
    assert (drawn.min(0) >= corners[:2]).all()
    assert (drawn.max(0) < corners[2:]).all()
    assert len(drawn) >= 400
    assert Image.fromarray(canvas.astype(np.uint8)).getpixel((12, 22)) == (255, 255, 255)
