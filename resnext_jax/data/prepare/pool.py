"""Worker processes that end with this one."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TypeVar

from resnext_jax.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterator[Task],
    pool: Executor,
    num_processes: int,
    on_done: Callable[[Result], None],
) -> None:
    """Calls `on_done` with the result of every task, in the order in which they finish.

    At most one task waits, because the list of a shard's images has some megabytes.

    Raises:
      UserError: the first error of a task; it is raised after the tasks that run beside it are done.
    """
    running: set[Future[Result]] = set()
    errors: list[UserError] = []
    while True:
        while len(running) <= num_processes and not errors and (task := next(tasks, None)) is not None:
            running.add(pool.submit(function, task))
        if not running:
            break
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            try:
                on_done(future.result())
            except UserError as error:
                errors.append(error)
    if errors:
        raise errors[0]


class _Process(SpawnProcess):
    """A process that ignores Ctrl-C from its start."""

    def start(self) -> None:
        # The new process inherits the blocked signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Spawn(SpawnContext):
    Process = _Process


@contextlib.contextmanager
def worker_pool(num_processes: int) -> Iterator[Executor]:
    """Yields processes that end when this one ends, also if it is killed; a thread if `num_processes` is 1."""
    if num_processes == 1:
        pool = ThreadPoolExecutor(1)
    else:
        resource_tracker.ensure_running()  # a process whose start would unblock the signal
        pool = ProcessPoolExecutor(num_processes, mp_context=_Spawn(), initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for shards
        raise
    pool.shutdown()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs only in workers

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
