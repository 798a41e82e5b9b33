"""Convert a checkpoint to a file that the torchvision network of the same name loads."""

from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from resnext_jax.checkpoint import MODEL, locate, read_description, read_variables
from resnext_jax.convert import files, mapping
from resnext_jax.convert.layers import layers_of
from resnext_jax.convert.names import current_name, their_names
from resnext_jax.errors import UserError
from resnext_jax.models import zoo

# Form of a JSON item (`json_files.check_form`).
CONVERTED = {
    "config": {"model": MODEL},
    "dataset": {"class_names": [str]},
    "source?": {"format": str, "counters": {str: range(-(2**63), 2**63)}, "dtypes": {str: str}},
}


def convert_back(path: str, out: str) -> int:
    """Writes the weights under torchvision's names, with a batch counter for every batch norm.

    Weights that came from a torchvision file get their original order, dtypes and counters.

    Args:
      path: workdir, its `checkpoints`, or one checkpoint.

    Returns:
      The number of arrays written.

    Raises:
      UserError: there is no checkpoint, torchvision has no such network, or the file cannot be written.
    """
    checkpoint = locate(path)
    description = read_description(checkpoint, CONVERTED)
    fields = description["config"]["model"]
    model, arch = fields.get("name"), zoo.select(**fields)
    if not model or arch != zoo.ARCHS[model] or not getattr(arch, "shortcut", True):
        raise UserError(
            f"{checkpoint} is of a network by its numbers, of a changed one or of one without shortcuts, for which "
            "torchvision has no name. Checkpoints of rows of the zoo (resnext_jax.list_models()) can be converted."
        )
    layers = layers_of(model, len(description["dataset"]["class_names"]))
    names = their_names("torchvision", model, layers)
    entries = mapping.entries_of("torchvision", layers, names)
    wanted = {entry.path: jax.ShapeDtypeStruct(entry.shape, "float32") for entry in entries}
    variables = read_variables(
        checkpoint,
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
        wanted=traverse_util.unflatten_dict(wanted),
        advice="Only networks for color images can be converted.",
    )
    arrays = mapping.from_variables(entries, jax.device_get(variables))
    mapping.require_sound_values(arrays, str(checkpoint))
    source = description.get("source", {})
    if source.get("format") == "torchvision":
        _require_names(checkpoint, source, set(arrays))
        arrays |= {name: np.array(count, np.int64) for name, count in source["counters"].items()}
        arrays = {name: arrays[current_name(name)].astype(dtype) for name, dtype in source["dtypes"].items()}
    else:
        step = int(checkpoint.name) if checkpoint.name.isdigit() else 0
        counters = source.get("counters", {})
        for name in list(arrays):  # a counter follows the statistics, as in PyTorch
            array = arrays.pop(name)
            arrays[name] = array
            if name.endswith(".running_var"):
                counter = name.replace("running_var", mapping.COUNTER)
                arrays[counter] = np.array(counters.get(counter, step), np.int64)
    files.write_torch(out, arrays)
    return len(arrays)


def _require_names(checkpoint: epath.Path, source: dict[str, Any], floats: set[str]) -> None:
    """Checks that `source` names each array of the file once, with a dtype that holds its values."""
    names = [current_name(name) for name in source["dtypes"]]
    dtypes = dict(zip(names, source["dtypes"].values(), strict=True))
    allowed = {True: ("int64",), False: mapping.EXACT}
    wrong = any(dtype not in allowed[name in source["counters"]] for name, dtype in dtypes.items())
    if wrong or sorted(names) != sorted(floats | source["counters"].keys()) or floats & source["counters"].keys():
        raise UserError(
            f"the checkpoint {checkpoint} has a list of the arrays of its source that is not the one of this network. "
            "Convert the file again, or give another checkpoint."
        )
