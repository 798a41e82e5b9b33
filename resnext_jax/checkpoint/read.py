"""Find and read one checkpoint, outside of a run."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from resnext_jax.checkpoint.arrays import by_path, require_same_arrays
from resnext_jax.checkpoint.checksums import damage
from resnext_jax.checkpoint.store import (
    CONFIG_FILE,
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
from resnext_jax.json_files import WHOLE, read_json
from resnext_jax.types import PyTree

# Forms of JSON items (`json_files.check_form`): of any checkpoint, and of one whose network is built from its config.
DESCRIPTION = {
    "config": dict,
    "dataset": {"name?": str, "class_names?": [str]},
    "progress?": {"window?": dict, "evaluated?": bool},
    "source?": dict,
}
SIZE_PX = range(1, 1 << 16)
MODEL = {
    "name?": (str, None),
    "family?": str,
    "depth?": range(2000),
    "cardinality?": WHOLE,
    "bottleneck_width?": WHOLE,
    "shortcut?": bool,
    "preactivation?": bool,
    "dropout?": (float, None),
    "stochastic_depth?": float,
}
NETWORK = {
    "config": {
        "model": MODEL,
        "conv_impl": str,
        "compute_dtype": str,
        "bn_group_images": WHOLE,
        "data": {
            "image_size_px": SIZE_PX,
            "resize_px": SIZE_PX,
            "interpolation?": str,
            "crop": str,
            "mean": [float],
            "std": [float],
        },
    },
    "dataset": {"name": str, "class_names": [str]},
}


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


def read_description(checkpoint: epath.Path, form: Any = DESCRIPTION) -> dict[str, Any]:
    """Return the JSON item of a checkpoint (see `locate`): the resolved `config`, the `dataset` and the `progress`.

    Args:
      form: what it must look like; see `json_files.check_form`.

    Raises:
      UserError: it is damaged.
    """
    _require_sound(checkpoint, "config")
    return read_json(checkpoint / "config" / CONFIG_FILE, form, "Give another checkpoint.")


def read_variables(
    checkpoint: epath.Path, sharding: Sharding, *, raw: bool = False, wanted: PyTree = None, advice: str = ""
) -> PyTree:
    """Return `params` and `batch_stats` of a checkpoint (see `locate`), placed by `sharding`.

    They are the averaged ones if the checkpoint has any, unless `raw`.

    Args:
      wanted: arrays that a model has, or their shapes; compared before any array is read. None takes any arrays.
      advice: what to do if they differ.

    Raises:
      UserError: they are damaged, or differ from `wanted`.
    """
    _require_sound(checkpoint, "variables")
    with reading(checkpoint), checkpointer() as opened:
        saved = tree_of(opened.metadata(checkpoint).item_metadata["variables"])
        own = {name: saved[name] for name in saved if name != "ema"}
        for tree in (own, saved.get("ema", own)) if wanted is not None else ():
            require_same_arrays(checkpoint, wanted, tree, advice)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved)
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
