"""Which process of which run this is: from flags, the JAX_* variables, or the cluster that JAX knows how to read."""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

from resnext_jax.errors import UserError, raise_all

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator_address", "--num_processes", "--process_id")
ALONE = "For a run of this process alone: --num_processes=1."
MAX_PORT = 65535


@dataclasses.dataclass(frozen=True)
class Part:
    """This process's part in a run of several.

    Attributes:
      host, port: where process 0 is found.
      num_processes, process_id: how many, and which of them this is.
      local_device_ids: the GPUs that are this process's; None for all that it sees.
    """

    host: str
    port: int
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None


def find_part(
    address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_s: float,
) -> Part | None:
    """This process's part; None for a lone one.

    Args:
      address: HOST:PORT of process 0. These three come from the flags, and win over the environment.
      num_processes, process_id: how many, and which of them.
      timeout_s: for the name of process 0's host to be known.

    Raises:
      UserError: a value that cannot be, or one that is missing where others are given.
    """
    given = _given(address, num_processes, process_id)
    if given[1] == "1":
        return None
    found: tuple[Any, ...] = (*given, None)
    if None in given:
        if any(given) or not _is_single_task():
            found = _detect(given, timeout_s)
        if found[:3] == (None, None, None):
            _refuse_unknown_launcher()
            return None
        missing = [name for name, value in zip(NAMES, found[:3], strict=True) if value is None]
        if missing:
            raise UserError(
                f"several processes are started with {', '.join(NAMES)} all set; {', '.join(missing)} is not. "
                f"Set them, or give {', '.join(FLAGS)}."
            )
    part = _checked(*found)
    return part if part.num_processes > 1 else None


def _given(
    address: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str | None, str | None, str | None]:
    flags = (address, num_processes, process_id)
    texts = [os.environ.get(name) if flag is None else str(flag) for name, flag in zip(NAMES, flags, strict=True)]
    address, count, index = (text or None for text in texts)
    return address, count, index


def _is_single_task() -> bool:
    """Whether Slurm runs this step as one task, whatever the job around it is: `salloc`, `srun --ntasks=1`.

    JAX reads the tasks of the job, and would wait for processes that nobody starts.
    """
    under_mpi = "OMPI_MCA_orte_hnp_uri" in os.environ
    return os.environ.get("SLURM_STEP_NUM_TASKS") == "1" and not under_mpi


def _refuse_unknown_launcher() -> None:
    """Several lone processes would write one workdir."""
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")):
        if os.environ.get(size, "1") != "1":
            raise UserError(
                f"{size}={os.environ[size]}: MPI started several processes, but not how they find each other. Give "
                f"--coordinator_address=HOST:PORT (of process 0) --num_processes=${size} --process_id=${rank}. {ALONE}"
            )
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        raise UserError(
            "this is a pod of an indexed Kubernetes job, whose other pods are found with the package kubernetes: "
            f"pip install kubernetes, or give {', '.join(FLAGS)}. {ALONE}"
        )


def _detect(given: tuple[str | None, str | None, str | None], timeout_s: float) -> tuple[Any, ...]:
    """(address, number, id, GPUs) with what was not given taken from Open MPI, Slurm, Cloud TPU or Kubernetes."""
    # Private, since JAX detects in public only inside `jax.distributed.initialize`, which then waits for processes
    # that may never come. The one place where this program reaches into JAX for its processes.
    from jax._src.clusters import ClusterEnv

    local_device_ids = [int(text) for text in os.environ.get("JAX_LOCAL_DEVICE_IDS", "").split(",") if text]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Kubernetes environment detected", UserWarning)  # a pod is no cluster yet
            detect: Any = ClusterEnv.auto_detect_unset_distributed_params  # hands what is given through as it is
            found = detect(*given, local_device_ids or None, None, int(timeout_s))
    except Exception as error:  # of whatever JAX asked: a metadata server, Kubernetes, a variable that is no number
        if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ:
            return (None, None, None, None)  # a pod, but none of an indexed job
        raise UserError(
            f"the other processes of this run could not be found from the environment ({error}). Give "
            f"{', '.join(FLAGS)} on every host. {ALONE}"
        ) from error
    return found if local_device_ids else (*found[:3], _own_devices(found[3]))


def _own_devices(detected: Sequence[int] | None) -> Sequence[int] | None:
    """JAX gives GPU k to the k-th task of a host; all of them where a task has the host, or its GPUs, to itself."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0]
    visible = [text for text in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if text]
    return None if tasks == "1" or len(visible) == 1 else detected


def _checked(address: Any, num_processes: Any, process_id: Any, local_device_ids: Sequence[int] | None) -> Part:
    host, _, port = str(address).rpartition(":")
    count, index = (int(text) if str(text).isdecimal() else -1 for text in (num_processes, process_id))
    problems = []
    if not host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
        problems.append(
            f"the coordinator's address {address!r} must be HOST:PORT of process 0, the port from 1 to {MAX_PORT}: "
            f"set {NAMES[0]} or {FLAGS[0]}."
        )
    if not 0 <= index < count:
        problems.append(
            f"{NAMES[1]}={str(num_processes)!r} and {NAMES[2]}={str(process_id)!r} ({FLAGS[1]}, {FLAGS[2]}): P whole "
            "and positive, and the id of this process in [0, P)."
        )
    raise_all(problems)
    return Part(host.strip("[]"), int(port), count, index, local_device_ids)
