"""Where a run starts: one run per workdir, from the newest intact checkpoint, with a config that may continue it."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from resnext_jax.checkpoint import Checkpoints, newest_sound
from resnext_jax.errors import UserError
from resnext_jax.runtime.lock import Lock
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.sharding import Place, from_first_process, raise_if_any
from resnext_jax.train.cadence import Cadence
from resnext_jax.train.task import Task
from resnext_jax.types import TrainState

NO_CHECKPOINT = -1

# Fields that may change between two starts; an entry that ends with a dot stands for all fields below it. Every other
# field is part of the function (config, seed) -> trajectory.
FREE = (
    "log.",
    "evaluate.",
    "protocol",
    "checkpoint.",
    "watch.",
    "data.dir",  # the same images may lie elsewhere
    "data.num_threads",
    "data.resize_px",  # of evaluation
    "data.interpolation",
    "data.on_bad_image",
    "conv_impl",  # another order of the same sums, like another device
    "accumulation_steps",
    "on_nonfinite",
    "max_skipped_in_a_row",
    "debug_nans",
    "recompute_bn_images",
    "resume_changed",
)
# Settings of JAX that change a run although the program is the same, by their environment variables, and their usual
# values. Dtypes, precisions and the kind of keys are explicit in the program.
SETTINGS: dict[str, Any] = {"JAX_THREEFRY_PARTITIONABLE": True}  # False: other random numbers
# The length of a run may change if the learning rate does not depend on it.
LENGTH = ("num_epochs", "num_steps")


@dataclasses.dataclass(frozen=True)
class StartPoint:
    """Where a run starts or goes on.

    Attributes:
      step: number of steps made.
      progress: what the checkpoint stored beside the state: the sums of an unfinished row (`window`), and whether the
        evaluation of this step was done or not due (`evaluated`).
      losses: mean losses of the rows of training so far.
      owes_evaluation: the checkpoint of this step was saved, and its evaluation did not follow.
      owes_final: the row of the task's final phase is missing.
      lost_rows: number of rows that were written before the checkpoint, and are gone.
    """

    state: TrainState
    step: int
    progress: dict[str, Any]
    losses: list[float]
    owes_evaluation: bool
    owes_final: bool
    lost_rows: int = 0


def jax_settings() -> dict[str, Any]:
    """Return the values of SETTINGS in this process."""
    return {name: getattr(jax.config, name.lower()) for name in SETTINGS}


def claim(
    workdir: str, place: Place, stack: contextlib.ExitStack, log: Callable[[str], None]
) -> tuple[Lock | None, int | None]:
    """Lock the workdir and find its newest intact checkpoint. The primary process does both and tells the others.

    Returns:
      The lock (on the primary process; it is held until `stack` closes), and the step of the newest intact checkpoint.

    Raises:
      UserError: another run uses the workdir, or it has checkpoints and none is intact.
    """
    lock, newest, error = None, None, None
    if place.is_primary:
        try:
            lock = stack.enter_context(Lock(workdir, log))
            newest = newest_sound(workdir, log)
        except UserError as caught:
            error = caught
    raise_if_any(place, error)
    step = from_first_process(place, NO_CHECKPOINT if newest is None else newest)
    return lock, None if step == NO_CHECKPOINT else step


def open_checkpoints(config: ConfigDict, task: Task, cadence: Cadence, workdir: str) -> Checkpoints:
    """Open the checkpoints of a run. The rows of its metrics say which ones scored best."""
    return Checkpoints(
        workdir,
        keep_newest=config.checkpoint.keep_newest,
        keep_best=config.checkpoint.keep_best,
        keep_permanently=cadence.keeps,
        scores={row["step"]: row[task.score.name] for row in read_metrics(workdir) if row["phase"] == "evaluate"},
    )


def find_start(
    task: Task,
    checkpoints: Checkpoints,
    newest: int | None,
    description: dict[str, Any],
    workdir: str,
    place: Place,
    *,
    allow_changes: bool,
    log: Callable[[str], None],
) -> StartPoint:
    """Restore the newest checkpoint, or make the first state.

    Args:
      newest: step of the newest intact checkpoint; None if there is none.
      description: `config`, `dataset` and `settings` of this start.
      allow_changes: continue even if fields changed that change the trajectory.

    Raises:
      UserError: the checkpoint cannot be continued by this task and config.
    """
    rows = read_metrics(workdir)
    progress: dict[str, Any] = {}
    if newest is None:
        step, state = 0, task.initial_state(log)
        for name, value in description["settings"].items():
            if value != SETTINGS[name]:
                log(f"note: {name} is {value!r}, which makes another run than the usual {SETTINGS[name]!r}")
    else:
        step, saved = newest, checkpoints.description(newest)
        check_whole(saved, newest, workdir)
        task.require_same_data(saved["dataset"], workdir)
        state = checkpoints.restore(newest, task.state_shapes())
        check_resumable(
            description,
            saved,
            f"of step {newest} in {workdir}",
            length_may_change=task.length_may_change,
            allow=allow_changes,
            log=log,
        )
        progress = saved.get("progress", {})
    phases = {row["phase"] for row in rows if row["step"] == step}
    evaluation = not progress.get("evaluated", True) and "evaluate" not in phases
    final = task.final_phase is not None and not (step >= task.total_steps and task.final_phase in phases)
    # Rows that a save follows; the evaluation of its step comes after it.
    kept = sum(row["step"] < step or (row["step"] == step and row["phase"] == "train") for row in rows)
    return StartPoint(
        state=state,
        step=step,
        progress=progress,
        losses=[row["loss"] for row in rows if row["phase"] == "train" and row["step"] <= step and "loss" in row],
        owes_evaluation=bool(from_first_process(place, evaluation)),
        owes_final=bool(from_first_process(place, final)),
        lost_rows=max(0, progress.get("rows", 0) - kept),
    )


def check_whole(saved: dict[str, Any], step: int, workdir: str) -> None:
    """Raises UserError for a checkpoint of weights alone: one that was converted, or has recomputed statistics.

    Args:
      saved: its JSON item.
      workdir: where it lies.
    """
    if "source" in saved:
        kind = f"converted from the file {saved['source'].get('file')}"
    elif "recomputed_bn_images" in saved.get("progress", {}):
        kind = "with recomputed batch-norm statistics"
    else:
        return
    raise UserError(
        f"{workdir}/checkpoints/{step} holds weights alone, {kind}, without the momentum that a run goes on with; it "
        f"is left as it is. To start a run from these weights, give --config.init_from={workdir} and another "
        "--workdir=DIR (configs/finetune.py takes the network and its preprocessing from there)."
    )


def check_resumable(
    now: dict[str, Any],
    before: dict[str, Any],
    checkpoint: str,
    *,
    length_may_change: bool,
    allow: bool,
    log: Callable[[str], None],
) -> None:
    """Compare what a run is asked for with what its checkpoint was trained with.

    Args:
      now: `config`, `dataset` and `settings`, as in a checkpoint's JSON item. One without settings had the usual ones.
      before: those of the checkpoint.
      checkpoint: name of the checkpoint in messages.
      length_may_change: whether the number of steps may change.
      allow: continue in any case (`--config.resume_changed=true`).
      log: prints a line for every changed field.

    Raises:
      UserError: with every field that would change the trajectory, both values, and what to do.
    """
    ours, theirs = _fields(now), _fields(before)
    names = sorted(ours.keys() | theirs.keys())
    changed = [name for name in names if ours.get(name) != theirs.get(name, SETTINGS.get(name))]
    free = (*FREE, *(LENGTH if length_may_change else ()))
    refused = [name for name in changed if name in ours and name in theirs and not _is_free(name, free)]
    if refused and not allow:
        width = max(map(len, refused))
        raise UserError(
            f"the checkpoint {checkpoint} was trained with another config, and going on would make a run that no "
            "config describes; nothing was changed:",
            *(f"  {name:{width}}  was {theirs[name]!r}, is {ours[name]!r}" for name in refused),
            "Go back to those values, or train into another directory (--workdir=DIR). To go on with the new values on "
            "purpose, add --config.resume_changed=true.",
        )
    for name in changed:
        if name != "resume_changed":
            log(f"note: {name} was {theirs.get(name)!r} at the last start, and is {ours.get(name)!r} from here on")


def _is_free(name: str, free: tuple[str, ...]) -> bool:
    return name in free or name.startswith(tuple(entry for entry in free if entry.endswith(".")))


def _fields(description: dict[str, Any]) -> dict[str, Any]:
    """Return every field of the config as `model.name`, the settings, and what the order of the images depends on."""
    num_images = description["dataset"].get("num_images")
    counted = {} if num_images is None else {"images in the training set": num_images}
    return flatten_dict(description["config"], sep=".") | counted | description.get("settings", {})
