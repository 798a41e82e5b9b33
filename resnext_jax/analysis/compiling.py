"""The training step of a config, lowered and compiled for devices that need not exist."""

import copy
import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from resnext_jax import sharding
from resnext_jax.analysis.chips import Chip
from resnext_jax.errors import UserError
from resnext_jax.ops.conv_choice import chip_of
from resnext_jax.train.classification import Classification
from resnext_jax.types import DatasetInfo

# Images of the training set (they set the length of an epoch) and classes: no data is needed.
DATASETS = {
    "builtin": (15_000, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "fashion_mnist": (60_000, 10),
    "imagenet2012": (1_281_167, 1000),
    "imagenet5k": (6_800_000, 5000),
    "synthetic": (10_000, 1000),
}
# How the compiler refuses a program that is too large: "Used 17.32G of 15.75G hbm", or early, where it is far too
# large, "memory required for HLO temporaries (589.45G) exceeds available HBM (15.75G)".
TOO_LARGE = ("RESOURCE_EXHAUSTED", "Ran out of memory")
USED_BYTES = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """One compile of a step; memory is per device and the compiler's estimate."""

    compile_s: float  # on this machine
    fits: bool  # whether the program fits the device's memory
    peak_hbm_bytes: int | None  # arguments, results, temporaries and the program; None if a refusal has no figure
    refusal: str | None = None  # the compiler's message about a program that is far too large


def dataset_info(name: str) -> DatasetInfo:
    """Return the facts of a training set without opening it; raise UserError if only its files have them."""
    if name not in DATASETS:
        raise UserError(
            f"the number of classes of data.name={name!r} is only known from its files; compile for a set of about its "
            f"size, one of {', '.join(DATASETS)}: --config.data.name=imagenet2012"
        )
    num_images, num_classes = DATASETS[name]
    return DatasetInfo(name, num_images, tuple(map(str, range(num_classes))), None)


def with_impl(config: Any, conv_impl: str) -> Any:
    """Return a copy of the config with this `conv_impl`."""
    config = copy.deepcopy(config)
    config.conv_impl = conv_impl
    return config


def task_of(config: Any, devices: Sequence[Any]) -> tuple[Classification, sharding.Place]:
    """Return what `train.loop` trains for a config, on all `devices`; nothing is compiled or allocated yet.

    Raises:
      UserError: an unknown network or algorithm, or a config that cannot work on so many devices.
    """
    place = sharding.Place(sharding.make_mesh(devices), devices[0].platform, chip_of(devices[0].device_kind))
    return Classification(config, place, dataset_info(config.data.name)), place


def lower_training_step(config: Any, devices: Sequence[Any]) -> jax.stages.Lowered:
    """Lower the training step that `train.loop` runs, for all `devices`, which need not exist; see `task_of`."""
    task, _ = task_of(config, devices)
    return task.train_step.lower(task.state_shapes(), task.batch_shapes())


def compile_for(chip: Chip, lowered: Any) -> tuple[Program, Any]:
    """Compile a lowered step; return its facts and the `jax.stages.Compiled`, None if it is refused for its size."""
    start = time.perf_counter()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not any(words in str(error) for words in TOO_LARGE):
            raise
        return Program(time.perf_counter() - start, False, used_bytes(str(error)), str(error).splitlines()[0]), None
    compile_s = time.perf_counter() - start
    memory = executable.memory_analysis()
    peak_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak_bytes += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return Program(compile_s, peak_bytes <= chip.hbm_bytes, peak_bytes), executable


def used_bytes(refusal: str) -> int | None:
    """Return what a refused program would use, by the compiler's message.

    Example:
      >>> used_bytes("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.50G of 1.00G hbm.")
      1610612736
    """
    found = USED_BYTES.search(refusal)
    return round(float(found[1]) * UNITS[found[2]]) if found else None
