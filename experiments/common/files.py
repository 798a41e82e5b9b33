"""A results folder: which experiment it belongs to, who writes it now, and what every experiment writes into it."""

import contextlib
import fcntl
import io
import json
import os
import re
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from experiments.common.study import ROOT
from resnext_jax.errors import UserError, unknown
from resnext_jax.files import cannot_write, in_bucket, write_whole
from resnext_jax.json_files import parse_json

MARK = "experiment.json"


def folder_of(arguments: Namespace, experiment: str, scales: Collection[str]) -> str:
    """Return the results folder that the flags name, by default one in runs/ of the repository."""
    if arguments.scale not in scales:
        raise UserError(unknown("scale", arguments.scale, scales))
    return absolute(arguments.out) if arguments.out else str(ROOT / "runs" / f"{experiment}_{arguments.scale}")


def absolute(path: str) -> str:
    """Return a path as it is meant where the command was typed; the runs are started in the repository."""
    return path if in_bucket(path) else str(Path(os.path.expanduser(path)).absolute())


def claim_folder(out: str, experiment: str, scale: str, runs: Collection[str] = ()) -> Path:
    """Make the results folder and return the folder for logs, which is on this machine where `out` is in a bucket.

    A folder with only runs of rows with the slugs `runs` is claimed, too: the commands for a pod make only those.

    Raises:
      UserError: it belongs to another experiment, or cannot be used.
    """
    root, ours = epath.Path(out), {"experiment": experiment, "scale": scale}
    mark, problem = root / MARK, ""
    try:
        if mark.exists():
            theirs = parse_json(mark.read_bytes(), {"experiment": str, "scale": str})
            if theirs != ours:
                described = " --scale=".join(theirs[key] for key in ours)
                problem = f"{out} has the results of {described}, not of {experiment} --scale={scale}."
        else:
            names = (
                {re.sub(r"_seed\d+(\.log)?$", "", child.name) for child in root.iterdir()} if root.exists() else set()
            )
            if names <= set(runs):
                root.mkdir(parents=True, exist_ok=True)
                write_whole(mark, json.dumps(ours) + "\n")
            else:
                problem = f"{out} has files in it, and is no results folder ({MARK} is missing)."
    except ImportError as error:
        raise UserError(f"{out} is in a bucket, which gcsfs reads and writes: pip install gcsfs.") from error
    except (NotADirectoryError, FileExistsError):
        problem = f"{out} is no folder."
    except ValueError as error:
        problem = f"{mark} cannot be read ({error})."
    except OSError as error:
        raise cannot_write(mark, error) from error
    if problem:
        raise UserError(
            f"{problem} Give this one a folder of its own with --out=DIR (default runs/{experiment}_{scale})."
        )
    return ROOT / "runs" / f"{experiment}_{scale}" if in_bucket(out) else Path(out)


@contextlib.contextmanager
def locked(folder: Path, numbers: Iterable[int] = (0,)) -> Iterator[None]:
    """Lock runs of a results folder until this process ends; raise UserError where another process makes one of them.

    A run locks the byte of its number, so that another process can make other runs at the same time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("a") as file:
        try:
            for number in numbers:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError as error:
            where = f"this experiment is already running in {folder} (run.lock there is locked)"
            raise UserError(f"{where}. Wait for it or end it, or give this one another --out=DIR.") from error
        except OSError:
            pass  # a file system without locks; every run still locks its own workdir
        yield


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, its columns aligned; the first line is the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    texts = [" | ".join(map(str.ljust, line, widths)) for line in lines]
    return "\n".join(f"| {text} |" for text in texts)


def write(out: str, table: str, result: Any, draw: Callable[[Any], None] | None) -> None:
    """Write and print `table.md`, write `results.json` and, by `draw` of a matplotlib figure, `figure.png`."""
    contents: dict[str, bytes | str] = {"table.md": table, "results.json": json.dumps(result, indent=1) + "\n"}
    if draw is not None:
        from matplotlib.figure import Figure  # here: what only prints commands needs no font cache

        figure, picture = Figure(dpi=150, layout="constrained"), io.BytesIO()
        draw(figure)
        figure.savefig(picture, format="png")
        contents["figure.png"] = picture.getvalue()
    for name, content in contents.items():
        write_whole(epath.Path(out) / name, content)
    print("\n".join([table, *(str(epath.Path(out) / name) for name in contents)]))
