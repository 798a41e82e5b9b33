"""The standard streams, which may be closed, on a full disk, or unable to encode a path."""

import io
import os
import select
import sys
from typing import Any


def open_streams() -> None:
    """Open the closed ones at /dev/null, and escape what they cannot encode. Call it first in a command.

    Otherwise the next file that is opened gets the number of a closed stream, and all messages.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)  # a library may have it already
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(stream: Any, text: str) -> None:
    """Write and flush a message. A full disk stops nothing: there is no place to say so.

    Raises:
      BrokenPipeError: the reader has ended.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError:
        discard(stream)


def flush() -> None:
    """Flush the output before an exit whose status is decided; what cannot be written is discarded."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)


def discard(stream: Any) -> None:
    """Throw away what a stream still has and gets, which Python would write at its end, and exit with 120."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def reader_is_gone() -> bool:
    """Return whether a BrokenPipeError means that our output was closed (`| head`), and then discard the output.

    The error may also come from another connection.
    """
    gone = []
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        gone += [stream] * any(event & select.POLLERR for _, event in poll.poll(0))
    for stream in gone:
        discard(stream)
    return bool(gone)


def output_is_lost(error: OSError) -> bool:
    """Return whether an error is that of the standard output, on a full disk for example; then discard the output."""
    try:
        sys.stdout.flush()  # what could not be written is still there, unless nothing is buffered
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as again:
        discard(sys.stdout)
        return again.errno == error.errno
    return False
