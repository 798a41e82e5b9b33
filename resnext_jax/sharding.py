"""Where everything lives: one mesh axis over all devices, the batch split along it, everything else everywhere.

The only file that spells an axis name.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from resnext_jax.errors import UserError
from resnext_jax.types import PyTree

DATA_AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run runs; asked once, by `cli`.

    Attributes:
      mesh: over all devices of all processes.
      platform: "cpu", "gpu" or "tpu".
      chip: which one; see `ops.conv_choice.chip_of`.
      process_index, process_count: this process, of how many. The primary one (0) prints and writes the files.
    """

    mesh: Mesh
    platform: str
    chip: str = ""
    process_index: int = 0
    process_count: int = 1

    @property
    def is_primary(self) -> bool:
        return self.process_index == 0


def raise_if_any(place: Place, own: UserError | None) -> None:
    """Raise on every process where one has found a mistake, so that none waits for the others. A barrier for all.

    Args:
      own: error that this process found; None for none.

    Raises:
      UserError: `own`, or a sentence that names the process that has one.
    """
    if place.process_count > 1:
        failed = multihost_utils.process_allgather(np.asarray(own is not None))
        if own is None and failed.any():
            names = ", ".join(str(index) for index in np.flatnonzero(failed))
            raise UserError(f"process {names} stopped with an error of its own: see what it printed, and fix it there.")
    if own is not None:
        raise own


def from_first_process(place: Place, value: int) -> int:
    """The value that process 0 has, on every process."""
    if place.process_count == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def from_all(place: Place, values: Sequence[int]) -> Int[np.ndarray, "process value"]:
    """The values of every process, below 2 ** 31, on every process."""
    own = np.asarray(values, np.int32)
    return np.asarray(multihost_utils.process_allgather(own)) if place.process_count > 1 else own[None]


def all_devices() -> list[Any]:
    """Return the devices of all processes.

    Raises:
      UserError: JAX finds none, because it was told to look for others, for example.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that it has found one
        reason = next(iter(str(error).splitlines()), "there is none")
        raise UserError(
            f"JAX cannot use a device here ({reason}): JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}. Set it "
            "to a platform of this machine (JAX_PLATFORMS=cpu always is), or install JAX for the "
            "device."
        ) from error


def gather_bytes(place: Place, content: bytes) -> list[bytes]:
    """The bytes that each process has, on every process."""
    if place.process_count == 1:
        return [content]
    lengths = from_all(place, [len(content)])[:, 0].tolist()
    own = np.zeros(max(lengths), np.uint8)
    own[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(own))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """One axis over `devices`, in their order. Auto axes: the partitioner follows the shardings of the arguments."""
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension split over the devices: consecutive images on one device, as batch-norm groups like it."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: parameters, statistics, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def sum_over_devices(function: Callable[[PyTree, PyTree], PyTree], mesh: Mesh) -> Callable[[PyTree, PyTree], PyTree]:
    """`function(everywhere, rows)` on the rows of every device by itself, its results added up over the devices.

    The compiler sees the program of one device, without a dimension to split: on a TPU that saves passes over memory.
    """

    def on_one_device(everywhere: PyTree, rows: PyTree) -> PyTree:
        return jax.lax.psum(function(everywhere, rows), DATA_AXIS)

    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(DATA_AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,  # the custom gradients of ops know nothing of varying axes
    )


def check_batch_size(name: str, batch_size: int, num_devices: int) -> list[str]:
    """The problems of a global batch on this many devices: an empty list, or one complete sentence."""
    if batch_size >= 1 and batch_size % num_devices == 0:
        return []
    below = abs(batch_size) // num_devices * num_devices  # -8 is a slip for 8
    sizes = [below, below + num_devices] if batch_size > 0 else [max(below, num_devices)]
    allowed = " or ".join(str(size) for size in sizes if size > 0)
    return [
        f"{name}={batch_size} does not divide over {num_devices} devices: it must be a positive multiple of "
        f"{num_devices}; try --config.{name}={allowed}."
    ]


def to_global(mesh: Mesh, local: PyTree) -> PyTree:
    """Puts the rows that this process holds on its devices, as its part of the global batch.

    With P processes the global batch is the P local ones one after the other, in the order of the processes.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)


def put_replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copies host arrays, equal on every process, to every device."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)
