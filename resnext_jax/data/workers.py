"""The threads that fill the batches of the coming steps, and what is said of one that hangs.

All threads fill one batch together, each a part of its rows, and no more than `BATCHES_AHEAD` batches are begun: so the
memory is that of a few batches, whatever the number of threads.

They are daemons of our own: Python waits for the threads of an executor when it exits, even for one that hangs.
"""

import atexit
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from resnext_jax.errors import UserError
from resnext_jax.types import Batch

BATCHES_AHEAD = 2  # enough to overlap, and batches are memory
LOOK_EVERY_S = 1.0
WARN_AFTER_S = 60.0  # at one image
GIVE_UP_AFTER_S = 600.0
END_WITHIN_S = 1.0  # a thread ends with the image at hand: milliseconds, if it does not hang


class _Stopped(BaseException):
    """Ends a thread between two images."""


class Watch:
    """Which image each thread is at, and since when."""

    def __init__(self, locate: Callable[[int], str]):
        self._locate, self._at, self._warned = locate, {}, set()
        self.stopped = False

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[int], None]]:
        """Within, the function that it gives is called with the index of each image that this thread begins."""
        thread = threading.current_thread()

        def begin(index: int) -> None:
            if self.stopped:
                raise _Stopped
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


class _Ahead:
    """The batches that the threads have begun.

    Attributes:
      unfilled: of each of these steps, how many parts are not filled yet.
      errors: of each step, by the first of the rows that could not be filled.
      wanted: the step that is handed over next.
    """

    def __init__(
        self, steps: range, rows: Sequence[slice], empty: Callable[[int], Batch], fill: Callable, watch: Watch
    ):
        self.rows, self.empty, self.fill, self.watch = rows, empty, fill, watch
        self.tasks = ((step, part) for step in steps for part in rows)
        self.begun: dict[int, Batch] = {}
        self.unfilled: dict[int, int] = {}
        self.errors: dict[int, dict[int, BaseException]] = {}
        self.wanted = steps.start
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def start(self, num_threads: int) -> None:
        """Begins."""
        atexit.register(self.stop)  # a daemon that runs on while Python is taken down would end in a crash
        self.threads = [threading.Thread(target=self._work, name=f"input-{n}", daemon=True) for n in range(num_threads)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Drops all batches. The threads end with the image at hand; one that hangs is left behind."""
        atexit.unregister(self.stop)
        with self.changed:
            self.watch.stopped = True
            self.begun.clear()
            self.changed.notify_all()
        end_s = time.monotonic() + END_WITHIN_S
        for thread in self.threads:
            thread.join(max(0.0, end_s - time.monotonic()))

    def take(self, step: int) -> Batch:
        """The batch of the next step, when it is full.

        Raises:
          UserError: an image of it cannot be read, or has taken so long that it will not come.
        """
        with self.changed:
            self.wanted = step
            self.changed.notify_all()
            while self.unfilled.get(step, 1):
                if not self.changed.wait(LOOK_EVERY_S):
                    self.watch.check()
            del self.unfilled[step]
            batch = self.begun.pop(step)
            if errors := self.errors.pop(step, None):
                raise errors[min(errors)]
            self.wanted = step + 1
            self.changed.notify_all()
            return batch

    def _next(self) -> tuple[int, slice, Batch] | None:
        """The next part to be filled, once its batch may be begun."""
        with self.changed:
            step, rows = next(self.tasks, (None, None))
            if step is None or rows is None:
                return None
            self.changed.wait_for(lambda: self.watch.stopped or step < self.wanted + BATCHES_AHEAD)
            if self.watch.stopped:
                return None
            if step not in self.unfilled:
                self.begun[step], self.unfilled[step] = self.empty(step), len(self.rows)
            return step, rows, self.begun[step]

    def _work(self) -> None:
        while (task := self._next()) is not None:
            step, rows, batch = task
            error = None
            try:
                self.fill(batch, step, rows)
            except _Stopped:
                return
            except BaseException as problem:  # whatever it is, it is for who waits for this batch
                error = problem
            del task, batch  # else one that has been handed over would be held until the next
            with self.changed:
                if error is not None:
                    self.errors.setdefault(step, {})[rows.start] = error
                self.unfilled[step] -= 1
                self.changed.notify_all()


def batches(
    num_steps: int,
    start_step: int,
    num_rows: int,
    *,
    empty: Callable[[int], Batch],
    fill: Callable[[Batch, int, slice], None],
    watch: Watch,
    num_threads: int,
    num_parts: int,
) -> Generator[Batch]:
    """The batches of steps `start_step` to `num_steps - 1`, in order.

    Args:
      num_steps, start_step: of the whole run.
      num_rows: of a batch.
      empty: makes the batch of a step.
      fill: fills some rows of a step's batch; called from the threads.
      watch: which `fill` tells what it reads.
      num_threads: 0 fills each batch when it is asked for, without a thread.
      num_parts: how many threads share a batch, at most.
    """
    steps = range(start_step, num_steps)
    if not num_threads:
        for step in steps:
            batch = empty(step)
            fill(batch, step, slice(0, num_rows))
            yield batch
        return
    num_parts = min(num_parts, num_rows)
    cuts = [num_rows * part // num_parts for part in range(num_parts + 1)]
    rows = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    ahead = _Ahead(steps, rows, empty, fill, watch)
    ahead.start(num_threads)
    try:
        for step in steps:
            yield ahead.take(step)
    finally:
        ahead.stop()
