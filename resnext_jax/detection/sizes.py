"""How images are resized, and the few static sizes that batches have.

Source: py-faster-rcnn, lib/utils/blob.py, `prep_im_for_blob`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int

from resnext_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How images are resized, and the static sizes (height, width) of batches.

    The defaults are the paper's 600 px, at most 1000 px (appendix B), in multiples of the stride of 16 px: 608 x 816
    fits 4:3, the shape of most of COCO's images.
    """

    short_side_px: int = 600
    long_side_px: int = 1000
    canvases_px: tuple[tuple[int, int], ...] = ((608, 816), (608, 1008), (816, 608), (1008, 608))

    def scale(self, size_px: Int[np.ndarray, "images 2"]) -> Float64[np.ndarray, " images"]:
        """Return new size / old size: that of the short side, or that of the long side where it would be too long."""
        short, long = size_px.min(1), size_px.max(1)
        scale = self.short_side_px / short
        return np.where(np.round(scale * long) > self.long_side_px, self.long_side_px / long, scale)

    def resized(self, size_px: Int[np.ndarray, "images 2"]) -> Int[np.ndarray, "images 2"]:
        """Return the height and width of the resized images."""
        return np.maximum(np.round(self.scale(size_px)[:, None] * size_px), 1).astype(np.int64)

    def canvas(self, size_px: Int[np.ndarray, "images 2"]) -> Int[np.ndarray, " images"]:
        """Return the index of the smallest static size for each resized image.

        Raises:
          UserError: an image fits into none.
        """
        canvases = np.array(self.canvases_px)
        by_area = np.argsort(canvases.prod(1), kind="stable")
        resized = self.resized(size_px)
        fits = (resized[:, None] <= canvases[by_area]).all(-1)
        lost = np.flatnonzero(fits.sum(1) == 0)
        if lost.size:
            (height, width), (rows, columns) = size_px[lost[0]].tolist(), resized[lost[0]].tolist()
            raise UserError(
                f"{lost.size:,} of {len(size_px):,} images fit into none of the sizes of batches; the first is {width} "
                f"x {height} px, resized {columns} x {rows}. The sizes (height, width) are {self.canvases_px}: add one "
                f"of at least ({rows}, {columns}) to --config.data.canvases_px."
            )
        return by_area[fits.argmax(1)]
