"""The checkpoints of one run: find the newest sound one, restore it strictly, write new ones and remove old ones."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from flax import serialization

from resnext_jax.checkpoint.arrays import require_same_arrays
from resnext_jax.checkpoint.checksums import damage, files_below, write_checksums
from resnext_jax.checkpoint.read import read_description
from resnext_jax.checkpoint.store import (
    DIRECTORY,
    absolute,
    finished_steps,
    handlers,
    reading,
    reason,
    require_steps_as_names,
    tree_of,
)
from resnext_jax.errors import UserError, may_miss_a_process
from resnext_jax.files import cannot_write, in_bucket
from resnext_jax.types import PyTree, TrainState

# Not inside `checkpoints`: orbax removes what it finds there in a bucket without its commit file.
DAMAGED_DIRECTORY = "damaged_checkpoints"
DISK_ERRORS = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "File too large",
)


def newest_sound(workdir: str, warn: Callable[[str], None]) -> int | None:
    """Return the step of the newest undamaged checkpoint, or None if there is no checkpoint.

    Newer, damaged ones are named and moved to `workdir/damaged_checkpoints`; the run repeats their steps. Only the
    first process calls this, before `Checkpoints` is opened.

    Raises:
      UserError: all checkpoints are damaged, or something else has a number as its name; nothing is moved.
    """
    directory = absolute(workdir) / DIRECTORY
    require_steps_as_names(directory)
    found = {}
    for step in finished_steps(directory):
        what = damage(directory / str(step))
        if what is None:
            break
        found[step] = what
    else:
        if found:
            raise UserError(
                f"no checkpoint in {directory} is sound; nothing was changed:",
                *(f"  {step}: {what}" for step, what in found.items()),
                f"Copy a sound one there, or move {directory} away to start anew, or take another --workdir.",
            )
        return None
    for damaged_step, what in found.items():
        place = _set_aside(directory / str(damaged_step), absolute(workdir) / DAMAGED_DIRECTORY)
        warn(
            f"warning: the checkpoint {directory / str(damaged_step)} is damaged ({what}); it was moved to {place}, "
            f"and that of step {step} is used"
        )
    return step


class Checkpoints:
    """Writes and restores the checkpoints in `workdir/checkpoints`, and removes those that are not to be kept.

    Args:
      keep_newest: number of newest checkpoints to keep.
      keep_best: number of checkpoints with the highest scores to keep in addition.
      keep_permanently: whether the checkpoint of a step is never removed.
      scores: validation scores by step. Add the score of a step when it is known, also after the save.

    Raises:
      UserError: the directory cannot be written.
    """

    def __init__(
        self,
        workdir: str,
        *,
        keep_newest: int,
        keep_best: int,
        keep_permanently: Callable[[int], bool] = lambda step: False,
        scores: Mapping[int, float] | None = None,
    ):
        self.directory = absolute(workdir) / DIRECTORY
        self.scores = dict(scores or {})
        self._keep_newest, self._keep_best, self._keep_permanently = keep_newest, keep_best, keep_permanently
        self._saving_step, self._failed = 0, False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # the policy needs only steps
            # Called after all items are written and before the checkpoint gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        with self._writing():
            self._require_writable()
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers())

    def save(self, state: TrainState, description: dict[str, Any], progress: dict[str, Any] | None = None) -> None:
        """Waits for the previous save, copies the state to the host and writes it in the background.

        Args:
          state: training state; its buffers may be donated after this call.
          description: JSON item with `config` and `dataset`.
          progress: sums since the last row of metrics; JSON values, returned as `description(step)["progress"]`.

        Raises:
          UserError: this checkpoint or the previous one could not be written. Existing ones are untouched.
        """
        self.wait()
        step = self._saving_step = int(state.step)
        arrays = {item: ocp.args.StandardSave(tree) for item, tree in _items(state).items()}
        items = ocp.args.Composite(**arrays, config=ocp.args.JsonSave({**description, "progress": progress or {}}))
        with self._writing():
            self._require_writable()
            self._manager.save(step, args=items, force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Return the state of a step, each array with the shape and sharding that it has in `like`.

        Raises:
          UserError: an array is missing, extra or has another shape or dtype.
        """
        checkpoint, wanted = self.directory / str(step), _items(like)
        with reading(checkpoint):
            saved = self._manager.item_metadata(step)
        require_same_arrays(
            checkpoint,
            wanted["variables"] | wanted["training"],
            tree_of(saved["variables"]) | tree_of(saved["training"]),
            "Train into another directory (--workdir=DIR), or go back to the config of that checkpoint "
            f"({self.directory.parent / 'config.json'}).",
        )
        items = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()})
        with reading(checkpoint):
            restored = self._manager.restore(step, args=items)
        state: Any = serialization.from_state_dict(like, {"ema": None, **restored["variables"], **restored["training"]})
        return state

    def description(self, step: int) -> dict[str, Any]:
        """Return the JSON item of a step, with the `progress` that was saved."""
        return read_description(self.directory / str(step))

    def wait(self) -> None:
        """Waits until every save is on disk.

        Raises:
          UserError: the last one could not be written. Existing ones are untouched.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        if not self._failed:  # orbax would raise the error a second time
            with self._writing():
                self._manager.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return which checkpoints to keep; orbax calls this after every save and removes the others."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        best = sorted((self.scores[step], step) for step in steps if step in self.scores)[::-1][: self._keep_best]
        kept = {*steps[-self._keep_newest :], *(step for _, step in best)}
        return [checkpoint.step in kept or self._keep_permanently(checkpoint.step) for checkpoint in checkpoints]

    def _write_checksums(self) -> None:
        name = str(self._saving_step)
        # A bucket has the unfinished save under its final name, a local disk under a temporary one: `STEP.SUFFIX`.
        (directory,) = (path for path in self.directory.iterdir() if path.name.partition(".")[0] == name)
        write_checksums(directory)

    def _require_writable(self) -> None:
        """Raises OSError where a directory cannot be made: threads of orbax would wait for it for ten minutes."""
        if not in_bucket(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(prefix=".probe-", dir=self.directory).cleanup()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of a save by orbax, tensorstore and the file system into a `UserError`."""
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:
            self._failed = True
            if may_miss_a_process(error):
                raise  # orbax may report it as a TimeoutError, which is an OSError
            before = [step for step in finished_steps(self.directory) if step < self._saving_step]
            newest = f"that of step {before[0]} before it is untouched" if before else "there is none before it"
            said = next((words for words in DISK_ERRORS if words in str(error)), None)  # tensorstore adds much text
            what = f"the checkpoint of step {self._saving_step}" if self._saving_step else "checkpoints"
            raise UserError(
                f"{what} could not be written to {self.directory} "
                f"({said or getattr(error, 'strerror', None) or reason(error)}); {newest}. Free disk space or fix the "
                "directory, and run the same command again: it continues from the newest checkpoint."
            ) from error


def _items(state: TrainState) -> dict[str, PyTree]:
    """Return the arrays of each item of a checkpoint."""
    tree = serialization.to_state_dict(state)
    if tree["ema"] is None:
        del tree["ema"]
    return {
        "variables": {name: tree[name] for name in ("params", "batch_stats", "ema") if name in tree},
        "training": {name: tree[name] for name in ("step", "opt_state")},
    }


def _set_aside(checkpoint: epath.Path, into: epath.Path) -> epath.Path:
    """Moves a checkpoint to `into/STEP`, or `into/STEP-2` and so on, and returns its new path."""
    names = (checkpoint.name, *(f"{checkpoint.name}-{number}" for number in range(2, 1000)))
    place = next(into / name for name in names if not (into / name).exists())
    if not in_bucket(checkpoint):
        try:
            into.mkdir(parents=True, exist_ok=True)
            return checkpoint.rename(place)
        except OSError as error:
            raise cannot_write(place, error) from error
    for name in files_below(checkpoint):  # a bucket has no directories to rename
        (checkpoint / name).copy(place / name)
    checkpoint.rmtree()
    return place
