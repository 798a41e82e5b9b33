"""The exception for a user's mistake, and the sentences that it is made of.

Every message has three parts: what is wrong (with the value), what is allowed, and what to change. All problems of
one input are gathered first and raised together; `cli` prints them without a traceback and exits with status 2.
"""

import contextlib
import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence

from resnext_jax import streams

USER_ERROR_STATUS = 2
PREEMPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: saved; run the same command again
INTERRUPTED_STATUS = 130
READER_GONE_STATUS = 141  # as shells report a program that SIGPIPE ended
MAX_LISTED = 24  # names in a message
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


def unknown(kind: str, name: object, allowed: Iterable[str], see: str = "") -> str:
    """Return the sentence for a name that is not in a table: close matches, and all names where they are few.

    Args:
      see: sentence that says where many names are listed.
    """
    allowed, last = sorted(allowed), str(name).rpartition(".")[2].lstrip("-")
    close = []
    if last and "/" not in str(name):  # `depth` stands for model.depth, but `.py` for no other file
        close = [match for match in allowed if match.rpartition(".")[2] == last][:3]
    close = close or difflib.get_close_matches(str(name), allowed, n=3)
    hint = f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    if len(allowed) <= MAX_LISTED:
        see = f"Known: {', '.join(allowed)}."
    return f"unknown {kind} {name!r}.{hint} {see or f'{len(allowed):,} are known, such as {allowed[0]!r}.'}"


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
    """Print a message with which a command ends, after its output."""
    streams.flush()
    with contextlib.suppress(BrokenPipeError):
        streams.write(sys.stderr, "error: " + "\n       ".join(text.splitlines()) + "\n")
    streams.flush()


def status_of(error: OSError) -> int | None:
    """Return the exit status for an output that cannot be written: 141 for `| head`, else 2; None for other errors."""
    if isinstance(error, BrokenPipeError):
        return READER_GONE_STATUS if streams.reader_is_gone() else None
    if not streams.output_is_lost(error):
        return None
    print_error(
        f"the output could not be written ({error.strerror}), and is not complete. Free disk space, or send it to "
        "another file."
    )
    return USER_ERROR_STATUS


@contextlib.contextmanager
def user_errors_reported() -> Iterator[None]:
    """Exit without a traceback: with 2 for a mistake of the user or a full disk, with 141 where `| head` has ended."""
    streams.open_streams()
    try:
        try:
            yield
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except UserError as error:
        sys.exit(report_error(error))
    except OSError as error:
        if (status := status_of(error)) is None:
            raise
        sys.exit(status)
