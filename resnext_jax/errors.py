"""The exception for a user's mistake, and the sentences that it is made of.

Every message has three parts: what is wrong (with the value), what is allowed, and what to change. All problems of
one input are gathered first and raised together; `cli` prints them without a traceback and exits with status 2.
"""

import contextlib
import difflib
import os
import re
import select
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence

USER_ERROR_STATUS = 2
PREEMPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: saved; run the same command again
INTERRUPTED_STATUS = 130
READER_GONE_STATUS = 141  # as shells report a program that SIGPIPE ended
# Stands in a message for the command that was typed; `report_error` puts it in.
THIS_COMMAND = "python main.py --config=configs/NAME.py"


class UserError(Exception):
    """One or more problems that the user can fix; each is a complete instruction."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class Preempted(Exception):
    """The machine is taken back: all is saved, and the process ends with `PREEMPTED_STATUS`."""


def may_miss_a_process(error: BaseException | None) -> bool:
    """Return whether an error or its cause may be that of a collective or a barrier that misses a process."""
    while error is not None:
        if type(error).__name__ == "JaxRuntimeError" or "Gloo" in str(error):  # that comes as a ValueError too
            return True
        error = error.__cause__ or error.__context__
    return False


def raise_all(problems: Sequence[str]) -> None:
    """Raises one `UserError` with every problem of the list, and returns if there is none."""
    if problems:
        raise UserError(*problems)


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not in a table: the close matches first, then all that is allowed."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(str(name), allowed, n=3)
    hint = f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(allowed)}."


def report_error(error: UserError, argv: Sequence[str] = ()) -> int:
    """Prints the problems without a traceback, with the command that was typed, and returns the exit status."""
    text = "\n".join(error.problems)
    if argv:
        # Without what it is about to change: the data, and where a run that trains lies; other modes read that.
        trains = all(arg == "--mode=train" for arg in argv if arg.startswith("--mode="))
        changed = r"--(config\.data\.(name|dir)|workdir)=" if trains else r"--config\.data\.(name|dir)="
        kept = [arg for arg in argv if not re.match(changed, arg)]
        text = text.replace(THIS_COMMAND, f"python {shlex.join(kept)}")
    print_error(text)
    return USER_ERROR_STATUS


def print_error(text: str) -> None:
    """The form of all messages with which a run ends."""
    print("error: " + "\n       ".join(text.splitlines()), file=sys.stderr, flush=True)


@contextlib.contextmanager
def user_errors_reported() -> Iterator[None]:
    """Exit without a traceback: with status 2 for a user's mistake, with 141 when `| head` has closed the output."""
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        sys.exit(report_error(error))
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        sys.exit(READER_GONE_STATUS)


def reader_is_gone() -> bool:
    """Return whether a BrokenPipeError means that our output was closed (`| head`), and then discard the output.

    The error may also come from another connection.
    """
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python writes what is left at its end
    return True
