"""One live progress line per phase, with the time that is left."""

import shutil
import sys
import time
from typing import TextIO

PLAIN_LINE_EVERY_S = 10.0


class Progress:
    """One line that is rewritten on a terminal, and otherwise a plain line every ten seconds.

    Args:
      label: of the phase.
      total: steps or images until done.
      unit: of `total`.
      start: those already done.
      stream: where to; the standard error, so that the standard output stays free for results.
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0, stream: TextIO = sys.stderr):
        self._label, self.total, self._unit, self._start, self._stream = label, total, unit, start, stream
        self._live = stream.isatty()
        self._started_s = self._printed_s = time.monotonic()
        self._width = 0

    def update(self, done: int, text: str) -> None:
        """Shows `done` of the total, `text` and the time that is left, going by the time since the start."""
        now_s = time.monotonic()
        if not self._live and now_s - self._printed_s < PLAIN_LINE_EVERY_S and done < self.total:
            return
        self._printed_s = now_s
        rate = (done - self._start) / max(now_s - self._started_s, 1e-9)
        eta = duration((self.total - done) / rate) if rate > 0 else "?"
        rest = f"ETA {eta}" if done < self.total else f"in {duration(now_s - self._started_s)}"
        line = f"{self._label}  {self._unit} {done:,}/{self.total:,}  {rest}  {text}"
        if self._live:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Ends the live line."""
        if self._live and self._width:
            self._stream.write("\n")
            self._width = 0


class Silent:
    """The progress of a process that does not speak."""

    def update(self, done: int, text: str) -> None: ...

    def close(self) -> None: ...


def duration(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour; with days in front where there are any.

    >>> duration(65), duration(3725), duration(90061)
    ('1:05', '1:02:05', '1 d 1:01:01')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    return (f"{days} d " if days else "") + f"{hour}:{minute:02d}:{second:02d}"
