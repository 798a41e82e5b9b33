"""The thread of process 0 that all processes are connected to, itself included, and that knows who is there."""

import contextlib
import dataclasses
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from resnext_jax.cluster.roll_call import Facts, differences, several
from resnext_jax.cluster.sentences import RESTART, broken, clock, lost, parted, silent
from resnext_jax.cluster.wire import BEAT_EVERY_S, GRACE_S, LOST_AFTER_S, SAVING_GRACE_S, Wire
from resnext_jax.errors import LOST_STATUS, PREEMPTED_STATUS, USER_ERROR_STATUS

TICK_S = 0.2
SAY_EVERY_S = 15.0


@dataclasses.dataclass(eq=False)
class Member:
    """One connected process.

    Attributes:
      wire: to it.
      process: its id; None until it has said hello.
      host: its name for itself.
      facts: for the roll call under way; None until they are in.
      step: the last one that it told.
      heard_s, heard_at: when something came from it, by the monotonic clock and by the wall's.
      status: that it ends with; None while it runs.
      gone: its connection is closed.
    """

    wire: Wire
    process: int | None = None
    host: str = ""
    facts: Facts | None = None
    step: int | None = None
    heard_s: float = dataclasses.field(default_factory=time.monotonic)
    heard_at: float = dataclasses.field(default_factory=time.time)
    status: int | None = None
    gone: bool = False

    @property
    def name(self) -> str:
        return f"process {self.process} ({self.host})"


class Hub:
    """Brings the processes together, compares them, passes on what ends one of them.

    Args:
      listener: listens for the other processes.
      own: this end of the connection to process 0, which is this process.
      host: its name.
      num_processes: that the run has.
      timeout_s: for all to come, and to answer a roll call.
      say: shows a line to people.
    """

    def __init__(
        self,
        listener: socket.socket,
        own: socket.socket,
        host: str,
        num_processes: int,
        timeout_s: float,
        say: Callable[[str], None],
    ):
        self._listener, self._num_processes, self._timeout_s, self._say = listener, num_processes, timeout_s, say
        self._members = {0: Member(Wire(own), 0, host)}
        self._complete = False  # all have come: from here on a process that goes is missed
        self._stopped = False
        self._ending = False  # all have been told why: nobody is missed any more
        self._started_s = self._beat_s = self._said_s = self._asked_s = self._looked_s = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._members[0].wire, selectors.EVENT_READ, self._members[0])
        self._thread = threading.Thread(target=self._serve, daemon=True, name="cluster hub")
        self._thread.start()

    def stop(self) -> None:
        """Hears and tells no more."""
        self._stopped = True
        self._thread.join()
        self._selector.close()
        for member in self._members.values():
            member.wire.close()

    def last_seen(self) -> list[dict[str, Any]]:
        """Of every process its id, host, last step and when it was heard (seconds since 1970)."""
        members = sorted(self._members.items())
        return [
            {"process": process, "host": member.host, "step": member.step, "time": member.heard_at}
            for process, member in members
        ]

    # ------------------------------------------------------------------------------------------------- The thread

    def _serve(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(TICK_S):
                if key.fileobj is self._listener:
                    with contextlib.suppress(OSError):  # gone before it was let in; it knocks again
                        member = Member(Wire(self._listener.accept()[0]))
                        self._selector.register(member.wire, selectors.EVENT_READ, member)
                else:
                    self._read(key.data)
            self._look_round(time.monotonic())

    def _read(self, member: Member) -> None:
        try:
            messages = member.wire.receive()
        except OSError as error:
            self._close(member, broken(error))
            return
        member.heard_s, member.heard_at = time.monotonic(), time.time()
        try:
            for kind, content in messages:
                self._take(member, kind, content)
        except (TypeError, ValueError, LookupError):
            self._close(member, f"it spoke another language at {clock(time.time())}")

    def _take(self, member: Member, kind: str, content: Any) -> None:
        if member.process is None:
            self._admit(member, kind, content)
        elif kind == "facts":
            member.facts = dict(content)
            self._compare()
        elif kind == "service":
            self._tell_all("service", int(content))
        elif kind == "beat":
            member.step = content if content is None else int(content)
        elif kind == "bye":
            self._part_from(member, int(content))

    def _look_round(self, now_s: float) -> None:
        frozen_s, self._looked_s = now_s - self._looked_s, now_s
        if frozen_s > BEAT_EVERY_S:  # this process was: no one else is to blame for that
            for member in self._members.values():
                member.heard_s += frozen_s
        if now_s - self._beat_s >= BEAT_EVERY_S:
            self._beat_s = now_s
            self._tell_all("beat")
        if self._ending:
            return
        if not self._complete:
            self._look_for_the_absent(now_s)
            return
        for member in self._members.values():
            if member.status is None and now_s - member.heard_s > LOST_AFTER_S:
                self._end(LOST_STATUS, lost(member.name, member.step, silent(member.heard_s, member.heard_at)))
                return
        mute = [member.name for member in self._members.values() if member.facts is None]
        if 0 < len(mute) < self._num_processes and now_s - self._asked_s > self._timeout_s:
            self._end(
                LOST_STATUS,
                f"{several(mute)} did not answer the roll call within {self._timeout_s:.0f} s, though running: look "
                f"what holds it up there (its devices, most often). {RESTART}",
            )

    def _look_for_the_absent(self, now_s: float) -> None:
        absent = [f"process {index}" for index in range(self._num_processes) if index not in self._members]
        here = [member.name for _, member in sorted(self._members.items())]
        if now_s - self._started_s > self._timeout_s:
            self._end(
                LOST_STATUS,
                f"{several(absent)} of {self._num_processes} did not come within {self._timeout_s:.0f} s "
                f"(--join_timeout_s); here: {several(here)}. Look whether the command runs on every host, and whether "
                f"they reach the coordinator's port on this one. {RESTART}",
            )
        elif now_s - self._said_s > SAY_EVERY_S:
            self._said_s = now_s
            self._say(f"waiting for {several(absent)} of {self._num_processes}; here: {several(here)}")

    # ------------------------------------------------------------------------------------------------ Who is there

    def _admit(self, member: Member, kind: str, content: Any) -> None:
        """Takes in a process that says hello for the first time."""
        if kind != "hello":
            raise ValueError(kind)
        process, count, member.host = int(content["process"]), int(content["num_processes"]), str(content["host"])
        name = f"process {process} ({member.host})"
        if self._complete or self._ending:
            # Started again before the others have noticed its end: it tries again until they have.
            self._send(member, "busy", f"{name} comes to a run that has all its processes, or ends")
            self._close(member, "busy")
            return
        if count != self._num_processes or not 0 <= process < count:
            self._refuse(
                member,
                f"{name} is one of {count} by its own account, but process 0 is one of {self._num_processes}: give all "
                "the same --num_processes (JAX_NUM_PROCESSES), each an id below it.",
            )
            return
        other = self._members.get(process)
        if other is not None and time.monotonic() - other.heard_s < 2 * BEAT_EVERY_S:
            self._refuse(
                member,
                f"process {process} is there twice, on {other.host} and on {member.host}: each process must have its "
                "own --process_id (JAX_PROCESS_ID).",
            )
            return
        if other is not None:  # its machine was switched off without a word, and is back
            self._close(other, "replaced")
        member.process = process
        self._members[process] = member
        self._send(member, "welcome", self._members[0].host)
        self._complete = len(self._members) == self._num_processes

    def _refuse(self, member: Member, sentence: str) -> None:
        """A mistake that concerns all: none of them need wait for the time limit."""
        self._send(member, "refused", sentence)
        self._close(member, "refused")
        self._end(USER_ERROR_STATUS, sentence)

    def _compare(self) -> None:
        """Answers a roll call once all facts are in."""
        members = [member for _, member in sorted(self._members.items())]
        self._asked_s = time.monotonic()
        if not self._complete or any(member.facts is None for member in members):
            return
        lines = differences([m.name for m in members], [m.facts for m in members if m.facts is not None])
        for member in members:
            member.facts = None
        self._tell_all("verdict", lines)

    def _part_from(self, member: Member, status: int) -> None:
        """Notes that a process ends by itself; with anything but success that ends the others too."""
        member.status = status
        if not self._complete:
            self._send(member, "all left")  # it need not wait for those who may still come
        if status and (self._complete or member.process == 0) and not self._ending:
            self._ending = True
            grace_s = SAVING_GRACE_S if status == PREEMPTED_STATUS else GRACE_S
            news = {"status": status, "text": parted(member.name, status), "grace_s": grace_s}
            self._tell_all("left", news, besides=member)
        self._count_those_left()

    def _close(self, member: Member, reason: str) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member.wire)
        member.wire.close()
        member.gone = True
        if member.process is None or self._members.get(member.process) is not member:
            return
        if not self._complete:
            del self._members[member.process]  # it may come again
        elif member.status is None and not self._ending:
            self._end(LOST_STATUS, lost(member.name, member.step, reason))
        self._count_those_left()

    def _count_those_left(self) -> None:
        if self._complete and all(member.gone or member.status is not None for member in self._members.values()):
            self._tell_all("all left")

    # ---------------------------------------------------------------------------------------------- What is told

    def _end(self, status: int, text: str) -> None:
        self._ending = True
        self._tell_all("end", {"status": status, "text": text})

    def _tell_all(self, kind: str, content: Any = None, besides: Member | None = None) -> None:
        # Process 0 last: it may end at once, and this thread with it.
        for member in sorted(self._members.values(), key=lambda member: -(member.process or 0)):
            if member is not besides and not member.gone:
                self._send(member, kind, content)

    def _send(self, member: Member, kind: str, content: Any = None) -> None:
        with contextlib.suppress(OSError):  # the next read says so too
            member.wire.send(kind, content)
