"""Work in parallel processes, of which none outlives this one and none is given more than it can hold."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TypeVar

from resnext_jax.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
_AHEAD = 256


def map_in_order(pool: Executor, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """`pool.map`, which is not told all of the tasks at once."""
    rest = iter(tasks)
    waiting = deque(pool.submit(function, task) for task in itertools.islice(rest, _AHEAD))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, task) for task in itertools.islice(rest, 1))


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterator[Task],
    pool: Executor,
    num_processes: int,
    on_done: Callable[[Result], None],
) -> None:
    """Calls `on_done` with the result of every task, in the order in which they are finished.

    No more tasks wait than processes work: the list of a shard's images is some megabytes.

    Raises:
      UserError: the first of a task, when those under way beside it are finished and handed on.
    """
    running: set[Future[Result]] = set()
    error: UserError | None = None
    for task in tasks:
        running.add(pool.submit(function, task))
        if len(running) > num_processes:
            error = _collect(running, on_done)
        if error:
            break
    while running:
        error = _collect(running, on_done) or error
    if error:
        raise error


def _collect(running: set[Future[Result]], on_done: Callable[[Result], None]) -> UserError | None:
    """Takes what is finished out of `running`."""
    finished, error = wait(running, return_when=FIRST_COMPLETED).done, None
    running -= finished
    for future in finished:
        try:
            on_done(future.result())
        except UserError as problem:
            error = problem
    return error


class _Process(SpawnProcess):
    """A process that Ctrl-C does not reach, from its first moment on: a pool starts them when work comes."""

    def start(self) -> None:
        # What is blocked here while it is started stays blocked there, and comes through here afterwards.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Spawn(SpawnContext):
    Process = _Process


@contextlib.contextmanager
def worker_pool(num_processes: int) -> Iterator[Executor]:
    """Processes that end when this one does, however it does; for one, a thread of this one."""
    if num_processes == 1:
        pool = ThreadPoolExecutor(1)
    else:
        resource_tracker.ensure_running()  # a process of its own, whose start would unblock signals
        pool = ProcessPoolExecutor(num_processes, mp_context=_Spawn(), initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for shards
        raise
    pool.shutdown()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers come here

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
