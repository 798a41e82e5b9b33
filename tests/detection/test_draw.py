"""draw.py: boxes and texts on pictures."""

import numpy as np

from resnext_jax.detection import draw
from resnext_jax.detection.types import Detections

GRAY = np.full((100, 120, 3), 128, np.uint8)


def test_a_box_is_drawn_in_the_color_of_its_class():
    drawn = draw.draw_boxes(GRAY, np.array([[10.0, 20, 30, 40]]), np.array([3]), [""])
    changed = (drawn != GRAY).any(-1)
    expected = np.zeros((100, 120), bool)
    expected[20:60, 10:40] = True
    expected[21:59, 11:39] = False
    np.testing.assert_array_equal(changed, expected)
    assert (drawn[changed] == draw.color_of(3)).all()
    assert (GRAY == 128).all()


def test_colors_of_classes_differ():
    assert len({draw.color_of(label) for label in range(1, 81)}) == 80


def test_a_text_stands_above_its_box_and_inside_the_picture():
    drawn = draw.draw_boxes(GRAY, np.array([[10.0, 50, 30, 40]]), np.array([1]), ["dog 0.9"])
    rows = np.flatnonzero((drawn != GRAY).any((1, 2)))
    assert 30 < rows.min() < 50
    for corner in ([0.0, 0, 30, 40], [110.0, 0, 10, 10], [-20.0, -20, 30, 30], [118.0, 98, 50, 50]):
        drawn = draw.draw_boxes(GRAY, np.array([corner]), np.array([1]), ["a very long name of a class 0.9"])
        assert (drawn != GRAY).any(-1).sum() > 200


def test_the_best_detection_is_on_top():
    boxes = np.array([[10.0, 20, 30, 40], [10, 20, 30, 40]])
    found = Detections(np.zeros(2, np.int32), np.array([1, 2]), np.array([0.4, 0.8]), boxes)
    drawn = draw.draw_detections(GRAY, found, ["dog", "cat"])
    assert tuple(drawn[59, 10]) == draw.color_of(2)


def test_broken_and_no_boxes_can_be_drawn():
    boxes = np.array([[10.0, 20, -5, 0], [500, 500, 10, 10]])
    assert draw.draw_boxes(GRAY, boxes, np.array([1, 2]), ["a", "b"]).shape == GRAY.shape
    nothing = draw.draw_boxes(GRAY, np.zeros((0, 4)), np.zeros(0, np.int32), [])
    np.testing.assert_array_equal(nothing, GRAY)
