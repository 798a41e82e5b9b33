"""The checkpoints of one run: the newest sound one is found, restored strictly; others are written, kept by policy."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from flax import serialization

from resnext_jax.checkpoint.arrays import require_same_arrays
from resnext_jax.checkpoint.checksums import damage, write_checksums
from resnext_jax.checkpoint.read import read_description
from resnext_jax.checkpoint.store import DIRECTORY, absolute, finished_steps, handlers, reading, reason, tree_of
from resnext_jax.errors import UserError, may_miss_a_process
from resnext_jax.types import PyTree, TrainState

# Beside `checkpoints`, not in it: what orbax finds there in a bucket without its last mark, it removes.
DAMAGED_DIRECTORY = "damaged_checkpoints"


def newest_sound(workdir: str, warn: Callable[[str], None]) -> int | None:
    """The step of the newest checkpoint that is as it was written; None where there is none at all.

    Damaged ones that are newer are named and moved to `workdir/damaged_checkpoints`: the run will make those steps
    again. For one process, before any `Checkpoints` is opened; the others are told its answer.

    Raises:
      UserError: there are checkpoints, and none is sound; nothing is moved.
    """
    directory = absolute(workdir) / DIRECTORY
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
    """The checkpoints of one run: the newest few, the best few and some for ever are kept.

    Args:
      workdir: they lie in `workdir/checkpoints`.
      keep_newest: how many of the newest to keep.
      keep_best: how many of those with the best validation top-1 to keep besides.
      keep_for_ever: whether to keep the checkpoint of a step besides.
      top1: of the evaluations made so far, by step. Add to it what is evaluated after a save.
    """

    def __init__(
        self,
        workdir: str,
        *,
        keep_newest: int,
        keep_best: int,
        keep_for_ever: Callable[[int], bool] = lambda step: False,
        top1: Mapping[int, float] | None = None,
    ):
        self.directory = absolute(workdir) / DIRECTORY
        self.top1 = dict(top1 or {})
        self._keep_newest, self._keep_best, self._keep_for_ever = keep_newest, keep_best, keep_for_ever
        self._saving_step, self._failed = 0, False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # the policy wants steps alone
            # Called after all items are written and before the checkpoint gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        if not isinstance(sys.unraisablehook, _SilentOfClosedLoops):
            sys.unraisablehook = _SilentOfClosedLoops(sys.unraisablehook)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers())

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
          progress: of the run between two rows of its metrics; plain numbers, texts, lists and dicts, which come back
            as they were: `description(step)["progress"]`. None for nothing.

        Raises:
          UserError: this checkpoint, or the one before it, could not be written. Those that exist are untouched.
        """
        self.wait()
        step = self._saving_step = int(state.step)
        if evaluation is not None:
            self.top1[step] = evaluation["top1"]
        arrays = {item: ocp.args.StandardSave(tree) for item, tree in _items(state).items()}
        items = ocp.args.Composite(**arrays, config=ocp.args.JsonSave({**description, "progress": progress or {}}))
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, every array where `like` (shapes with shardings) wants it.

        Raises:
          UserError: an array is missing, extra or misshapen (`require_same_arrays`); nothing is changed.
        """
        wanted = _items(like)
        with reading(self.directory / str(step)):
            saved = self._manager.item_metadata(step)
        require_same_arrays(
            self.directory / str(step),
            wanted["variables"] | wanted["training"],
            tree_of(saved["variables"]) | tree_of(saved["training"]),
            "Train into another directory (--workdir=DIR), or go back to the config of that checkpoint "
            f"({self.directory.parent / 'config.json'}).",
        )
        items = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()})
        with reading(self.directory / str(step)):
            restored = self._manager.restore(step, args=items)
        state: Any = serialization.from_state_dict(like, {"ema": None, **restored["variables"], **restored["training"]})
        return state

    def description(self, step: int) -> dict[str, Any]:
        """The JSON item at `step`, with the `progress` that was saved."""
        return read_description(self.directory / str(step))

    def wait(self) -> None:
        """Returns when every save is on disk.

        Raises:
          UserError: the last one could not be written. Those that exist are untouched.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        if self._failed:
            return  # said already; orbax would raise it once more
        with self._writing():
            self._manager.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of these to keep; orbax asks after every save, and removes the others."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        by_top1 = sorted((self.top1[step], step) for step in steps if step in self.top1)[::-1]
        kept = {*steps[-self._keep_newest :], *(step for _, step in by_top1[: self._keep_best])}
        return [checkpoint.step in kept or self._keep_for_ever(checkpoint.step) for checkpoint in checkpoints]

    def _write_checksums(self) -> None:
        name = str(self._saving_step)
        # On gs:// a save is written where it stays.
        unfinished = [
            path for path in self.directory.iterdir() if path.name == name or path.name.startswith(f"{name}.")
        ]
        (directory,) = unfinished
        write_checksums(directory)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What orbax, tensorstore and the file system raise of a save, as an instruction."""
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:
            self._failed = True
            if may_miss_a_process(error):
                raise  # orbax's own words for it may be those of a file: a TimeoutError is an OSError
            before = [step for step in finished_steps(self.directory) if step < self._saving_step]
            newest = f"that of step {before[0]} before it is untouched" if before else "there is none before it"
            raise UserError(
                f"the checkpoint of step {self._saving_step} could not be written to {self.directory} "
                f"({_file_error(error)}); {newest}. Make room, or mend what is wrong with the directory, and run the "
                "same command again: it goes on from the newest checkpoint."
            ) from error


class _SilentOfClosedLoops:
    """When one write of a save fails, the others find its event loop closed, and each would print a traceback."""

    def __init__(self, before: Callable[[Any], object]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)


def _items(state: TrainState) -> dict[str, PyTree]:
    """The arrays of each item of a checkpoint."""
    tree = serialization.to_state_dict(state)
    averages = {} if tree["ema"] is None else {"ema": tree["ema"]}
    return {
        "variables": {"params": tree["params"], "batch_stats": tree["batch_stats"], **averages},
        "training": {"step": tree["step"], "opt_state": tree["opt_state"]},
    }


def _file_error(error: BaseException) -> str:
    """What the file system said: tensorstore puts much around it."""
    text = getattr(error, "strerror", None) or reason(error)
    known = ("No space left on device", "Disk quota exceeded", "Read-only file system", "Permission denied")
    return next((words for words in (*known, "File too large") if words in str(error)), text)


def _set_aside(checkpoint: epath.Path, into: epath.Path) -> epath.Path:
    """Moves a checkpoint to `into/STEP`, or `into/STEP-2` and so on, and returns where it is now."""
    names = [checkpoint.name, *(f"{checkpoint.name}-{number}" for number in range(2, 1000))]
    place = next(into / name for name in names if not (into / name).exists())
    into.mkdir(parents=True, exist_ok=True)
    if "://" in str(checkpoint):  # a bucket has no directories to rename
        _copy(checkpoint, place)
        checkpoint.rmtree()
    else:
        checkpoint.rename(place)
    return place


def _copy(source: epath.Path, target: epath.Path) -> None:
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            path.copy(target / path.name)
