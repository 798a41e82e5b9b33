"""Batches of the coming steps, read ahead by Grain's threads, and what happens when the reading of an image hangs."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Generator

import grain
import jax
import numpy as np

from resnext_jax.data.readers import Record, Source
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.errors import UserError
from resnext_jax.types import Batch, PyTree

BATCHES_AHEAD = 2  # enough to overlap with the training step, and batches are memory
LOOK_EVERY_S = 1.0
WARN_AFTER_S = 60.0
GIVE_UP_AFTER_S = 600.0


class Watched:
    """Images of a source, with a note of what each thread is reading and since when."""

    def __init__(self, source: Source):
        self.source, self._reading, self._warned = source, {}, set()

    def __getitem__(self, index: int) -> Record:
        thread = threading.current_thread()
        self._reading[thread] = (time.monotonic(), index)
        try:
            return self.source[index]
        finally:
            del self._reading[thread]

    def check(self) -> None:
        """Warn once about each image whose reading takes too long.

        Raises:
          UserError: one has taken so long that it will not come. Python's own exit would wait for Grain's threads, so a
            command must then end with `os._exit`.
        """
        for thread, (since_s, index) in list(self._reading.items()):
            spent_s = time.monotonic() - since_s
            if spent_s <= WARN_AFTER_S:
                continue
            sentence = f"input: thread {thread.name} has been at {self.source.locate(index)} for {spent_s:.0f} s"
            if spent_s > GIVE_UP_AFTER_S:
                raise UserError(
                    f"{sentence}, and everything waits for it. An image is read in milliseconds: look whether this "
                    "one can be read at all (is its disk, mount or bucket there?), then start again. Training goes on "
                    "from its newest checkpoint."
                )
            if (thread, index) not in self._warned:
                self._warned.add((thread, index))
                logging.getLogger(__name__).warning("%s; still waiting.", sentence)


def example(watched: Watched, index: int, prepare: Callable[[Record], PyTree]) -> tuple[PyTree, int]:
    """Return a prepared image and its label, or its stand-in; raises UserError if there is no stand-in."""
    while True:
        try:
            record = watched[index]
            return prepare(record), record.label
        except UserError as error:
            if not isinstance(watched.source, ReplacingSource):
                raise
            index = watched.source.stand_in(index, error)


def batches(
    fill: Callable[[Batch, int, range], None],
    *,
    images: Callable[[int], PyTree],
    steps: range,
    rows: range,
    watched: Watched,
    num_threads: int,
    gathers: bool = False,
) -> Generator[Batch]:
    """Yield the batches of the steps, in order.

    All threads fill one batch together, each a part of its rows: so the memory is that of a few batches, whatever the
    number of threads. With Grain's own `batch` every thread would hold a whole one, or each would be copied once more.

    Args:
      fill: (part of a batch of zeros, step, its rows of the global batch) fills the part; called from the threads.
      images: (step) -> zeros for the images of this process's rows.
      steps: steps to yield.
      rows: rows of a global batch that this process holds.
      watched: source from which `fill` reads.
      num_threads: threads that read ahead; 0 reads each batch when asked for it.
      gathers: whether `fill` copies whole batches from memory.
    """
    num_parts = 1 if gathers else max(1, min(num_threads, len(rows)))
    num_threads = min(num_threads, BATCHES_AHEAD * num_parts)
    cuts = [len(rows) * part // num_parts for part in range(num_parts + 1)]
    parts = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    begun: dict[int, Batch] = {}
    # Grain's iterator waits without a timeout: a hanging read would never be reported. So every part that is finished
    # releases the semaphore of its step, and `next` is called once all have. At most so many steps are in progress.
    finished = [threading.Semaphore(0) for _ in range(BATCHES_AHEAD + 1)]

    def begin(position: int) -> None:
        if position < len(steps):
            labels, mask = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.float32)
            begun[position] = Batch(images(steps[position]), labels, mask)

    def fill_part(number: int) -> int:
        position, part = number // num_parts, parts[number % num_parts]
        try:
            fill(jax.tree.map(lambda leaf: leaf[part], begun[position]), steps[position], rows[part])
        finally:
            finished[position % len(finished)].release()
        return number

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads and BATCHES_AHEAD * num_parts)
    dataset = grain.MapDataset.range(len(steps) * num_parts).map(fill_part)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        for position in range(BATCHES_AHEAD):
            begin(position)
        iterator.start_prefetch()
        for position in range(len(steps)):
            for _ in range(num_parts if num_threads else 0):
                while not finished[position % len(finished)].acquire(timeout=LOOK_EVERY_S):
                    watched.check()
            begin(position + BATCHES_AHEAD)
            for _ in range(num_parts):
                next(iterator)
            yield begun.pop(position)
    finally:
        iterator.close()  # drops what is not begun; each thread ends with its part
