"""Where a run starts: one run per workdir, from the newest intact checkpoint, with a config that may continue it."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

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

# What a run may change between two starts, by whole fields or by their prefix. Everything else is part of the function
# (config, seed) -> trajectory; a field that is not listed counts as such.
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
# The length of a run: without effect on its steps where the learning rate does not depend on it.
LENGTH = ("num_epochs", "num_steps")


@dataclasses.dataclass(frozen=True)
class StartPoint:
    """Where a run starts or goes on.

    Attributes:
      state: training state.
      step: number of steps made.
      progress: what the checkpoint stored beside the state: the sums of an unfinished row.
      losses: mean losses of the rows of training so far.
      owes_evaluation: the checkpoint of this step was saved, and its evaluation did not follow.
      owes_final: the row of the task's final phase is missing.
    """

    state: TrainState
    step: int
    progress: dict[str, Any]
    losses: list[float]
    owes_evaluation: bool
    owes_final: bool


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
      task: what is trained.
      checkpoints: checkpoints of the run.
      newest: step of the newest intact checkpoint; None if there is none.
      description: `config` and `dataset` of this start.
      workdir: directory of the run.
      place: devices and process.
      allow_changes: continue even if fields changed that change the trajectory.
      log: prints a line.

    Raises:
      UserError: the checkpoint cannot be continued by this task and config.
    """
    rows = read_metrics(workdir)
    progress: dict[str, Any] = {}
    if newest is None:
        step, state = 0, task.initial_state(log)
    else:
        step, saved = newest, checkpoints.description(newest)
        check_whole(saved, newest, workdir)
        task.require_same_data(saved["dataset"], workdir)
        state = checkpoints.restore(newest, task.state_shapes())
        check_resumable(description, saved, f"of step {newest} in {workdir}", allow=allow_changes, log=log)
        progress = saved.get("progress", {})
    phases = {row["phase"] for row in rows if row["step"] == step}
    evaluation = not progress.get("evaluated", True) and "evaluate" not in phases
    final = task.final_phase is not None and not (step >= task.total_steps and task.final_phase in phases)
    return StartPoint(
        state=state,
        step=step,
        progress=progress,
        losses=[row["loss"] for row in rows if row["phase"] == "train" and row["step"] <= step and "loss" in row],
        owes_evaluation=bool(from_first_process(place, evaluation)),
        owes_final=bool(from_first_process(place, final)),
    )


def check_whole(saved: dict[str, Any], step: int, workdir: str) -> None:
    """Raises UserError for a checkpoint of weights alone: one that was converted, or has recomputed statistics.

    Args:
      saved: its JSON item.
      step: step of the checkpoint.
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
    now: dict[str, Any], before: dict[str, Any], checkpoint: str, *, allow: bool, log: Callable[[str], None]
) -> None:
    """Compares what a run is asked for with what its checkpoint was trained with.

    Args:
      now: `config` and `dataset`, as in a checkpoint's JSON item.
      before: those of the checkpoint.
      checkpoint: name of the checkpoint in messages.
      allow: go on all the same (`--config.resume_changed=true`).
      log: takes a line for every field that may change, or is allowed to.

    Raises:
      UserError: with every field that would change the trajectory, both values, and what to do.
    """
    ours, theirs = _facts(now), _facts(before)
    changed = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    fixed_rate = now["config"]["schedule"]["name"] == "step"
    refused = (
        [] if allow else [name for name in changed if name in ours and name in theirs and _matters(name, fixed_rate)]
    )
    if refused:
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


def _matters(name: str, fixed_rate: bool) -> bool:
    return not name.startswith(FREE) and not (fixed_rate and name in LENGTH)


def _facts(description: dict[str, Any]) -> dict[str, Any]:
    """Every field of the config as `model.name`, and what the order of the images depends on."""
    num_images = description["dataset"].get("num_images")
    return flat(description["config"]) | ({} if num_images is None else {"images in the training set": num_images})


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as `model.name: value`."""
    fields = {}
    for name, value in tree.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return fields
