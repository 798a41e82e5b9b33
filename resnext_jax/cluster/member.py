"""This process's connection to process 0, and the thread that ends this process when the run cannot go on."""

import contextlib
import os
import queue
import select
import socket
import sys
import threading
import time
from typing import Any

from resnext_jax.cluster.find import Part
from resnext_jax.cluster.roll_call import Facts
from resnext_jax.cluster.sentences import RESTART, broken, lost, silent
from resnext_jax.cluster.wire import BEAT_EVERY_S, GRACE_S, LOST_AFTER_S, Wire
from resnext_jax.errors import LOST_STATUS, Lost, UserError, print_error

RETRY_EVERY_S = 0.5
HELLO_TIMEOUT_S = 20.0
# Process 0 stays until what its hub has told the others is on its way.
LINGER_S = 1.0


class Connection:
    """To the hub.

    Args:
      wire: on which this process has been welcomed.
      process_id: of this process.
      hub_name: of process 0, with its host, for messages.
    """

    def __init__(self, wire: Wire, process_id: int, hub_name: str):
        self._wire, self._process_id, self._hub_name = wire, process_id, hub_name
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._leaving: int | None = None
        self._all_left, self._ending = threading.Event(), threading.Event()
        self.step: int | None = None
        threading.Thread(target=self._watch, daemon=True, name="cluster watch").start()

    def compare(self, facts: Facts) -> None:
        """A roll call: returns when all processes have named the same facts.

        Raises:
          UserError: they have not; every process is told every difference.
        """
        self._send("facts", dict(facts))
        lines = self._answer("verdict")
        if lines:
            raise UserError("the processes of this run are not alike:", *lines, "Start all of them alike.")

    def announce_service(self, port: int) -> None:
        """Process 0 tells all where the coordination service of JAX is."""
        self._send("service", port)

    def service_port(self) -> int:
        """What process 0 announced."""
        return self._answer("service")

    def leave(self, status: int) -> None:
        """Says with which status this process ends, so that it is not taken for lost.

        After success, returns when all processes have succeeded: until then one may be lost, and all must run again.
        Otherwise when all have left, or after a moment.
        """
        self.wait_for_news(0)
        self._leaving = status
        self._send("bye", status)
        self._all_left.wait(GRACE_S if status else None)
        if self._process_id == 0:
            time.sleep(LINGER_S)

    def wait_for_news(self, timeout_s: float) -> None:
        """Returns if nothing has come by then that ends this process, which otherwise does not live to see it."""
        if self._ending.wait(timeout_s):
            threading.Event().wait()

    def _answer(self, kind: str) -> Any:
        answered, content = self._answers.get()  # or the thread below ends the process
        assert answered == kind, (answered, kind)
        return content

    def _send(self, kind: str, content: Any = None) -> None:
        with contextlib.suppress(OSError):  # the thread below finds out why
            self._wire.send(kind, content)

    # ------------------------------------------------------------------------------------------------- The thread

    def _watch(self) -> None:
        heard_s = looked_s = time.monotonic()
        heard_at, beat_s = time.time(), 0.0
        news: tuple[float, int, str] | None = None  # until then this process may end by itself; then it ends so
        while True:
            now_s = time.monotonic()
            frozen_s, looked_s = now_s - looked_s, now_s
            if frozen_s > BEAT_EVERY_S:  # this process was, not process 0
                heard_s += frozen_s
            if now_s - beat_s >= BEAT_EVERY_S:
                beat_s = now_s
                self._send("beat", self.step)
            messages: list[tuple[str, Any]] = []
            if select.select([self._wire], [], [], BEAT_EVERY_S / 10)[0]:
                try:
                    messages = self._wire.receive()
                except OSError as error:
                    if news is None:
                        self._end(LOST_STATUS, lost(self._hub_name, self.step, broken(error)))
                        return
                    time.sleep(BEAT_EVERY_S / 10)  # process 0 has ended with those news a little earlier
                else:
                    heard_s, heard_at = time.monotonic(), time.time()
            for kind, content in messages:
                if kind == "end":
                    self._end(content["status"], content["text"])
                elif kind == "left":
                    news = (time.monotonic() + content["grace_s"], content["status"], content["text"])
                elif kind == "all left":
                    self._all_left.set()
                elif kind != "beat":
                    self._answers.put((kind, content))
            if news is not None and time.monotonic() > news[0]:
                self._end(*news[1:])
            if time.monotonic() - heard_s > LOST_AFTER_S and news is None:
                self._end(LOST_STATUS, lost(self._hub_name, self.step, silent(heard_s, heard_at)))

    def _end(self, status: int, text: str) -> None:
        """Ends this process, whatever its other threads are in: a collective without its peer never returns."""
        if self._leaving or self._all_left.is_set():
            return  # it ends by itself, and has said why
        self._ending.set()
        if sys.stderr.isatty():
            print(file=sys.stderr)  # below a progress line
        print_error(text)
        if self._process_id == 0:
            time.sleep(LINGER_S)
        os._exit(status)


def connect(part: Part, host: str, timeout_s: float) -> Connection:
    """Finds process 0 and is welcomed by it.

    Args:
      part: of this process, not the first.
      host: the name of this one.
      timeout_s: until process 0 must have answered.

    Raises:
      Lost: it did not answer.
      UserError: it refused this process.
    """
    address = f"{part.host}:{part.port}"
    deadline_s, reason = time.monotonic() + timeout_s, "no answer"
    hello = {"process": part.process_id, "num_processes": part.num_processes, "host": host}
    while time.monotonic() < deadline_s:
        try:
            wire = Wire(socket.create_connection((part.host, part.port), timeout=HELLO_TIMEOUT_S))
            try:
                wire.send("hello", hello)
                ((kind, content), *_) = _first(wire)
            except OSError:
                wire.close()
                raise
            if kind == "welcome":
                return Connection(wire, part.process_id, f"process 0 ({content})")
            wire.close()
            if kind == "refused":
                raise UserError(content)
            reason = content
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(RETRY_EVERY_S)
    raise Lost(
        f"process 0 did not answer at {address} within {timeout_s:.0f} s (--join_timeout_s), for process "
        f"{part.process_id} ({host}): {reason}. Look whether it runs there, and whether this host reaches that port. "
        f"{RESTART}"
    )


def _first(wire: Wire) -> list[tuple[str, Any]]:
    messages: list[tuple[str, Any]] = []
    while not messages:
        messages = wire.receive()
    return messages
