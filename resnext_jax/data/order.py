"""Which image stands where: a shuffle per epoch that is a function of (seed, epoch), in constant memory."""

import functools

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

SMALL_NUM_IMAGES = 1 << 16
# Of the cipher behind index_shuffle. Grain's own shuffle uses 4, with which an image's successor is far from random
# (chi-square of tenths 31,000 at 262,000 images, where 81 is expected); from 8 on none of that shows.
SHUFFLE_ROUNDS = 16


@functools.lru_cache(maxsize=8)
def _epoch_key(seed: int, epoch: int) -> int:
    """Return 64 well mixed bits: neighboring seeds and epochs must not give related orders."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])


@functools.lru_cache(maxsize=2)
def _small_permutation(num_images: int, key: int) -> Int[np.ndarray, " num_images"]:
    return np.argsort(np.random.Philox(key=key).random_raw(num_images), kind="stable")


def _shuffled(num_images: int, key: int, offsets: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
    # index_shuffle needs no memory, but its cost grows as the set shrinks (5 us at 10^6 images, 700 us at 100);
    # below SMALL_NUM_IMAGES a table of 0.5 MB is quicker.
    if num_images <= SMALL_NUM_IMAGES:
        return _small_permutation(num_images, key)[offsets]
    # Where the largest index is a power of two (65,537 images, 262,145, ...), index_shuffle takes a block that is one
    # bit too short, and maps two indices to one. So there it shuffles one number more, which is passed over.
    largest = num_images - 1 + ((num_images - 1) & (num_images - 2) == 0)
    shuffle = functools.partial(index_shuffle, max_index=largest, seed=key & 0xFFFFFFFF, rounds=SHUFFLE_ROUNDS)
    indices = [shuffle(offset) for offset in offsets.tolist()]
    return np.array([index if index < num_images else shuffle(index) for index in indices], np.int64)


def train_indices(num_images: int, seed: int, positions: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
    """Return the image at each position of the endless stream of epochs; every epoch has its own permutation.

    The memory is constant, and the cost is the same at any position. `seed` is 0 or more.
    """
    epochs, offsets = np.divmod(positions, num_images)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        indices[rows] = _shuffled(num_images, _epoch_key(seed, epoch), offsets[rows])
    return indices


def positions(
    step: int, rows: Int[np.ndarray, " rows"], batch_size: int, *, repeats: int = 1, group_images: int = 0
) -> Int[np.ndarray, " rows"]:
    """Return the position in the stream of epochs of some rows of the global batch at `step`.

    With repeats, every image comes that many times in a row, and neighbors stand in different batch-norm groups, as
    the samplers of repeated augmentation deal them to different GPUs (Hoffer et al. 2019; Berman et al. 2019).

    Args:
      step, rows, batch_size: step, rows of its global batch, and images in that batch.
      repeats: how often each image comes, 1 or more.
      group_images: images in a batch-norm group, 0 for the whole batch; without effect if repeats is 1.
    """
    if repeats == 1:
        return step * batch_size + rows
    members = group_images or batch_size
    group, member = np.divmod(rows, members)
    return (step * batch_size + member * (batch_size // members) + group) // repeats
