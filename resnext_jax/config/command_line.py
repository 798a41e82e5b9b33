"""From the command line to a config: a wrong file, field or value is answered with what would be right."""

import functools
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnext_jax.errors import UserError, raise_all, unknown

MODEL_NUMBERS = ("model.family", "model.depth", "model.cardinality", "model.bottleneck_width")
# type of a config field -> what raises for a text of another type, and what is allowed
PARSERS = {
    bool: (flags.BooleanParser().parse, "true or false"),
    int: (flags.IntegerParser().parse, "a whole number"),
    float: (flags.FloatParser().parse, "a number"),
    tuple: (lambda text: [float(part) for part in text.strip("()[], ").split(",") if part], "numbers: 0.5,0.25"),
}
PARSERS[list] = PARSERS[tuple]  # a tuple that has been through JSON


def define_config(to: flags.FlagValues) -> None:
    """Adds `--config=FILE`, and with it an override for every field of the file."""
    config_flags.DEFINE_config_file(
        "config", None, "A file of configs/; fields by --config.field=value.", flag_values=to
    )
    flags.DEFINE_multi_string(
        "override",
        [],
        "FIELD=VALUE of the config that a checkpoint brings; `parse` makes it of --config.FIELD=VALUE.",
        flag_values=to,
    )


def parse(argv: list[str], flag_values: flags.FlagValues) -> list[str]:
    """Parses the command line into `flag_values` and returns the arguments that are no flags.

    Raises:
      UserError: the config file does not exist, an override names no field, or a value has the wrong type.
    """
    paths = [_value(argv, index) for index, arg in enumerate(argv) if re.fullmatch(r"--?config(=.*)?", arg)]
    if len(paths) > 1:
        raise UserError(
            f"--config is given {len(paths)} times ({', '.join(paths)}): one file; fields by --config.FIELD=."
        )
    path = paths[0] if paths else None
    matches = [re.fullmatch(r"--?(?:no)?config\.([\w.]+)(?:=(.*))?", arg, re.DOTALL) for arg in argv]
    overrides = [(match[1], match[2]) for match in matches if match]
    if path is not None:
        raise_all(_field_problems(load(path), overrides))
    elif overrides and any(re.fullmatch("--?mode=(evaluate|recompute_bn)", arg) for arg in argv):
        argv = [re.sub(r"^--?config\.", "--override=", arg) for arg in argv]
    elif overrides:
        raise UserError(f"--config.{overrides[0][0]} changes a field of a config: give --config=FILE as well.")
    try:
        return flag_values(argv)[1:]
    except SystemExit:  # after --help, which absl ends with 1
        sys.stdout.flush()
        sys.exit(0)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(f"{error}") from error


def override(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Changes fields of a config that came with a checkpoint, each given as `data.dir=PATH`.

    Raises:
      UserError: there is no such field, or the value has the wrong type.
    """
    pairs = [(text.partition("=")[0], text.partition("=")[2]) for text in overrides]
    problems = _type_problems(config, pairs)
    raise_all(problems)
    for name, value in pairs:
        *parents, leaf = name.split(".")
        parent = functools.reduce(getattr, parents, config)
        kind = type(parent[leaf])
        parent[leaf] = PARSERS[kind][0](value) if kind in PARSERS else value


def _value(argv: list[str], index: int) -> str:
    if "=" in argv[index]:
        return argv[index].split("=", 1)[1]
    if index + 1 < len(argv):
        return argv[index + 1]
    raise UserError("--config wants a file: --config=configs/quickstart.py")


def config_paths(directory: str | Path) -> list[str]:
    """The config files of a directory, sorted."""
    paths = Path(directory).glob("*.py")
    return sorted(str(path) for path in paths if path.stem not in ("__init__", "common"))


def load(path: str) -> ConfigDict:
    """The config of a file, before any override. An error inside it keeps its traceback: it is the user's code.

    Raises:
      UserError: there is no such file, or it is no config.
    """
    file = Path(path)
    if not file.is_file():
        known = config_paths(file.parent if file.parent != Path() and file.parent.is_dir() else "configs")
        raise UserError(unknown("config file", path, known) if known else f"there is no config file {path}.")
    spec = importlib.util.spec_from_file_location("config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a config is a file like configs/quickstart.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(): a config is a file like configs/quickstart.py.")
    return module.get_config()


def _field_problems(config: ConfigDict, overrides: list[tuple[str, str | None]]) -> list[str]:
    """Absl would stop at the first of these."""
    problems = _type_problems(config, overrides)
    given = dict(overrides)
    row = given.get("model.name", config.model.name)
    ignored = [name for name in given if name in MODEL_NUMBERS]
    if row and ignored:
        problems.append(
            f"{', '.join(ignored)}: without effect, since model.name={row!r} names a row of the zoo. "
            "Add --config.model.name= (empty) to build the network by its numbers."
        )
    return problems


def _type_problems(config: ConfigDict, overrides: Sequence[tuple[str, str | None]]) -> list[str]:
    """One sentence for every field that does not exist, or is given a value of another type."""
    fields, problems = field_names(config), []
    for name, value in overrides:
        if name not in fields:
            problems.append(unknown("config field", name, fields))
            continue
        *parents, leaf = name.split(".")
        kind = functools.reduce(getattr, parents, config).get_type(leaf)
        if value is None or kind not in PARSERS:
            continue
        parse, words = PARSERS[kind]
        try:
            parse(value)
        except (ValueError, TypeError):
            problems.append(f"{name}={value!r} must be {words}.")
    return problems


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All fields that hold a value, as `model.name`."""
    names = []
    for key in config:
        value = config[key]
        names += field_names(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [f"{prefix}{key}"]
    return names
