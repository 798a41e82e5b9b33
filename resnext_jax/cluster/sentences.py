"""What the processes of a run are told of one another."""

import time

from resnext_jax.errors import INTERRUPTED_STATUS, PREEMPTED_STATUS

RESTART = "Run all processes again: training resumes at the newest checkpoint."


def lost(name: str, step: int | None, reason: str) -> str:
    """The sentence for a process that is gone without a word."""
    at = "" if step is None else f" It was at step {step:,} or a little later."
    return f"{name} is lost: {reason}.{at} No process can go on without it. {RESTART}"


def broken(error: OSError) -> str:
    """The reason where a connection ends: at this very moment."""
    reason = "its connection closed" if isinstance(error, ConnectionResetError) else error.strerror or error
    return f"{reason} at {clock(time.time())}"


def silent(heard_s: float, heard_at: float) -> str:
    """The reason where nothing comes any more."""
    return f"nothing has been heard of it since {clock(heard_at)}, for {time.monotonic() - heard_s:.0f} s"


def parted(name: str, status: int) -> str:
    """The sentence for a process that has ended by itself before its time."""
    if status == PREEMPTED_STATUS:
        return f"{name} was preempted and has ended. {RESTART}"
    if status == INTERRUPTED_STATUS:
        return f"{name} was interrupted; training resumes at its newest checkpoint when all run again."
    return f"{name} stopped with an error of its own: see what it printed, and mend it there."


def clock(seconds: float) -> str:
    """The time of day in UTC: hosts need not agree on a time zone."""
    return time.strftime("%H:%M:%S UTC", time.gmtime(seconds))
