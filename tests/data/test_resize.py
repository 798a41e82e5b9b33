"""resize.py against Pillow, one pass at a time, and against the cubic's definition."""

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import resize
from tests.data.archives import PHOTOS

RNG = np.random.default_rng(0)


def pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(rows.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(params=["compiled", "pillow"])
def bicubic(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(resize, "COMPILED", None)
    elif resize.COMPILED is None:
        pytest.skip("installed without a C compiler")
    return resize.bicubic


def test_boxes_of_photographs_to_any_size(bicubic):
    for case in range(60):
        (height, width), (new_height, new_width) = RNG.integers(1, 427, 2), RNG.integers(1, 300, 2)
        top, left = RNG.integers(427 - height + 1), RNG.integers(640 - width + 1)
        box = PHOTOS[case % 2][top : top + height, left : left + width]
        found = bicubic(box, int(new_height), int(new_width))
        np.testing.assert_array_equal(found, pillow(np.ascontiguousarray(box), int(new_height), int(new_width)))


def test_extremes(bicubic):
    noise = RNG.choice(np.array([0, 255], np.uint8), (90, 120, 3))  # the cubic overshoots at every edge
    for height, width in ((224, 224), (30, 40), (1, 1), (90, 7), (91, 120)):
        np.testing.assert_array_equal(bicubic(noise, height, width), pillow(noise, height, width))
    assert (bicubic(np.full((1, 1, 3), 7, np.uint8), 5, 4) == 7).all()
    same = PHOTOS[0][:5, :7]
    np.testing.assert_array_equal(bicubic(same, 5, 7), same)


def test_other_layouts(bicubic):
    image = np.ascontiguousarray(PHOTOS[0][:60, :80])
    np.testing.assert_array_equal(bicubic(image[..., :1], 30, 20)[..., 0], pillow(image[..., 0], 30, 20))
    mirrored = image[:, ::-1]
    np.testing.assert_array_equal(bicubic(mirrored, 30, 20), pillow(np.ascontiguousarray(mirrored), 30, 20))
    upside_down = image[::-1]
    np.testing.assert_array_equal(bicubic(upside_down, 30, 20), pillow(np.ascontiguousarray(upside_down), 30, 20))


def test_a_step_by_hand(bicubic):
    """Twice as wide: weights of Keys' cubic at 1/4, 3/4, 5/4 and 7/4, which are 111, 29, -9 and -3 of 128."""
    row = np.array([0, 0, 0, 128, 128, 128], np.uint8).reshape(1, 6, 1).repeat(3, axis=2)
    found = bicubic(row, 1, 12)[0, :, 0].tolist()
    # The sixth place is a quarter left of the step: 29 - 3. The one before lacks 9, which a byte cuts off. Right of the
    # step: 111 - 9, then 111 + 29 - 3, then all but the -3 that is still left of it.
    assert found == [0, 0, 0, 0, 0, 29 - 3, 111 - 9, 111 + 29 - 3, 128 + 3, 128, 128, 128]


@pytest.mark.parametrize("channels", [1, 3])
def test_bilinear_is_pillows(channels):
    photo = PHOTOS[0][..., :channels]
    rows = Image.fromarray(photo.squeeze()).resize((300, 427), Image.Resampling.BILINEAR)
    want = np.asarray(rows.resize((300, 200), Image.Resampling.BILINEAR)).reshape(200, 300, channels)
    np.testing.assert_array_equal(resize.scale(photo, 200, 300, "bilinear"), want)
    assert (resize.scale(photo, 200, 300, "bicubic") != want).any()
