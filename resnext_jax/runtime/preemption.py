"""SIGTERM, with which a scheduler takes machines back: all processes stop after the same step and save it."""

import signal
import threading
from types import FrameType

from jax.experimental import multihost_utils


class Preemption:
    """Notes a SIGTERM; a context manager for the main thread.

    JAX takes the signal where there are several processes, tells all of them, and chooses the step. A lone process
    has no coordination service, so that a Python handler takes the signal.
    """

    _calls = 0  # of `requested` in this process, in all runs: JAX counts them so

    def __init__(self, process_count: int):
        self._alone = process_count == 1
        self._noted = False

    def __enter__(self) -> "Preemption":
        self._listens = self._alone and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._handler_before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens and not self._noted:  # otherwise a second signal would change the exit status
            signal.signal(signal.SIGTERM, self._handler_before or signal.SIG_DFL)

    def requested(self) -> bool:
        """Return whether to save and stop now. Call it after every step, equally often on all processes."""
        if self._alone:
            return self._noted
        # Counted from the start of this process: JAX stops all at the largest number so far plus one, which numbers
        # that begin at a later step would jump over when the signal comes before the first of them.
        Preemption._calls += 1
        return multihost_utils.reached_preemption_sync_point(Preemption._calls)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = True


def message(step: int) -> str:
    """Return what to tell people; `step` is that of the newest checkpoint."""
    return f"preempted (SIGTERM): saved at step {step:,}; run the same command again to go on"
