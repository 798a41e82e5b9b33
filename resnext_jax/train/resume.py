"""How a run goes on: one run per workdir, from the newest sound checkpoint, with a config that may go on from it."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.checkpoint import Checkpoints, newest_sound
from resnext_jax.errors import UserError
from resnext_jax.runtime.lock import Lock
from resnext_jax.sharding import Place, from_first_process, raise_if_any
from resnext_jax.train.assemble import Run

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


def claim(
    workdir: str, place: Place, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[Lock | None, int | None]:
    """Takes the workdir for this run, and finds where it was left; the first process does, and tells the others.

    Returns:
      The lock (of the first process; it is held until `stack` closes), and the step of the newest sound checkpoint.

    Raises:
      UserError: another run is at work there, or it has checkpoints and none is sound.
    """
    lock, newest, mistake = None, None, None
    if place.is_primary:
        try:
            lock = stack.enter_context(Lock(workdir, say))
            newest = newest_sound(workdir, say)
        except UserError as error:
            mistake = error
    raise_if_any(place, mistake)
    step = from_first_process(place, NO_CHECKPOINT if newest is None else newest)
    return lock, None if step == NO_CHECKPOINT else step


def open_checkpoints(config: ConfigDict, run: Run, workdir: str, rows: Sequence[dict[str, Any]]) -> Checkpoints:
    """The checkpoints of a run, kept as the config says; which were the best is known from the rows of its metrics."""
    return Checkpoints(
        workdir,
        keep_newest=config.checkpoint.keep_newest,
        keep_best=config.checkpoint.keep_best,
        keep_for_ever=run.keeps_for_ever,
        top1={row["step"]: row["top1"] for row in rows if row["phase"] == "evaluate"},
    )


def check_whole(saved: dict[str, Any], step: int, workdir: str) -> None:
    """Raises UserError for a checkpoint of weights alone: one that was converted, or has recomputed statistics.

    Args:
      saved: its JSON item.
      step: of the checkpoint.
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
    now: dict[str, Any], before: dict[str, Any], checkpoint: str, *, allow: bool, say: Callable[[str], None]
) -> None:
    """Compares what a run is asked for with what its checkpoint was trained with.

    Args:
      now: `config` and `dataset`, as in a checkpoint's JSON item.
      before: those of the checkpoint.
      checkpoint: for the message.
      allow: go on all the same (`--config.resume_changed=true`).
      say: takes a line for every field that may change, or is allowed to.

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
            say(f"note: {name} was {theirs.get(name)!r} at the last start, and is {ours.get(name)!r} from here on")


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
