"""Convert a foreign file to a checkpoint, with the class names and the preprocessing of the weights."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnext_jax.checkpoint import DIRECTORY, Checkpoints
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
from resnext_jax.types import TrainState

FORMATS = ("torchvision", "timm", "torch7")
NUM_CLASSES = 1000


def convert(
    their: str, file: str, model: str, out: str, *, weights: str | None = None, class_names: Sequence[str] | None = None
) -> tuple[int, Weights]:
    """Writes `out/checkpoints/0`.

    Args:
      their: format of the file, one of FORMATS.
      file: `.pth` or `.safetensors` ("torchvision", "timm"), or `.t7` ("torch7").
      model: row of `zoo.ARCHS`.
      out: directory without a checkpoint.
      weights: name of the row of `weights.tsv` with the preprocessing; None finds it by checksum.
      class_names: names in label order; by default ImageNet's WordNet ids for 1000 classes, otherwise "class 0", ...

    Returns:
      The number of arrays in the checkpoint, and the preprocessing.

    Raises:
      UserError: the file is broken or belongs to another network, or `out` has checkpoints or cannot be written;
        nothing is written.
    """
    zoo.select(model)  # raises for an unknown name before a large file is read
    if os.path.exists(os.path.join(out, DIRECTORY)):
        raise UserError(f"{out} holds checkpoints already, and is left as it is. Give another --out=DIR.")
    layers, layer_names, stored = _read(their, file, model)
    entries = mapping.entries_of(their, layers, layer_names)
    arrays = {names.current_name(name): array for name, array in stored.items()}
    norms = {entry.name.removesuffix("running_mean") for entry in entries}
    counters = {
        name: int(array)
        for name, array in arrays.items()
        if name.removesuffix(mapping.COUNTER) in norms and (array.shape, array.dtype) == ((), np.int64)
    }
    rest = {name: array for name, array in arrays.items() if name not in counters}
    variables = mapping.to_variables(entries, rest, file=file, model=model)

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
        checkpoints = Checkpoints(out, keep_newest=1, keep_best=0)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Give another --out=DIR.") from None
    checkpoints.save(state, description)
    checkpoints.close()
    return len(entries), row


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
