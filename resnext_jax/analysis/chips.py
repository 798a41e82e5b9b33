"""TPU generations as data, and the devices of a TPU that need not exist, to compile for."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from resnext_jax.errors import UserError, unknown
from resnext_jax.runtime.chips import PEAK_BF16_FLOPS_PER_S

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a TPU generation: a chip, on v3 one of its two cores (which are devices of their own).

    Rates are those of Google's documentation. The clock is the one at which the matrix units reach them.
    """

    name: str  # generation, such as "v5e"
    hbm_bytes_per_s: float  # peak rate to and from memory
    hbm_bytes: int  # memory that the compiler lets a program have
    clock_hz: float  # turns `estimated_cycles` into seconds
    topologies: tuple[str, ...]  # usual ones, for messages
    device: str = "chip"  # or "core"
    options: dict[str, str] = dataclasses.field(default_factory=dict)  # for the compiler

    @property
    def bf16_flops_per_s(self) -> float:
        return PEAK_BF16_FLOPS_PER_S[self.name]

    @property
    def devices_per_chip(self) -> int:
        return 2 if self.device == "core" else 1


SQUARES = ("1x1", "2x2", "2x4", "4x4", "8x8", "16x16")
CUBES = ("2x2x1", "2x2x2", "4x4x4")
MEGACORE = {"chip_config_name": "megacore"}  # the two cores of a chip are one device, as on a real v4
ROWS = (
    Chip("v3", 450e9, int(15.48 * GIB), 0.94e9, ("2x2", "4x4", "8x8"), device="core"),
    Chip("v4", 1228e9, int(30.75 * GIB), 1.05e9, CUBES, options=MEGACORE),
    Chip("v5e", 819e9, int(15.75 * GIB), 1.50e9, SQUARES),
    Chip("v5p", 2765e9, int(95.73 * GIB), 1.75e9, CUBES),
    Chip("v6e", 1640e9, int(31.24 * GIB), 1.75e9, SQUARES),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in ROWS}
KNOWN = tuple(f"{name}:{shape}" for name, chip in CHIPS.items() for shape in chip.topologies)


def open_topology(name: str) -> tuple[Chip, list[Any]]:
    """Return the chip and the devices of `v5e:2x4`, GENERATION:CHIPSxCHIPS[xCHIPS].

    Raises:
      UserError: no such topology, or the TPU compiler is not installed.
    """
    found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*){1,2})", name)  # libtpu crashes for a size of 0
    if found is None or found[1] not in CHIPS:
        raise UserError(f"{unknown('topology', name, KNOWN)} Other sizes of these generations are allowed too.")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler (libtpu) is not installed; it needs no TPU, only the package: pip install -e '.[tpu]'"
        )
    # Nothing is run: do not ask the cloud's metadata server which TPU this machine is, nor lock the TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chip = CHIPS[found[1]]
    # Older compilers expect four chips per host.
    options = chip.options | ({"chips_per_host_bounds": [1, 1, 1]} if found[2] == "1x1" else {})
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{unknown('topology', name, KNOWN)} The compiler says: {error}") from error
    return chip, list(topology.devices)
