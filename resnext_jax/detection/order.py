"""Which images a training batch holds, where all images of a batch must have one static size.

Each size has its own endless stream of epochs (`data.order.train_indices`), and takes its next batch from it. So no
image is left out or comes twice as often, also where the images of a size do not fill whole batches.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from resnext_jax.data.order import train_indices


class Chosen(NamedTuple):
    """One global batch: which size, and the index of each image in the data set."""

    size: int
    images: Int[np.ndarray, " batch"]


class SizedOrder:
    """The batches of all steps, a function of (seed, step) and of the sizes alone.

    After epoch e, a size of n images has had floor(e n / batch_size) batches. The order of the sizes within an epoch is
    a shuffle.

    Args:
      sizes: size of each image, 0 to num_sizes - 1.
      num_sizes: number of sizes.
      batch_size: images in a global batch.
      seed: 0 or more.
    """

    def __init__(self, sizes: Int[np.ndarray, " images"], *, num_sizes: int, batch_size: int, seed: int):
        self.members = [np.flatnonzero(sizes == size) for size in range(num_sizes)]
        self.batch_size, self.num_images = batch_size, len(sizes)
        self._seeds: Sequence[int] = [seed * (num_sizes + 1) + place for place in range(num_sizes + 1)]
        self.at = functools.lru_cache(maxsize=16)(self._at)  # every thread asks for its part of the same batches
        self._epoch = functools.lru_cache(maxsize=2)(self._sizes_of_epoch)

    def _done(self, epoch: int) -> list[int]:
        """Return how many batches of each size the epochs before `epoch` had."""
        return [epoch * len(members) // self.batch_size for members in self.members]

    def _sizes_of_epoch(self, epoch: int) -> Int[np.ndarray, " steps"]:
        counts = np.subtract(self._done(epoch + 1), self._done(epoch))
        in_order = np.repeat(np.arange(len(counts)), counts)
        num_steps = len(in_order)
        return in_order[train_indices(num_steps, self._seeds[-1], epoch * num_steps + np.arange(num_steps))]

    def _at(self, step: int) -> Chosen:
        """Return the global batch at `step`; it costs the same at any step."""
        epoch = step * self.batch_size // self.num_images
        while sum(self._done(epoch + 1)) <= step:  # at most a few: each size is less than one batch behind
            epoch += 1
        sizes, done = self._epoch(epoch), self._done(epoch)
        place = step - sum(done)
        size = int(sizes[place])
        batch = done[size] + int((sizes[:place] == size).sum())
        positions = batch * self.batch_size + np.arange(self.batch_size)
        members = self.members[size]
        return Chosen(size, members[train_indices(len(members), self._seeds[size], positions)])
