"""Starting from the weights of another run: what the checkpoint decides, what is taken from it, what is new."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnext_jax.checkpoint import (
    DIRECTORY,
    NETWORK,
    absolute,
    finished_steps,
    locate,
    read_description,
    read_variables,
    require_same_arrays,
)
from resnext_jax.errors import UserError
from resnext_jax.sharding import Place, replicated
from resnext_jax.types import PyTree, TrainState

HEAD = "classifier"  # the module that depends on the classes
PREPROCESSING = {"image_size_px": 224, "resize_px": 256, "interpolation": "bicubic", "mean": None, "std": None}


def fill_from_checkpoint(config: ConfigDict, workdir: str) -> ConfigDict:
    """Return the config with every field that it leaves open (None) as a checkpoint has it: network, preprocessing.

    Args:
      workdir: of the run. Its own newest checkpoint has the fields too; then `config.init_from` is not needed any more.

    Raises:
      UserError: there is no such checkpoint, or fields are open and none is given.
    """
    open_fields = [name for name in PREPROCESSING if config.data[name] is None]
    if config.init_from is None:
        if config.model.name is None or open_fields:
            raise UserError(
                "this config takes its network from a checkpoint, and none is given: add --config.init_from=DIR, the "
                "workdir of a run or what python -m resnext_jax.convert wrote."
            )
        return config
    theirs = own_config(workdir) or read_description(locate(config.init_from), NETWORK)["config"]
    filled = config.copy_and_resolve_references()
    with filled.unlocked(), filled.ignore_type():
        if config.model.name is None:
            filled.model.update(theirs["model"])
        for name in open_fields:
            value = theirs["data"].get(name, PREPROCESSING[name])
            filled.data[name] = tuple(value) if isinstance(value, list) else value
    return filled


def own_config(workdir: str) -> dict[str, Any] | None:
    """Return the config of the newest checkpoint of a run that can be read; None before its first one."""
    directory = absolute(workdir) / DIRECTORY
    for step in finished_steps(directory):
        with contextlib.suppress(UserError):
            return read_description(directory / str(step))["config"]
    return None


def initial_weights(
    state: TrainState, init_from: str, dataset: dict[str, Any], place: Place, log: Callable[[str], None]
) -> TrainState:
    """Replace the weights of a fresh state by those of a checkpoint, and log what stays fresh.

    Every array is taken, except the classifier if the checkpoint knows other classes.

    Args:
      dataset: `name` and `class_names` of the current data set.

    Raises:
      UserError: arrays of the backbone are missing, extra or misshapen. The message names them with both shapes.
    """
    checkpoint = locate(init_from)
    same_classes = read_description(checkpoint, NETWORK)["dataset"]["class_names"] == dataset["class_names"]
    left_out = () if same_classes else (HEAD,)
    theirs = read_variables(checkpoint, replicated(place.mesh))
    ours = {"params": _without(state.params, left_out), "batch_stats": state.batch_stats}
    require_same_arrays(
        checkpoint,
        ours,
        {**theirs, "params": _without(theirs["params"], left_out)},
        "Leave the network to the checkpoint (--config.model.name= of configs/finetune.py is open), or give another "
        "--config.init_from.",
    )
    new = {name: state.params[name] for name in left_out}
    names = [f"params/{HEAD}/{name} {tuple(array.shape)}" for name, array in new.get(HEAD, {}).items()]
    log(
        f"starting from {checkpoint}: {len(jax.tree.leaves(ours)):,} arrays are taken; "
        f"new: {', '.join(names) or 'nothing'}"
    )
    weights = {"params": {**theirs["params"], **new}, "batch_stats": theirs.get("batch_stats", {})}
    averages = None if state.ema is None else jax.tree.map(jnp.copy, weights)  # the step donates both
    return state.replace(**weights, ema=averages)


def _without(params: PyTree, left_out: Sequence[str]) -> PyTree:
    return {name: value for name, value in params.items() if name not in left_out}
