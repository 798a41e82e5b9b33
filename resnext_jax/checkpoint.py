"""Checkpoints: asynchronous, atomic, strict. The only home of orbax.

A checkpoint `DIR/STEP/` holds three items: `variables` (params and batch_stats: all that a model needs to predict; and
their averages, `ema`, where the run keeps any),
`training` (step and optimizer state) and `config` (JSON: the resolved config and the class names). Orbax writes into a
temporary directory and renames it when all is there, so a save that did not finish is never seen.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from jax.sharding import Sharding

from resnext_jax.errors import UserError
from resnext_jax.types import PyTree, TrainState

DIRECTORY = "checkpoints"
MAX_NAMED_ARRAYS = 8


class Checkpoints:
    """The checkpoints of one run: the newest few and the best few are kept.

    Args:
      workdir: they lie in `workdir/checkpoints`.
      keep_newest: how many of the newest to keep.
      keep_best: how many of those with the best validation top-1 to keep besides.
      top1: of the evaluations made so far, by step. Add to it what is evaluated after a save.
    """

    def __init__(self, workdir: str, *, keep_newest: int, keep_best: int, top1: Mapping[int, float] | None = None):
        self.top1 = dict(top1 or {})
        self._keep_newest, self._keep_best = keep_newest, keep_best
        options = ocp.CheckpointManagerOptions(preservation_policy=self, cleanup_tmp_directories=True)
        self.directory = _absolute(workdir) / DIRECTORY
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=_handlers())

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of these to keep; orbax asks after every save, and removes the others."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        by_top1 = sorted((self.top1[step], step) for step in steps if step in self.top1)[::-1]
        kept = {*steps[-self._keep_newest :], *(step for _, step in by_top1[: self._keep_best])}
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def save(
        self,
        state: TrainState,
        description: dict[str, Any],
        evaluation: Mapping[str, float] | None,
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Copies the state to the host and writes it in the background; waits for the write before this one.

        Args:
          state: any later donation of its buffers is safe.
          description: the JSON item: `config` and `dataset`.
          evaluation: at this very step (`top1` ranks the best); None where there was none.
          progress: of the run between two rows of its metrics, as plain numbers, texts, lists and dicts.
        """
        step = int(state.step)
        if evaluation is not None:
            self.top1[step] = evaluation["top1"]
        description = description if progress is None else {**description, "progress": progress}
        arrays = {item: ocp.args.StandardSave(tree) for item, tree in _items(state).items()}
        items = ocp.args.Composite(**arrays, config=ocp.args.JsonSave(description))
        self._manager.save(step, args=items, force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, every array where `like` (shapes with shardings) wants it.

        Raises:
          UserError: an array is missing, extra or misshapen (`require_same_arrays`); nothing is changed.
        """
        wanted = _items(like)
        with _damage(self.directory / str(step)):
            saved = self._manager.item_metadata(step)
        require_same_arrays(
            self.directory / str(step),
            wanted["variables"] | wanted["training"],
            _tree(saved["variables"]) | _tree(saved["training"]),
            "Train into another directory (--workdir=DIR), or go back to the config of that checkpoint "
            f"({self.directory.parent / 'config.json'}).",
        )
        items = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()})
        with _damage(self.directory / str(step)):
            restored = self._manager.restore(step, args=items)
        state: Any = serialization.from_state_dict(like, {"ema": None, **restored["variables"], **restored["training"]})
        return state

    def wait(self) -> None:
        """Returns when every save is on disk."""
        self._manager.wait_until_finished()

    def description(self, step: int) -> dict[str, Any]:
        """The JSON item at `step`."""
        return read_description(self.directory / str(step))

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()


def locate(path: str) -> epath.Path:
    """The directory of one checkpoint, given it, or a `checkpoints` directory or a workdir (then the newest).

    Raises:
      UserError: there is no complete checkpoint.
    """
    root = _absolute(path)
    try:
        root.exists()
    except ImportError as error:
        raise UserError(f"{path} cannot be read here: {error}. Copy the checkpoint to a local directory.") from error
    if (root / "variables").exists() and ocp.path.step.is_checkpoint_finalized(root):
        return root
    for directory in (root, root / DIRECTORY):
        if directory.is_dir():
            names = [child.name for child in directory.iterdir() if child.name.isdigit()]
            # On gs:// a save writes in place, and is complete when its last file is there.
            steps = [int(name) for name in names if ocp.path.step.is_checkpoint_finalized(directory / name)]
            if steps:
                return directory / str(max(steps))
    raise UserError(
        f"no checkpoint in {path}: looked for {root / 'variables'}, {root}/STEP and {root / DIRECTORY}/STEP. "
        "Give the workdir of a run, its checkpoints directory, or one checkpoint in it; or train first: "
        "python main.py --config=configs/quickstart.py"
    )


def read_description(checkpoint: epath.Path) -> dict[str, Any]:
    """The JSON item of one checkpoint (see `locate`): the resolved `config` and the `dataset`."""
    with _damage(checkpoint), _checkpointer() as checkpointer:
        return checkpointer.restore(checkpoint, ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]


def read_variables(checkpoint: epath.Path, sharding: Sharding, *, raw: bool = False) -> PyTree:
    """`params` and `batch_stats` of one checkpoint (see `locate`), without the optimizer, placed by `sharding`.

    Averaged ones, where the checkpoint has any, unless `raw`.
    """
    with _damage(checkpoint), _checkpointer() as checkpointer:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            _tree(checkpointer.metadata(checkpoint).item_metadata["variables"]),
        )
        items = ocp.args.Composite(variables=ocp.args.StandardRestore(shapes))
        variables = checkpointer.restore(checkpoint, items)["variables"]
        averaged = variables.pop("ema", None)
        return variables if raw or averaged is None else averaged


def _items(state: TrainState) -> dict[str, PyTree]:
    """The arrays of each item of a checkpoint."""
    tree = serialization.to_state_dict(state)
    averages = {} if tree["ema"] is None else {"ema": tree["ema"]}
    return {
        "variables": {"params": tree["params"], "batch_stats": tree["batch_stats"], **averages},
        "training": {"step": tree["step"], "opt_state": tree["opt_state"]},
    }


def _absolute(path: str) -> epath.Path:
    """Orbax takes no relative paths; gs:// and its like are absolute already."""
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


@contextlib.contextmanager
def _damage(checkpoint: epath.Path) -> Iterator[None]:
    """What orbax and tensorstore raise of a checkpoint with missing or broken files, as an instruction."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the checkpoint {checkpoint} is damaged ({reason[:200]}). Nothing was changed. Move it away to use the "
            "one before, or give another one with --workdir."
        ) from error


def _handlers() -> dict[str, Any]:
    return {
        "variables": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
    }


def _checkpointer() -> ocp.Checkpointer:
    # All items, also to read one: orbax warns of every item in the directory that it has no handler for.
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers()))


def _tree(metadata: Any) -> PyTree:
    """The arrays' metadata without what orbax wraps around it."""
    return getattr(metadata, "tree", metadata)


def require_same_arrays(checkpoint: epath.Path, wanted: PyTree, saved: PyTree, advice: str) -> None:
    """Checks that a checkpoint has the arrays of a model.

    Args:
      checkpoint: for the message.
      wanted: the model's arrays or their shapes.
      saved: those of the checkpoint.
      advice: what to do where they differ.

    Raises:
      UserError: they differ; the first few arrays are named with both shapes, the others counted.
    """
    problems = mismatches(wanted, saved)
    if problems:
        more = len(problems) - MAX_NAMED_ARRAYS
        raise UserError(
            f"the checkpoint {checkpoint} belongs to another model; nothing was changed:",
            *(f"  {problem}" for problem in problems[:MAX_NAMED_ARRAYS]),
            *([f"  ... and {more} more arrays"] if more > 0 else []),
            advice,
        )


def mismatches(wanted: PyTree, saved: PyTree) -> list[str]:
    """One line for every array that is missing from `saved`, extra in it, or of another shape or dtype."""

    def flat(tree: PyTree) -> dict[str, Any]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

    def form(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name}{tuple(leaf.shape)}"

    wanted, saved = flat(wanted), flat(saved)
    lines = [
        f"{name}: this model wants {form(wanted[name])}, the checkpoint lacks it" for name in wanted.keys() - saved
    ]
    lines += [
        f"{name}: the checkpoint has {form(saved[name])}, this model has no such array"
        for name in saved.keys() - wanted
    ]
    lines += [
        f"{name}: this model wants {form(wanted[name])}, the checkpoint has {form(saved[name])}"
        for name in wanted.keys() & saved.keys()
        if form(wanted[name]) != form(saved[name])
    ]
    # Parameters first: they tell more than the statistics that go with them.
    return sorted(lines, key=lambda line: (not line.startswith("params"), line))
