"""Anchors against the numbers that are printed in py-faster-rcnn, and against its loops."""

import jax.numpy as jnp
import numpy as np

from resnext_jax.detection import anchors as lib

# The comment of py-faster-rcnn's generate_anchors.py. It shows Matlab's anchors, and Matlab counts pixels from 1.
PRINTED = [
    *([-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200]),
    *([-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264]),
    *([-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360]),
]


def test_nine_anchors_are_those_that_py_faster_rcnn_prints():
    np.testing.assert_array_equal(lib.cell_anchors(scales=(8, 16, 32)) + 1, PRINTED)


def test_four_scales_make_twelve_anchors_of_64_to_512_px():
    cell = lib.cell_anchors()
    assert cell.shape == (12, 4)
    squares = cell[4:8]
    np.testing.assert_array_equal(squares[:, 2] - squares[:, 0] + 1, [64, 128, 256, 512])
    np.testing.assert_array_equal(squares[:, 3] - squares[:, 1] + 1, [64, 128, 256, 512])
    np.testing.assert_array_equal(cell[[1, 2, 3, 5, 6, 7, 9, 10, 11]] + 1, PRINTED)


def test_anchors_go_by_row_then_column_then_shape():
    cell = lib.cell_anchors()
    got = lib.grid(3, 5, 16, cell)
    want = [
        anchor + np.array([16 * column, 16 * row, 16 * column, 16 * row], np.float32)
        for row in range(3)
        for column in range(5)
        for anchor in cell
    ]
    np.testing.assert_array_equal(got.anchors, want)
    np.testing.assert_array_equal(got.origin[12 * (5 * 2 + 3) + 7], [32, 48])
    assert got.anchors.dtype == got.origin.dtype == np.float32


def test_anchors_of_padding_cells_are_not_present():
    """An image of 33x50 px has ceil(33 / 16) = 3 rows of ceil(50 / 16) = 4 cells."""
    grid = lib.grid(4, 6, 16, lib.cell_anchors(scales=(1,)))
    present = np.asarray(lib.present(grid, jnp.float32([33, 50]))).reshape(4, 6, 3)
    want = np.zeros((4, 6, 3), bool)
    want[:3, :4] = True
    np.testing.assert_array_equal(present, want)


def test_anchors_across_the_border_are_not_inside():
    """Squares of 16 px in an image of 32x40 px: the last column of cells reaches to pixel 47."""
    grid = lib.grid(2, 3, 16, lib.cell_anchors(scales=(1,), ratios=(1,)))
    size_px = jnp.float32([32, 40])
    np.testing.assert_array_equal(lib.inside(grid, size_px), [True, True, False] * 2)
    np.testing.assert_array_equal(lib.inside(grid, size_px, 8), [True] * 6)
    np.testing.assert_array_equal(lib.inside(grid, size_px, 7), [True, True, False] * 2)
