"""What reading and writing share: paths, orbax handlers, and errors of orbax as instructions."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from resnext_jax.errors import UserError, may_miss_a_process
from resnext_jax.files import cannot_read, in_bucket
from resnext_jax.types import PyTree

DIRECTORY = "checkpoints"
CONFIG_FILE = "metadata"  # of the JSON item
PARTS = ("variables", "training", "config", "checksums.json")  # of a checkpoint


def absolute(path: str) -> epath.Path:
    """Return an absolute path, which orbax requires; gs:// paths are absolute already.

    Raises:
      UserError: orbax and tensorstore cannot store arrays under such a name.
    """
    whole = path if "://" in path else os.path.abspath(os.path.expanduser(path))
    # Tensorstore takes a backslash for a slash, and text alone; orbax looks for its own files with patterns.
    found = [character for character in "\\[" if character in whole]
    if found or re.search("[\ud800-\udfff]", whole):
        what = " and ".join(map(repr, found)) or "bytes that are not UTF-8"
        raise UserError(
            f"checkpoints cannot be stored under {whole!r}: its name has {what}. Take another name for the directory, "
            "--workdir=DIR for a run, or rename it."
        )
    return epath.Path(whole)


def finished_steps(directory: epath.Path) -> list[int]:
    """Return the steps of the complete checkpoints in a `checkpoints` directory, the newest first.

    Raises:
      UserError: the directory cannot be read.
    """
    try:
        if not directory.is_dir():
            return []
        names = [child.name for child in directory.iterdir() if child.name.isdecimal()]
        names = [
            name
            for name in names
            if name == str(int(name)) and any((directory / name / item).exists() for item in PARTS)
        ]
        # In a bucket an unfinished save has its final name, but lacks its commit file.
        steps = [int(name) for name in names if ocp.path.step.is_checkpoint_finalized(directory / name)]
    except PermissionError as error:
        raise cannot_read(directory, error) from error
    return sorted(steps, reverse=True)


def require_steps_as_names(directory: epath.Path, newest_only: bool = False) -> None:
    """Require that what is named by a number in a `checkpoints` directory is the checkpoint of that step.

    Orbax takes every such name for a step: it would go on at that step, and remove what is old.

    Args:
      newest_only: check only what a reader of the newest checkpoint would take.

    Raises:
      UserError: with every entry that is something else.
    """
    steps = finished_steps(directory)
    names = [child.name for child in directory.iterdir() if child.name.isdecimal()] if directory.is_dir() else []
    if newest_only:
        names = [name for name in names if int(name) >= max(steps, default=0)]
    problems = []
    for name in sorted(names, key=int):
        if name != str(int(name)):
            problems.append(f"  {name}: a step is written {int(name)}")
        elif not any((directory / name / item).exists() for item in PARTS):
            # In a bucket it is an unfinished save, and a save that is written or removed right now may be gone.
            problems += [f"  {name}: no checkpoint"] * (not in_bucket(directory) and (directory / name).exists())
        elif int(name) in steps and (step := saved_step(directory / name)) not in (None, int(name)):
            problems.append(f"  {name}: holds the checkpoint of step {step}")
    if problems:
        raise UserError(
            f"in {directory} every name that is a number must be the step of the checkpoint under it; nothing was "
            "changed:",
            *problems,
            "Move these out of that directory, or rename each one to its step.",
        )


def saved_step(checkpoint: epath.Path) -> int | None:
    """Return the step that is saved in a checkpoint; None if it cannot be read (`checksums.damage` says why)."""
    arguments = ocp.args.PyTreeRestore(
        {"step": 0}, restore_args={"step": ocp.RestoreArgs(restore_type=np.ndarray)}, partial_restore=True
    )
    process = jax.process_index()  # reads alone: orbax would otherwise wait for all processes
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process_{process}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    try:
        with reading(checkpoint), ocp.Checkpointer(handler, multiprocessing_options=alone) as opened:
            return int(opened.restore(checkpoint / "training", arguments)["step"])
    except UserError:
        return None


def handlers() -> dict[str, Any]:
    return {
        "variables": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(filename=CONFIG_FILE),
    }


def checkpointer() -> ocp.Checkpointer:
    # Also to read one item: orbax warns of every item in the directory that has no handler.
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers()))


def tree_of(metadata: Any) -> PyTree:
    """Return the shapes of an item, without the object that orbax wraps around them."""
    return getattr(metadata, "tree", metadata)


def reason(error: BaseException) -> str:
    """Return the first line of an error, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def damaged(checkpoint: epath.Path, what: str) -> UserError:
    """Return the error for a damaged checkpoint; it names the checkpoint before it."""
    name = checkpoint.name
    before = [step for step in finished_steps(checkpoint.parent) if name.isdigit() and step < int(name)]
    other = f" (the one before: {checkpoint.parent / str(before[0])})" if before else ""
    return UserError(
        f"the checkpoint {checkpoint} is damaged ({what}). Nothing was changed. Move it away to use the "
        f"one before, or give another one with --workdir{other}."
    )


@contextlib.contextmanager
def reading(checkpoint: epath.Path) -> Iterator[None]:
    """Turns errors of orbax and tensorstore about missing or broken files into a `UserError`."""
    try:
        yield
    except Exception as error:  # a broken file can raise almost anything in the reader
        if isinstance(error, UserError) or may_miss_a_process(error):
            raise
        if isinstance(error, PermissionError) or re.search("permission.denied", str(error), re.IGNORECASE):
            raise cannot_read(checkpoint, error) from error
        raise damaged(checkpoint, reason(error)) from error
