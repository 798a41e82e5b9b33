"""A live progress line with the remaining time; all other messages are printed above it."""

import io
import logging
import shutil
import sys
import threading
import time
from typing import TextIO

from resnext_jax import streams

PLAIN_LINE_EVERY_S = 10.0
_lock = threading.RLock()
_live: "Progress | None" = None  # the progress whose line is the last one on the terminal


class Progress:
    """A line that is rewritten on a terminal; elsewhere a new line every ten seconds.

    Args:
      total: number of steps or images.
      unit: name of what is counted.
      start: number already done at the start.
      stream: output stream, by default the standard error; standard output is kept for results.
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0, stream: TextIO | io.StringIO | None = None):
        self._label, self.total, self._unit, self._start, self._stream = label, total, unit, start, stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._started_s = self._printed_s = time.monotonic()
        self._line = ""

    def update(self, done: int, text: str) -> None:
        """Shows `done` of the total, `text` and the estimated remaining time."""
        now_s = time.monotonic()
        if not self._is_terminal and now_s - self._printed_s < PLAIN_LINE_EVERY_S and done < self.total:
            return
        self._printed_s = now_s
        rate = (done - self._start) / max(now_s - self._started_s, 1e-9)
        eta = duration((self.total - done) / rate) if rate > 0 else "?"
        rest = f"ETA {eta}" if done < self.total else f"in {duration(now_s - self._started_s)}"
        line = f"{self._label}  {self._unit} {done:,}/{self.total:,}  {rest}  {text}"
        if not self._is_terminal:
            self._write(line + "\n")
            return
        global _live
        line = line[: shutil.get_terminal_size().columns - 1]
        with _lock:
            if _live and _live is not self:
                _live.close()
            self._write("\r" + line.ljust(len(self._line)))
            self._line, _live = line, self

    def close(self) -> None:
        """Ends the live line."""
        global _live
        with _lock:
            if self._line:
                self._write("\n")
                self._line, _live = "", None

    def _write(self, text: str) -> None:
        streams.write(self._stream, text)


class Silent:
    """Progress of a process that prints nothing."""

    def update(self, done: int, text: str) -> None: ...

    def close(self) -> None: ...


def say(text: str) -> None:
    """Prints a line on the standard error, above the live progress line if there is one."""
    with _lock:
        live = _live
        if live:
            live._write("\r" + " " * len(live._line) + "\r")
        streams.write(sys.stderr, text + "\n")
        if live:
            live._write(live._line)


def end_line() -> None:
    """Ends the live line of a phase that an error has ended."""
    with _lock:
        if _live:
            _live.close()


class AboveProgress(logging.Handler):
    """Prints each log record, from any thread, on a line of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {self.format(record)}")


def duration(seconds: float) -> str:
    """Return `h:mm:ss`, or `m:ss` below an hour, with days in front from one day on.

    >>> duration(65), duration(3725), duration(90061)
    ('1:05', '1:02:05', '1 d 1:01:01')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    return (f"{days} d " if days else "") + f"{hour}:{minute:02d}:{second:02d}"
