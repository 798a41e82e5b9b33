"""From the command line to a config: a wrong file, field or value is answered with what would be right."""

import importlib.util
import re
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from resnext_jax.errors import UserError, raise_all, unknown


def parse(argv: list[str], flag_values: flags.FlagValues) -> list[str]:
    """Parses the command line into `flag_values` and returns the arguments that are no flags.

    Raises:
      UserError: the config file does not exist, an override names no field, or a value has the wrong type.
    """
    path = next((_value(argv, index) for index, arg in enumerate(argv) if re.fullmatch(r"--?config(=.*)?", arg)), None)
    if path is not None:
        overrides = [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([\w.]+)", arg))]
        raise_all(_field_problems(_load(path), overrides))
    try:
        return flag_values(argv)[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(f"{error}") from error


def _value(argv: list[str], index: int) -> str:
    if "=" in argv[index]:
        return argv[index].split("=", 1)[1]
    if index + 1 < len(argv):
        return argv[index + 1]
    raise UserError("--config wants a file: --config=configs/quickstart.py")


def _load(path: str) -> ConfigDict:
    """The config of a file, before any override. An error inside it keeps its traceback: it is the user's code."""
    file = Path(path)
    if not file.is_file():
        directory = file.parent if file.parent.is_dir() else Path("configs")
        known = [str(candidate) for candidate in directory.glob("*.py") if candidate.stem not in ("__init__", "common")]
        raise UserError(unknown("config file", path, known) if known else f"there is no config file {path}.")
    spec = importlib.util.spec_from_file_location("config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a config is a file like configs/quickstart.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(): a config is a file like configs/quickstart.py.")
    return module.get_config()


def _field_problems(config: ConfigDict, overrides: list[str]) -> list[str]:
    fields = field_names(config)
    return [unknown("config field", name, fields) for name in overrides if name not in fields]


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All fields that hold a value, as `model.name`."""
    names = []
    for key in config:
        value = config[key]
        names += field_names(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [f"{prefix}{key}"]
    return names
