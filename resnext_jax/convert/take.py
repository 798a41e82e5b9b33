"""Convert a foreign file to a checkpoint, with the class names and the preprocessing of the weights."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnext_jax.checkpoint import DIRECTORY, Checkpoints, absolute, damage, finished_steps, read_description
from resnext_jax.convert import files, mapping, names
from resnext_jax.convert.layers import Layer, layers_of
from resnext_jax.convert.torch7 import read_torch7
from resnext_jax.convert.torch7_network import torch7_arrays
from resnext_jax.convert.weights import Weights, class_names_problem, find_weights
from resnext_jax.data.imagenet_classes import imagenet_classes
from resnext_jax.errors import UserError, raise_all
from resnext_jax.files import sha256_of
from resnext_jax.models import zoo
from resnext_jax.models.arch import Arch
from resnext_jax.progress import say
from resnext_jax.runtime.lock import Lock
from resnext_jax.types import TrainState

FORMATS = ("torchvision", "timm", "torch7")
NUM_CLASSES = 1000
UNFINISHED = "0.orbax-checkpoint-tmp"  # the name of an unfinished save begins so


def convert(
    their: str, file: str, model: str, out: str, *, weights: str | None = None, class_names: Sequence[str] | None = None
) -> tuple[int, Weights, bool]:
    """Writes `out/checkpoints/0`.

    Args:
      their: format of the file, one of FORMATS.
      file: `.pth` or `.safetensors` ("torchvision", "timm"), or `.t7` ("torch7").
      model: row of `zoo.ARCHS`.
      out: directory without a checkpoint. If it has that of the same conversion, nothing is written.
      weights: name of the row of `weights.tsv` with the preprocessing; None finds it by checksum.
      class_names: names in label order; by default ImageNet's WordNet ids for 1000 classes, otherwise "class 0", ...

    Returns:
      The number of arrays in the checkpoint, the preprocessing, and whether it was there already.

    Raises:
      UserError: the file is broken or belongs to another network, or `out` has other checkpoints or cannot be
        written; nothing is written.
    """
    zoo.select(model)  # raises for an unknown name before a large file is read
    _is_done(out, None)
    layers, layer_names, stored = _read(their, file, model)
    entries = mapping.entries_of(their, layers, layer_names)
    arrays = {names.current_name(name): array for name, array in stored.items()}
    if len(arrays) < len(stored):
        raise UserError(f"{file} has an array under its old and its new name (norm.1 and norm1). Fetch it again.")
    norms = {entry.name.removesuffix("running_mean") for entry in entries}
    counters = {
        name: int(array)
        for name, array in arrays.items()
        if name.removesuffix(mapping.COUNTER) in norms and (array.shape, array.dtype) == ((), np.int64)
    }
    rest = {name: array for name, array in arrays.items() if name not in counters}
    variables = mapping.to_variables(entries, rest, file=file, model=model)
    mapping.require_sound_values(rest, file)

    num_classes = layers[-1].shapes["bias"][0]
    if class_names is None:
        imagenet = num_classes == NUM_CLASSES
        class_names = tuple(imagenet_classes()) if imagenet else [f"class {index}" for index in range(num_classes)]
    raise_all(class_names_problem(class_names, num_classes, "--class_names"))
    sha256 = sha256_of(file)
    row = find_weights(their, model, sha256, weights)
    source = {
        "format": their,
        "file": os.path.basename(file),
        "sha256": sha256,
        "weights": row.name,
        # Needed to restore the file (`convert_back`).
        "dtypes": {name: array.dtype.name for name, array in stored.items()} if their != "torch7" else {},
        "counters": counters,
    }
    data_name = "imagenet2012" if num_classes == NUM_CLASSES else "folder"
    dataset = {"name": data_name, "class_names": list(class_names)}
    description = {"config": _config(model, row, data_name), "dataset": dataset, "source": source}
    state = TrainState(np.zeros((), np.int32), variables["params"], variables["batch_stats"], opt_state=())
    try:
        absolute(out).mkdir(parents=True, exist_ok=True)
        with Lock(out, say):
            if not (done := _is_done(out, description)):
                checkpoints = Checkpoints(out, keep_newest=1, keep_best=0)
                checkpoints.save(state, description)
                checkpoints.close()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Give another --out=DIR.") from None
    return len(entries), row, done


def _is_done(out: str, wanted: dict[str, Any] | None) -> bool:
    """Return whether `out` has the checkpoint of this conversion. An unfinished one, which a kill left, is none.

    Args:
      wanted: JSON item of the conversion; None for that of any file.

    Raises:
      UserError: `out` has other checkpoints, or a damaged one.
    """
    directory = absolute(out) / DIRECTORY
    there = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    done = "0" in there and 0 in finished_steps(directory)
    differ = [name for name in there if name != "0" and not name.startswith(UNFINISHED)]
    if done and not differ:
        saved = read_description(directory / "0")
        pairs = [_identity(description) for description in (saved, wanted or saved) if "source" in description]
        differ = [name for name, value in pairs[0].items() if value != pairs[-1][name]] if pairs else ["0 of a run"]
    elif there and (absolute(out) / "config.json").exists():
        differ = ["an unfinished one of a run"]
    if differ:
        raise UserError(
            f"{out} holds checkpoints already ({', '.join(differ[:3])}), and is left as it is. Give another --out=DIR."
        )
    if done and wanted and (what := damage(directory / "0")):
        raise UserError(f"{directory / '0'} is damaged ({what}). Remove {out}, and run the same command again.")
    return done


def _identity(description: dict[str, Any]) -> dict[str, Any]:
    """Return what tells one conversion from another, by the words for a difference."""
    source = description["source"]
    return {
        "of another file": (source.get("format"), source.get("sha256")),
        "of another --model": description["config"].get("model"),
        "with other --weights": source.get("weights"),
        "with other --class_names": description["dataset"].get("class_names"),
    }


def _read(their: str, file: str, model: str) -> tuple[list[Layer], list[str], dict[str, np.ndarray]]:
    """Return the layers of the model with the number of classes in the file, their names there, and its arrays."""
    layers, arch = layers_of(model, NUM_CLASSES), zoo.select(model)
    if their != "torch7":
        stored, layer_names = files.read_arrays(file), names.their_names(their, model, layers)
    elif isinstance(arch, Arch):
        layer_names, stored = torch7_arrays(read_torch7(file), arch, layers, file=file, model=model)
    else:
        raise UserError(
            f"{model}: the files of Torch7 that can be converted hold ResNets and ResNeXts. Give one of those."
        )
    bias = stored.get(f"{layer_names[-1]}.bias")
    if bias is not None and bias.ndim == 1 and len(bias):
        layers = layers_of(model, len(bias))
    return layers, layer_names, stored


def _config(model: str, row: Weights, data_name: str) -> dict[str, Any]:
    """Return the fields of a config that evaluation and prediction read."""
    place = {"name": data_name, "dir": None, "class_list": None}
    reading = {"on_bad_image": "error", "crop": "random_sized", "num_threads": 16}
    return {
        "model": {"name": model, "shortcut": True},
        "conv_impl": "auto",
        "compute_dtype": "float32",
        "bn_group_images": 32,
        "data": {**place, **reading, **row.preprocessing()},
        "evaluate": {"batch_size": 256},
    }
