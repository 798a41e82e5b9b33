"""How a prepare command ends: with a sentence instead of a traceback, and an exit status."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from resnext_jax.errors import INTERRUPTED_STATUS, UserError, report_error
from resnext_jax.progress import end_line


def exit_status(work: Callable[[], None]) -> int:
    """Run a command and return its exit status; prints the problems of a UserError, and ends the workers on Ctrl-C."""
    try:
        work()
        return 0
    except UserError as error:
        end_line()
        return report_error(error)
    except BrokenProcessPool:
        end_line()
        problem = (
            "a worker process ended all at once (killed, or out of memory). Run the same command again: finished "
            "shards are not written again; --num_processes=N takes less memory."
        )
        return report_error(UserError(problem))
    except KeyboardInterrupt:
        end_line()
        print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
        workers = multiprocessing.active_children()
        for worker in workers:
            worker.kill()
        if not workers:
            os._exit(INTERRUPTED_STATUS)  # a thread would write its shard to the end
        return INTERRUPTED_STATUS
