"""What the commands of this room share: flags, the answer to a mistake, pictures, the JSON object on the last line."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from resnext_jax.analysis.chips import KNOWN
from resnext_jax.config import command_line
from resnext_jax.errors import READER_GONE_STATUS, UserError, raise_all, reader_is_gone, report_error
from resnext_jax.ops import conv_choice
from resnext_jax.ops.grouped_conv import ALL_IMPLS

flags.disclaim_key_flags()  # --help shows them as flags of the command

# ------------------------------------------------------------------------------------------------------------ Flags


def define_config(to: flags.FlagValues) -> None:
    """Adds `--config` with its overrides."""
    command_line.define_config(to)
    flags.declare_key_flag("config", flag_values=to)


def define_conv_impl(to: flags.FlagValues, name: str, what: str) -> None:
    """Adds `--name=ALGORITHM`; `what` describes it."""
    flags.DEFINE_string(name, None, f"{what}: {', '.join(ALL_IMPLS)}.", flag_values=to)


def conv_impl_problems(names: Sequence[str]) -> list[str]:
    """One sentence for every name that is no algorithm."""
    return [problem for name in names for problem in conv_choice.problems_of(name)]


def define_topology(to: flags.FlagValues, default: str) -> None:
    """Adds `--topology`."""
    flags.DEFINE_string("topology", default, f"What to compile for: {', '.join(KNOWN)}, or alike.", flag_values=to)


def define_json(to: flags.FlagValues) -> None:
    """Adds `--json`."""
    flags.DEFINE_bool("json", False, "Print the result as JSON, on the last line.", flag_values=to)


# ---------------------------------------------------------------------------------------------- From start to end


def parse(argv: Sequence[str], flag_values: flags.FlagValues) -> flags.FlagValues:
    """Parses a command line that has nothing but flags.

    Raises:
      UserError: an argument, or what `parse_arguments` refuses.
    """
    arguments = parse_arguments(argv, flag_values)
    raise_all([f"there are no arguments besides flags; remove {' '.join(arguments)!r}."] if arguments else [])
    return flag_values


def parse_arguments(argv: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
    """Parses a command line into `flag_values` and returns the arguments that are no flags.

    Raises:
      UserError: an unknown flag, a value that it cannot have, or what `command_line.parse` refuses.
    """
    if "config" in flag_values:
        return command_line.parse(list(argv), flag_values)
    try:
        return flag_values(list(argv))[1:]
    except SystemExit:  # after --help, which absl ends with 1
        sys.stdout.flush()
        sys.exit(0)
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}; --help shows what the command takes.") from error


def config_name(flag_values: flags.FlagValues) -> str:
    """The file that `--config` names."""
    config_flag: Any = flag_values["config"]
    return config_flag.config_filename


@contextlib.contextmanager
def mistakes_reported() -> Iterator[None]:
    """Exits with status 2 for a mistake that the user can mend, and without a traceback, as when `| head` has ended."""
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        sys.exit(report_error(error))
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        sys.exit(READER_GONE_STATUS)


def save_picture(figure: Any, out: str, **others: Any) -> None:
    """Writes a matplotlib figure into the file `out` and prints its name; `others` are further arguments of `savefig`.

    Raises:
      UserError: the file cannot be written, or its name ends with no kind of picture.
    """
    try:
        figure.savefig(out, **others)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out={out} cannot be written ({str(error).strip()}): give a file like cycles.png in a folder."
        ) from error
    print(out)


def print_json(flag_values: flags.FlagValues, result: Any) -> None:
    """The last line of the command, where `--json` asks for it."""
    if flag_values.json:
        print(json.dumps(result))
