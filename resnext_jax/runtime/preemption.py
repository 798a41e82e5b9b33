"""SIGTERM: all processes stop after the same step, save it and end with status 75; where nothing is at stake, at once.

A scheduler announces that it takes the machines back with a SIGTERM, to all processes or to one of them, and kills
what is left after a grace period (30 s on Google Cloud). A Python handler would wait for the main thread, which may be
in a compiler for minutes; so a thread listens to the pipe that the signal itself writes to. The first process to hear
of it tells the others through JAX's coordination service; all then vote with the step that they have begun last: that
of the foremost is the last one. A process with nothing at stake, because it is still compiling, or evaluates a state
that is saved, votes to leave at once, and that decides.

A Ctrl-C is an ordinary KeyboardInterrupt. Where it arrives in a callback that ignores exceptions, such as JAX's of the
garbage collector, it is raised again at the next step.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from jax._src import distributed  # the client of the coordination service has no public name

from resnext_jax import cluster
from resnext_jax.errors import PREEMPTED_STATUS, Preempted
from resnext_jax.sharding import Place

GIVE_UP_AFTER_S = 25.0  # the rest of the grace period is for the end of the process
LOOK_EVERY_S = 1.0  # whether another process was told
LEAVE_S = 5.0  # that the main thread is given to end by itself, once all is saved
LEAVE_NOW = -1  # a vote
NOTHING_TO_SAVE = "preempted (SIGTERM) before the first step of this start: run the same command again"
TOO_LATE = (
    f"preempted (SIGTERM): could not finish and save the step at hand in {GIVE_UP_AFTER_S:.0f} s; run the same command "
    "again to go on from the newest checkpoint"
)
NOTICE, VOTES = "resnext_jax/preempted", "resnext_jax/preempted_at"

Result = TypeVar("Result")


class _Interrupted(BaseException):
    """Out of the wait for a batch that is no longer wanted."""


class Preemption:
    """Listens for SIGTERM from `__enter__` on; a context manager for the main thread, and without effect elsewhere.

    After a notice the process ends with status 75, also where the handler's `with` is left: a second SIGTERM changes
    nothing.

    Attributes:
      saving: hold it while a checkpoint is begun.
      before_leaving: called before an end at once; what must still be finished, such as a save in the background.
    """

    def __init__(self, place: Place):
        self.saving = threading.Lock()
        self.before_leaving: list[Callable[[], object]] = []
        self._place = place
        self._client: Any = distributed.global_state.client if place.process_count > 1 else None
        self._lock = threading.Lock()  # held while the processes vote, and for good by one that leaves
        self._at_stake, self._begun, self._last_step = False, 0, None
        self._waiting = False
        self._interrupted = False
        self._noticed, self._saved, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    # -------------------------------------------------------------------------------------------- For the loop

    def start_steps(self, step: int) -> None:
        """From here on there is something to lose; `step` steps are made."""
        with self._lock:
            self._at_stake, self._begun = True, step

    def take(self, batches: Iterator[Result], step: int) -> Result | None:
        """The batch of `step`, which is then begun; None where all processes stop before it."""
        if self._interrupted:
            raise KeyboardInterrupt
        try:
            try:
                self._waiting = True
                batch = None if self._stops_before(step) else next(batches)
            finally:
                self._waiting = False
        except _Interrupted:
            return None
        with self._lock:
            if self._stops_before(step):
                return None
            self._begun = step
        return batch

    @property
    def last_step(self) -> int | None:
        """The last step to be made, once a notice has come."""
        with self._lock:
            return self._last_step

    def with_nothing_at_stake(self, work: Callable[[], Result]) -> Result | None:
        """`work()`, in which a SIGTERM ends the process at once; None, without it, where the run is stopping."""
        with self._lock:
            if self._last_step is not None:
                return None
            self._at_stake = False
        result = work()
        with self._lock:
            self._at_stake = True
        return result

    def end(self) -> None:
        """Raises Preempted where a notice has come; the last step is made and saved."""
        if self.last_step is not None:
            self._saved.set()
            raise Preempted(_saved(self.last_step) if self._place.speaks else "")

    # -------------------------------------------------------------------------------------------- The listeners

    def __enter__(self) -> "Preemption":
        self._main = threading.main_thread()
        if threading.current_thread() is not self._main:
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, self._handle)
        # Under nohup, say, an interrupt is ignored, and stays so.
        self._takes_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._takes_interrupts:
            signal.signal(signal.SIGINT, self._interrupt)
        self._threads = [threading.Thread(target=self._listen, name="SIGTERM", daemon=True)]
        if self._client is not None:
            self._threads.append(threading.Thread(target=self._look, name="preemption", daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._threads or self._noticed.is_set():
            return
        signal.signal(signal.SIGTERM, self._old_handler or signal.SIG_DFL)
        if self._takes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        self._closed.set()
        os.write(self._pipe[1], b"\0")
        for thread in self._threads:
            thread.join()
        for end in self._pipe:
            os.close(end)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """In the main thread, as soon as that is in Python."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._pipe[1], bytes([signum]))  # an event loop (orbax has one) may have taken the pipe's place
        if self._waiting and self._stops_before(self._begun + 1):
            self._waiting = False  # raises once
            raise _Interrupted

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _listen(self) -> None:
        while not self._closed.is_set():
            if signal.SIGTERM not in os.read(self._pipe[0], 64) or self._noticed.is_set():
                continue
            if self._client is None:
                self._decide()
            else:
                with contextlib.suppress(Exception):  # no service, no vote: the run is lost, which others notice
                    self._client.key_value_set(NOTICE, str(self._place.process_index), allow_overwrite=True)

    def _look(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            with contextlib.suppress(Exception):  # there is none
                self._client.key_value_try_get(NOTICE)
                return self._decide()

    # ---------------------------------------------------------------------------------------------- The decision

    def _decide(self) -> None:
        self._noticed.set()
        deadline_s = time.monotonic() + GIVE_UP_AFTER_S
        threading.Thread(target=self._give_up, args=(deadline_s,), name="grace period", daemon=True).start()
        with self._lock:
            votes = self._vote(self._begun if self._at_stake else LEAVE_NOW, deadline_s)
            if LEAVE_NOW in votes:
                self._leave(_saved(self._begun))
            self._last_step = max(votes)
        assert self._main.ident is not None
        signal.pthread_kill(self._main.ident, signal.SIGTERM)  # it may wait for a batch

    def _vote(self, own: int, deadline_s: float) -> list[int]:
        """The votes of all processes."""
        if self._client is None:
            return [own]
        self._client.key_value_set(f"{VOTES}/{self._place.process_index}", str(own))
        return [int(self._get(f"{VOTES}/{index}", deadline_s)) for index in range(self._place.process_count)]

    def _leave(self, sentence: str) -> None:
        with self.saving:
            for finish in self.before_leaving:
                with contextlib.suppress(Exception):  # what failed is not there at the next start, and nothing else
                    finish()
        self._end(sentence)

    def _give_up(self, deadline_s: float) -> None:
        """Ends the process before the grace period does, unless it is saving; what hangs when all is saved, sooner."""
        if self._saved.wait(deadline_s - time.monotonic()):
            time.sleep(LEAVE_S)
            _exit()
        with self.saving:
            self._end(TOO_LATE)

    def _end(self, sentence: str) -> None:
        if self._place.speaks:
            print(f"\n{sentence}", file=sys.stderr, flush=True)
        _exit()

    def _get(self, key: str, deadline_s: float) -> str:
        return self._client.blocking_key_value_get(key, max(1, round(1000 * (deadline_s - time.monotonic()))))

    def _stops_before(self, step: int) -> bool:
        return self._last_step is not None and step > self._last_step


def _exit() -> None:
    """Ends the process: nothing of Python could interrupt the main thread where it is."""
    cluster.leave(PREEMPTED_STATUS)
    os._exit(PREEMPTED_STATUS)


def _saved(step: int) -> str:
    if not step:
        return NOTHING_TO_SAVE
    return f"preempted (SIGTERM): saved at step {step:,}; run the same command again to go on"
