"""From the command line to a config: a wrong file, field or value is answered with what would be right."""

import functools
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnext_jax.errors import UserError, raise_all, unknown

MODEL_NUMBERS = ("model.family", "model.depth", "model.cardinality", "model.bottleneck_width")
FLAG = re.compile(r"--?([^=]*)(?:=(.*))?", re.DOTALL)  # name and value
OVERRIDE = re.compile(r"(?:no)?config\.")
SPECIAL = ("help", "helpfull", "helpshort", "helpxml", "?", "flagfile", "undefok")  # which absl knows by itself
NEVER_EMPTY = ("init_from", "data.dir", "data.class_list", "evaluate.class_map", "evaluate.real_labels")
# Types of fields that are None where they are not set: the config of a checkpoint has lost them. All others are texts.
OPTIONAL: dict[str, type] = {
    "num_steps": int,
    "target_threshold": float,
    "model.dropout": float,
    "data.train_size_px": int,
    "evaluate.every_steps": int,
    "checkpoint.keep_every_epochs": int,
    "checkpoint.keep_every_steps": int,
}


def _numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of `0.5,0.25` or `(1, 2)`; raise ValueError if one is not finite, or for an empty text."""
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    numbers = tuple(int(part) if part.lstrip("+-").isdecimal() else float(part) for part in parts if part)
    if not text.strip() or not all(map(math.isfinite, numbers)):
        raise ValueError(text)
    return numbers


# type of a config field -> what raises for a text of another type, and what is allowed
PARSERS = {
    bool: (flags.BooleanParser().parse, "true or false"),
    int: (flags.IntegerParser().parse, "a whole number"),
    float: (flags.FloatParser().parse, "a number"),
    tuple: (_numbers, "numbers that are finite: 0.5,0.25, or () for none"),
}
PARSERS[list] = PARSERS[tuple]  # a tuple that has been through JSON


def define_config(to: flags.FlagValues) -> None:
    """Adds `--config=FILE`, and with it an override for every field of the file."""
    about = "A file of configs/; fields by --config.field=value."
    config_flags.DEFINE_config_file("config", None, about, flag_values=to)
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
    paths = [_config_path(argv, index) for index, arg in enumerate(argv) if re.fullmatch(r"--?config(=.*)?", arg)]
    if len(paths) > 1:
        raise UserError(
            f"--config is given {len(paths)} times ({', '.join(paths)}): one file; fields by --config.FIELD=."
        )
    config = load(paths[0]) if paths else None
    argv = _with_values(argv, flag_values, config)
    given = [(match[1], match[2]) for arg in _flags_in(argv) if (match := FLAG.fullmatch(arg))]
    raise_all(_unknown_flags(given, flag_values, config))
    overrides = [(name.partition("config.")[2], value) for name, value in given if OVERRIDE.match(name)]
    mode = next((value for name, value in given[::-1] if name == "mode"), "train")
    if config is not None:
        raise_all(_field_problems(config, overrides))
        argv = [_readable(arg, config) for arg in argv]
    elif overrides and mode in ("evaluate", "recompute_bn"):
        argv = [re.sub(r"^--?noconfig\.(.*)$", r"--override=\1=false", arg) for arg in argv]
        argv = [re.sub(r"^--?config\.", "--override=", arg) for arg in argv]
    elif overrides and mode == "predict":
        raise UserError(f"--config.{overrides[0][0]}: predict takes all fields from the checkpoint. Leave it out.")
    elif overrides:
        raise UserError(f"--config.{overrides[0][0]} changes a field of a config: give --config=FILE as well.")
    try:
        return flag_values(argv)[1:]
    except SystemExit:  # after --help, which absl ends with 1
        sys.stdout.flush()
        sys.exit(0)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(f"{error}") from error


def names(flag_values: flags.FlagValues, config: ConfigDict | None) -> list[str]:
    """Return all flags with their dashes, those of the fields of a config too."""
    fields = [f"config.{field}" for field in field_names(config or ConfigDict())]
    return [f"--{name}" for name in (*flag_values, *fields)]


def _unknown_flags(
    given: Sequence[tuple[str, str | None]], flag_values: flags.FlagValues, config: ConfigDict | None
) -> list[str]:
    """Absl would stop at the first of these, and knows no fields."""
    flag_names = [name for name, _ in given if not OVERRIDE.match(name) and name not in SPECIAL]
    strange = [name for name in flag_names if name not in flag_values and name.removeprefix("no") not in flag_values]
    see = "All flags: --help. A field of the config is given as --config.FIELD=VALUE: configs/common.py has all."
    return [unknown("flag", f"--{name}", names(flag_values, config), see) for name in strange]


def _flags_in(argv: Sequence[str]) -> list[str]:
    """Return the flags of a command line; `--` ends them."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [arg for arg in argv[1:end] if arg.startswith("-") and arg != "-"]


def _with_values(argv: Sequence[str], flag_values: flags.FlagValues, config: ConfigDict | None) -> list[str]:
    """Return the command line with `--flag=value` for every `--flag value`.

    Raises:
      UserError: a flag that takes a value has none, or an empty one that it does not take.
    """
    joined, rest, problems = [*argv[:1]], [*argv[1:]], []
    while rest and rest[0] != "--":
        arg = rest.pop(0)
        name, field = arg.lstrip("-"), arg.partition("config.")[2]
        is_field = OVERRIDE.match(name) is not None
        if is_field and config is not None:
            takes = _kind(config, field) is not bool
        else:
            takes = is_field or (name in flag_values and not flag_values[name].boolean)
        if not (arg.startswith("-") and takes) or "=" in arg or name.startswith("noconfig."):
            joined.append(arg)
        elif rest and re.match(r"[^-]|-\.?\d|-?$", rest[0]):
            joined.append(f"{arg}={rest.pop(0)}")
        elif is_field and config is None:
            joined.append(arg)  # true, if it is true or false
        else:
            problems.append(f"{arg} wants a value: {arg}=VALUE.")
        if re.fullmatch("--?(workdir|mode)=", joined[-1]):
            problems.append(f"{joined[-1]} is empty: give a value, or leave it out. Is a variable of the shell unset?")
    raise_all(problems)
    return [*joined, *rest]


def _readable(arg: str, config: ConfigDict) -> str:
    """Return an override of numbers, of which `_type_problems` found none wrong, as ml_collections reads them."""
    name, _, value = arg.lstrip("-").partition("=")
    field = name.removeprefix("config.")
    return f"--{name}={_numbers(value)}" if OVERRIDE.match(name) and _kind(config, field) is tuple else arg


def _kind(config: ConfigDict, name: str) -> type | None:
    """Return the type of a field; None for a field that does not exist, or a text that may be unset."""
    *parents, leaf = name.split(".")
    try:
        parent = functools.reduce(getattr, parents, config)
        kind = parent.get_type(leaf)
    except (AttributeError, KeyError):
        return None
    return OPTIONAL.get(name) if kind is type(None) else kind


def override(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Changes fields of a config that came with a checkpoint, each given as `data.dir=PATH`.

    Raises:
      UserError: there is no such field, or the value has the wrong type.
    """
    pairs = [(text.partition("=")[0], text.partition("=")[2] if "=" in text else None) for text in overrides]
    raise_all(_type_problems(config, pairs))
    for name, value in pairs:
        *parents, leaf = name.split(".")
        parent = functools.reduce(getattr, parents, config)
        kind = _kind(config, name)
        with config.unlocked(), config.ignore_type():
            parent[leaf] = True if value is None else PARSERS[kind][0](value) if kind in PARSERS else value


def _config_path(argv: list[str], index: int) -> str:
    if "=" in argv[index]:
        return argv[index].split("=", 1)[1]
    if index + 1 < len(argv):
        return argv[index + 1]
    raise UserError("--config wants a file: --config=configs/quickstart.py")


def config_paths(directory: str | Path) -> list[str]:
    """The config files of a directory, sorted."""
    paths = Path(directory).glob("*.py")
    return sorted(str(path) for path in paths if path.stem != "__init__" and not path.stem.endswith("common"))


def load(path: str) -> ConfigDict:
    """The config of a file, before any override. An error inside it keeps its traceback: it is the user's code.

    Raises:
      UserError: there is no such file, or it is no config.
    """
    file = Path(path)
    if not file.is_file():
        known = config_paths(file.parent if file.parent != Path() and file.parent.is_dir() else "configs")
        example = next((name for name in known if name.endswith("quickstart.py")), known[0] if known else "")
        see = f"All of them: ls {os.path.dirname(known[0])}; one is {example}." if known else ""
        raise UserError(unknown("config file", path, known, see) if known else f"there is no config file {path}.")
    spec = importlib.util.spec_from_file_location("config", file)
    like = "a config is a file like configs/quickstart.py."
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: {like}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(): {like}")
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
            problems.append(unknown("config field", name, fields, "All fields: configs/common.py."))
            continue
        kind = _kind(config, name)
        if value is None and kind is not bool:
            problems.append(f"{name} wants a value: --config.{name}=VALUE.")
        if value == "" and name in NEVER_EMPTY:
            problems.append(f"{name} is empty: give a path, or leave it out. Is a variable of the shell unset?")
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
