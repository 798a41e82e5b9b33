"""What the commands of this package share: flags, the way from the command line to the exit status, output."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from resnext_jax.analysis.chips import KNOWN
from resnext_jax.config import command_line
from resnext_jax.errors import UserError, user_errors_reported
from resnext_jax.ops import conv_choice
from resnext_jax.ops.grouped_conv import ALL_IMPLS

flags.disclaim_key_flags()  # --help shows them as flags of the command


def define_config(to: flags.FlagValues) -> None:
    """Add `--config` with its overrides; `main` then requires it."""
    command_line.define_config(to)
    flags.declare_key_flag("config", flag_values=to)


def define_conv_impls(to: flags.FlagValues, compare: str) -> None:
    """Add `--conv_impl` and `--compare`; the text `compare` describes the second."""
    for name, what in (("conv_impl", "Replaces the config's"), ("compare", compare)):
        flags.DEFINE_string(name, None, f"{what}: {', '.join(ALL_IMPLS)}.", flag_values=to)


def conv_impls(flag_values: flags.FlagValues) -> tuple[list[str], list[str]]:
    """Return the algorithms of `--conv_impl` (else the config's) and `--compare`, and what is wrong with them."""
    names = [flag_values.conv_impl or flag_values.config.conv_impl]
    names += [flag_values.compare] if flag_values.compare else []
    return names, [problem for name in names for problem in conv_choice.problems_of(name)]


def define_topology(to: flags.FlagValues, default: str) -> None:
    """Add `--topology`."""
    flags.DEFINE_string("topology", default, f"What to compile for: {', '.join(KNOWN)}, or similar.", flag_values=to)


def define_json(to: flags.FlagValues) -> None:
    """Add `--json`."""
    flags.DEFINE_bool("json", False, "Print the result as JSON, on the last line.", flag_values=to)


def main(
    define_flags: Callable[[flags.FlagValues], None],
    run: Callable[[flags.FlagValues, list[str]], bool | None],
    argv: Sequence[str] | None = None,
    *,
    takes_arguments: bool = False,
    uses_devices: bool = False,
) -> None:
    """Run a command; exit with 1 where it returns False, and with 2 and without a traceback for a mistake of the user.

    Args:
      define_flags: adds the command's flags.
      run: does what the parsed flags and the remaining arguments ask for.
      argv: command line, beginning with the name of the command; by default that of the process.
      takes_arguments: whether there may be arguments that are not flags.
      uses_devices: whether the accelerators of this machine are used; otherwise they are left alone.
    """
    app.define_help_flags()
    if not uses_devices:
        jax.config.update("jax_platforms", "cpu")
    with user_errors_reported():
        arguments = _parse(sys.argv if argv is None else argv, define_flags, takes_arguments=takes_arguments)
        succeeded = run(flags.FLAGS, arguments)
    if succeeded is False:
        sys.exit(1)


def _parse(
    argv: Sequence[str], define_flags: Callable[[flags.FlagValues], None], *, takes_arguments: bool
) -> list[str]:
    """Define the flags, parse a command line, and return the arguments that are not flags."""
    flag_values = flags.FLAGS
    define_flags(flag_values)
    try:
        has_config = "config" in flag_values
        arguments = command_line.parse(list(argv), flag_values) if has_config else flag_values(list(argv))[1:]
    except SystemExit:  # after --help, which absl ends with 1
        sys.stdout.flush()
        sys.exit(0)
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}; --help shows what the command takes.") from error
    if arguments and not takes_arguments:
        raise UserError(f"there are no arguments besides flags; remove {' '.join(arguments)!r}.")
    if has_config and flag_values.config is None:
        name = Path(argv[0]).stem
        raise UserError(f"give a config: python -m resnext_jax.analysis.{name} --config=configs/NAME.py")
    return arguments


def config_name(flag_values: flags.FlagValues) -> str:
    """Return the file that `--config` names."""
    config_flag: Any = flag_values["config"]
    return config_flag.config_filename


def print_json(flag_values: flags.FlagValues, result: Any) -> None:
    """Print the result as the last line, if `--json` is given."""
    if flag_values.json:
        print(json.dumps(result))
