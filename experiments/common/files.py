"""A results folder: whose it is, and what every experiment writes into it."""

import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from experiments.common.study import ROOT
from resnext_jax.errors import UserError
from resnext_jax.files import cannot_write, in_bucket, write_whole

MARK = "experiment.json"


def folder_of(out: str | None, experiment: str, scale: str) -> str:
    """The results folder: the one given, or in runs/ of the repository."""
    return absolute(out) if out else str(ROOT / "runs" / f"{experiment}_{scale}")


def absolute(path: str) -> str:
    """A path as it is meant where the command was typed; the runs are started in the repository."""
    return path if in_bucket(path) else str(Path(path).expanduser().absolute())


def claim_folder(out: str, experiment: str, scale: str, runs: Collection[str] = ()) -> None:
    """Makes the results folder, or finds that it is one of this experiment and scale.

    Args:
      out: the folder.
      experiment, scale: whose it is to be.
      runs: names of the workdirs of its rows, without `_seed<k>`. A folder of nothing else is claimed, too: the printed
        commands for a pod make the workdirs alone.

    Raises:
      UserError: it belongs to another, holds something else, or cannot be written.
    """
    mark, ours = epath.Path(out) / MARK, {"experiment": experiment, "scale": scale}
    elsewhere = f"Give this one a folder of its own with --out=DIR (default runs/{experiment}_{scale})."
    try:
        if mark.exists():
            theirs = json.loads(mark.read_text())
            if theirs != ours:
                if not isinstance(theirs, dict):
                    raise ValueError("it is no JSON object")
                described = " --scale=".join(str(theirs.get(key)) for key in ours)
                raise UserError(
                    f"{out} has the results of {described}, not of {experiment} --scale={scale}. {elsewhere}"
                )
            return
        inside = [child.name for child in epath.Path(out).iterdir()] if epath.Path(out).exists() else []
        if not all(_run_of(name) in runs for name in inside):
            raise UserError(f"{out} has files in it, and is no results folder ({MARK} is missing). {elsewhere}")
        epath.Path(out).mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        raise UserError(f"{out} is in a bucket, which gcsfs reads and writes: pip install gcsfs.") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{out} is no folder. {elsewhere}") from error
    except ValueError as error:
        raise UserError(f"{mark} cannot be read ({error}). {elsewhere}") from error
    except OSError as error:
        raise cannot_write(mark, error) from error
    write_whole(mark, json.dumps(ours) + "\n")


def _run_of(name: str) -> str:
    """The row of a workdir, or of a log beside one: `1x64d_seed3.log` is of `1x64d`."""
    return re.sub(r"_seed\d+(\.log)?$", "", name)


def logs_of(out: str, experiment: str, scale: str) -> Path:
    """Where what processes print is kept: a bucket holds runs and results, their logs stay on this machine."""
    return ROOT / "runs" / f"{experiment}_{scale}" if in_bucket(out) else Path(out)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned; the first line is the head."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    texts = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {text} |" for text in (texts[0], rule, *texts[1:]))


def write(out: str, table: str, result: Any, draw: Callable[[Any], None] | None) -> list[epath.Path]:
    """`table.md`, `results.json`, and `figure.png` by `draw` of a matplotlib figure; returns where they are."""
    root = epath.Path(out)
    files = [root / "table.md", root / "results.json"]
    write_whole(files[0], table)
    write_whole(files[1], json.dumps(result, indent=1) + "\n")
    if draw is not None:
        # Imported here: what only prints commands needs no font cache.
        import matplotlib.figure

        figure, picture = matplotlib.figure.Figure(dpi=150, layout="constrained"), io.BytesIO()
        draw(figure)
        figure.savefig(picture, format="png")
        files.append(root / "figure.png")
        write_whole(files[-1], picture.getvalue())
    return files
