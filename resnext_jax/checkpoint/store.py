"""What reading and writing share: where checkpoints lie, their items, and what orbax raises put into words."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.types import PyTree

DIRECTORY = "checkpoints"


def absolute(path: str) -> epath.Path:
    """Orbax takes no relative paths; gs:// and its like are absolute already."""
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def finished_steps(directory: epath.Path) -> list[int]:
    """The steps of the complete checkpoints in a `checkpoints` directory, the newest first."""
    if not directory.is_dir():
        return []
    names = [child.name for child in directory.iterdir() if child.name.isdigit()]
    # On gs:// a save writes in place, and is complete when its last file is there.
    steps = [int(name) for name in names if ocp.path.step.is_checkpoint_finalized(directory / name)]
    return sorted(steps, reverse=True)


def handlers() -> dict[str, Any]:
    return {
        "variables": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
    }


def checkpointer() -> ocp.Checkpointer:
    # All items, also to read one: orbax warns of every item in the directory that it has no handler for.
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers()))


def tree_of(metadata: Any) -> PyTree:
    """The arrays' metadata without what orbax wraps around it."""
    return getattr(metadata, "tree", metadata)


def reason(error: BaseException) -> str:
    """The first line of an error, or its kind."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def damaged(checkpoint: epath.Path, what: str) -> UserError:
    """The instruction for a checkpoint that cannot be read as it was written."""
    name = checkpoint.name
    before = [step for step in finished_steps(checkpoint.parent) if name.isdigit() and step < int(name)]
    other = f" (the one before: {checkpoint.parent / str(before[0])})" if before else ""
    return UserError(
        f"the checkpoint {checkpoint} is damaged ({what}). Nothing was changed. Move it away to use the "
        f"one before, or give another one with --workdir{other}."
    )


@contextlib.contextmanager
def reading(checkpoint: epath.Path) -> Iterator[None]:
    """What orbax and tensorstore raise of a checkpoint with missing or broken files, as an instruction."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise damaged(checkpoint, reason(error)) from error
