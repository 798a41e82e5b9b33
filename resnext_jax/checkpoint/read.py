"""Find and read one checkpoint, outside of a run."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from resnext_jax.checkpoint.arrays import by_path
from resnext_jax.checkpoint.checksums import damage
from resnext_jax.checkpoint.store import (
    DIRECTORY,
    absolute,
    checkpointer,
    damaged,
    finished_steps,
    reading,
    require_steps_as_names,
    saved_step,
    tree_of,
)
from resnext_jax.errors import UserError
from resnext_jax.files import cannot_read
from resnext_jax.types import PyTree


def locate(path: str) -> epath.Path:
    """Return the directory of a checkpoint; of the newest one if `path` is a workdir or a `checkpoints` directory.

    Raises:
      UserError: there is no complete checkpoint, or its name is not the step that is saved in it.
    """
    root = absolute(path)
    try:
        is_checkpoint = (root / "variables").exists() and ocp.path.step.is_checkpoint_finalized(root)
    except ImportError as error:
        raise UserError(f"{path} cannot be read here: {error}. Copy the checkpoint to a local directory.") from error
    except PermissionError as error:
        raise cannot_read(root, error) from error
    if is_checkpoint:
        if root.name.isdecimal() and (step := saved_step(root)) not in (None, int(root.name)):
            raise UserError(
                f"{root} holds the checkpoint of step {step}: a name that is a number must be its step. Rename it."
            )
        return root
    for directory in (root, root / DIRECTORY):
        if steps := finished_steps(directory):
            require_steps_as_names(directory, newest_only=True)
            return directory / str(steps[0])
    require_steps_as_names(root / DIRECTORY)
    raise UserError(
        f"no checkpoint in {path}: looked for {root / 'variables'}, {root}/STEP and {root / DIRECTORY}/STEP. "
        "Give the workdir of a run, its checkpoints directory, or one checkpoint in it; or train first: "
        "python main.py --config=configs/quickstart.py"
    )


def read_description(checkpoint: epath.Path) -> dict[str, Any]:
    """Return the JSON item of a checkpoint (see `locate`): the resolved `config`, the `dataset` and the `progress`.

    Raises:
      UserError: it is damaged.
    """
    _require_sound(checkpoint, "config")
    with reading(checkpoint), checkpointer() as opened:
        return opened.restore(checkpoint, ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]


def read_variables(checkpoint: epath.Path, sharding: Sharding, *, raw: bool = False) -> PyTree:
    """Return `params` and `batch_stats` of a checkpoint (see `locate`), placed by `sharding`.

    They are the averaged ones if the checkpoint has any, unless `raw`.

    Raises:
      UserError: they are damaged.
    """
    _require_sound(checkpoint, "variables")
    with reading(checkpoint), checkpointer() as opened:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree_of(opened.metadata(checkpoint).item_metadata["variables"]),
        )
        items = ocp.args.Composite(variables=ocp.args.StandardRestore(shapes))
        variables = opened.restore(checkpoint, items)["variables"]
    averaged = variables.pop("ema", None)
    return variables if raw or averaged is None else averaged


def read_arrays(checkpoint: epath.Path) -> dict[str, np.ndarray]:
    """Return all arrays of a checkpoint, also the optimizer's, by path: `params/stem_conv/kernel`."""
    with reading(checkpoint), checkpointer() as opened:
        items = opened.metadata(checkpoint).item_metadata
        shapes = {
            item: jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree_of(items[item]))
            for item in ("variables", "training")
        }
        wanted = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree) for item, tree in shapes.items()})
        restored = opened.restore(checkpoint, wanted)
    leaves = by_path({**restored["variables"], **restored["training"]})
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _require_sound(checkpoint: epath.Path, item: str) -> None:
    if what := damage(checkpoint, [item]):
        raise damaged(checkpoint, what)
