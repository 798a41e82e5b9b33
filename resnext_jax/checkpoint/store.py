"""What reading and writing share: paths, orbax handlers, and errors of orbax as instructions."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from resnext_jax.errors import UserError, may_miss_a_process
from resnext_jax.types import PyTree

DIRECTORY = "checkpoints"
CONFIG_FILE = "metadata"  # of the JSON item


def absolute(path: str) -> epath.Path:
    """Return an absolute path, which orbax requires; gs:// paths are absolute already."""
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def finished_steps(directory: epath.Path) -> list[int]:
    """Return the steps of the complete checkpoints in a `checkpoints` directory, the newest first."""
    if not directory.is_dir():
        return []
    names = [child.name for child in directory.iterdir() if child.name.isdigit()]
    # In a bucket an unfinished save has its final name, but lacks its commit file.
    steps = [int(name) for name in names if ocp.path.step.is_checkpoint_finalized(directory / name)]
    return sorted(steps, reverse=True)


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
        raise damaged(checkpoint, reason(error)) from error
