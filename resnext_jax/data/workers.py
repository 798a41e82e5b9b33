"""Grain's threads, which fill the batches of the coming steps, and what is said of one that hangs.

All threads fill one batch together, each a part of its rows, and no more than `BATCHES_AHEAD` batches are begun: so the
memory is that of a few batches, whatever the number of threads.
"""

import concurrent.futures.thread as executor_threads
import contextlib
import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator

import grain

from resnext_jax.errors import UserError
from resnext_jax.types import Batch

BATCHES_AHEAD = 2  # enough to overlap, and batches are memory
LOOK_EVERY_S = 1.0
WARN_AFTER_S = 60.0  # at one image
GIVE_UP_AFTER_S = 600.0


class Watch:
    """Which image each thread is at, and since when."""

    def __init__(self, locate: Callable[[int], str]):
        self._locate, self._at, self._warned = locate, {}, set()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[int], None]]:
        """Within, the function that it gives is called with the index of each image that this thread begins."""
        thread = threading.current_thread()

        def begin(index: int) -> None:
            self._at[thread] = (time.monotonic(), index)

        try:
            yield begin
        finally:
            self._at.pop(thread, None)

    def hanging(self, after_s: float) -> list[tuple[threading.Thread, str, float]]:
        """The threads that have been at one image for longer: (thread, where the image is, seconds)."""
        now = time.monotonic()
        found = [(thread, index, now - since) for thread, (since, index) in list(self._at.items())]
        return [(thread, self._locate(index), spent_s) for thread, index, spent_s in found if spent_s > after_s]

    def check(self) -> None:
        """Warns once of each image that takes too long.

        Raises:
          UserError: one has taken so long that it will not come.
        """
        for thread, where, spent_s in self.hanging(WARN_AFTER_S):
            sentence = f"input: thread {thread.name} has been at {where} for {spent_s:.0f} s"
            if spent_s > GIVE_UP_AFTER_S:
                raise UserError(
                    f"{sentence}, and everything waits for it. An image is read in milliseconds: look whether this "
                    "one can be read at all (is its disk, mount or bucket there?), then start again. Training goes on "
                    "from its newest checkpoint."
                )
            if (thread, where) not in self._warned:
                self._warned.add((thread, where))
                logging.getLogger(__name__).warning("%s; still waiting.", sentence)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of the batches of all steps in order, as the indexable object that Grain reads from.

    An item is the batch that its part belongs to; with the last part of a step it is full.
    """

    num_steps: int
    rows: list[slice]
    empty: Callable[[], Batch]
    fill: Callable[[Batch, int, slice], None]
    begun: dict[int, Batch] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return self.num_steps * len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, len(self.rows))
        with self.lock:
            if step not in self.begun:
                self.begun[step] = self.empty()
            batch = self.begun[step]
        self.fill(batch, step, self.rows[part])
        return batch


def batches(
    num_steps: int,
    start_step: int,
    num_rows: int,
    *,
    empty: Callable[[], Batch],
    fill: Callable[[Batch, int, slice], None],
    watch: Watch,
    num_threads: int,
    num_parts: int,
) -> Generator[Batch]:
    """The batches of steps `start_step` to `num_steps - 1`, in order.

    Args:
      num_steps, start_step: of the whole run.
      num_rows: of a batch.
      empty: makes a batch.
      fill: fills some rows of a step's batch; called from the threads.
      watch: which `fill` tells what it reads.
      num_threads: 0 fills each batch when it is asked for, without a thread.
      num_parts: how many threads share a batch, at most.
    """
    num_parts = min(num_parts, num_rows)
    cuts = [num_rows * part // num_parts for part in range(num_parts + 1)]
    rows = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    parts = _Parts(num_steps, rows, empty, fill)
    buffer_size = max(num_threads + 1, BATCHES_AHEAD * num_parts) if num_threads else 0
    options = grain.ReadOptions(num_threads, prefetch_buffer_size=buffer_size)
    items = iter(grain.MapDataset.source(parts)[start_step * num_parts :].to_iter_dataset(options))

    def whole() -> Iterator[Batch]:
        for step in range(start_step, num_steps):
            for _ in rows:
                batch = next(items)
            del parts.begun[step]
            yield batch

    try:
        yield from _watched(whole(), watch) if num_threads else whole()
    finally:
        items.close()  # drops the batches in waiting; the threads end with the part at hand


def _watched(source: Iterator[Batch], watch: Watch) -> Generator[Batch]:
    """The same batches by way of a thread of their own, so that who waits for one can be told why, and interrupted."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def feed() -> None:
        last = None
        try:
            for batch in source:
                ready.put(batch)
                if stop.is_set():
                    return
        except BaseException as error:  # whatever it is, it is for the thread that waits
            last = error
        if not stop.is_set():
            ready.put(last)

    # The threads that Grain starts from a daemon are daemons: no exit waits for one that hangs.
    threading.Thread(target=feed, name="input", daemon=True).start()
    try:
        while True:
            try:
                item = ready.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                watch.check()
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item
    finally:
        stop.set()
        with contextlib.suppress(queue.Empty):
            ready.get_nowait()  # lets the feeder go
        for thread, *_ in watch.hanging(LOOK_EVERY_S):
            # Python waits for the threads of every executor when it exits, daemons too, unless they are not listed.
            executor_threads._threads_queues.pop(thread, None)  # pyright: ignore[reportAttributeAccessIssue]
