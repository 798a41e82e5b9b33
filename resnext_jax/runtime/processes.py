"""Start-up and end of the processes of one run. JAX finds and connects them, and aborts all when one dies."""

import json
import os
import socket
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnext_jax import streams
from resnext_jax.errors import UserError

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator_address", "--num_processes", "--process_id")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # number of processes that an MPI started
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEARTBEAT_TIMEOUT_S = 20  # of silence; then JAX aborts the others with status 134
SAY_AFTER_S = 15.0
LEAVE_S = 10.0
NO_GRPC_PROXY, GRPC_PROXY = "no_grpc_proxy", "grpc_proxy"  # which gRPC reads in lower case


def join(address: str | None, num_processes: int | None, process_id: int | None, timeout_s: float, stops: bool) -> None:
    """Connect the processes of a run; return at once in a lone one. Call it before JAX has any devices.

    Args:
      address: HOST:PORT of process 0. None, as for the next two, takes it from the JAX_* variables, or lets JAX find it
        (Cloud TPU, Slurm, Open MPI, Kubernetes).
      timeout_s: seconds to wait for all processes.
      stops: whether JAX notes a SIGTERM (see `runtime.preemption`); otherwise it ends the process.

    Raises:
      UserError: a value is wrong or missing.
    """
    if timeout_s <= 0:
        raise UserError(f"--join_timeout_s={timeout_s} must be positive: the seconds to wait for the other processes.")
    flags = (address, num_processes, process_id)
    given = [os.environ.get(name) if flag is None else str(flag) for name, flag in zip(NAMES, flags, strict=True)]
    address, count, index = (text or None for text in given)
    # In the shell of `salloc`, Slurm runs one task, but JAX would read the number of tasks of the whole job.
    one_task = os.environ.get("SLURM_STEP_NUM_TASKS") == "1" and "OMPI_MCA_orte_hnp_uri" not in os.environ
    if count == "1" or (one_task and not any(given)):
        return
    host, _, port = address.rpartition(":") if address else (None, None, "1")
    if host == "" or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise UserError(
            f"the coordinator's address {address!r} must be HOST:PORT of process 0, the port from 1 to 65535: set "
            f"{FLAGS[0]} or {NAMES[0]}."
        )
    _avoid_proxies(host)
    jax.config.update("jax_enable_preemption_service", stops)
    line = f"waiting up to {timeout_s:.0f} s (--join_timeout_s) for all processes of this run; then this one aborts"
    notice = threading.Timer(SAY_AFTER_S, print, (line,), {"file": sys.stderr, "flush": True})
    notice.start()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Kubernetes environment detected", UserWarning)  # most pods run alone
            jax.distributed.initialize(
                address,
                int(count) if count else None,
                int(index) if index else None,
                local_device_ids=_local_gpus(),
                cluster_detection_method="deactivate" if all(given) else None,
                coordinator_bind_address=address if host in LOOPBACK else None,
                initialization_timeout=max(1, round(timeout_s)),
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
    except Exception as error:  # from a metadata server, Kubernetes, a variable that is not a number, a port in use
        pod, indexed = "KUBERNETES_SERVICE_HOST" in os.environ, "JOB_COMPLETION_INDEX" in os.environ
        reasons = [f"{name}={os.environ[name]}" for name in MPI_SIZES if os.environ.get(name, "1") != "1"]
        reasons += ["an indexed Kubernetes job: pip install kubernetes"] * (pod and indexed)
        found_nothing = "should be defined" in str(error) or (pod and not indexed)
        if any(given) or reasons or not found_nothing:
            raise UserError(
                f"the processes of this run could not be connected ({'; '.join([*reasons, str(error)])}). Give all of "
                f"{', '.join(FLAGS)} (or {', '.join(NAMES)}) on every process: HOST:PORT of process 0, where the port "
                "is free; the number P of processes; the id of this one in [0, P). For a run of this process alone: "
                "--num_processes=1."
            ) from error
    finally:
        notice.cancel()
    if jax.distributed.is_initialized() and jax.process_count() == 1:
        jax.distributed.shutdown()  # it was started as one of one, and needs no port


def require_alike(facts: Mapping[str, str]) -> None:
    """Compare what must be equal on all processes.

    Args:
      facts: values of this process, by the names that a user knows them by.

    Raises:
      UserError: on every process, with the fields that differ, the processes and their values.
    """
    if jax.process_count() == 1:
        return
    names = [f"process {k}" for k in range(jax.process_count())]
    kinds = [[d.device_kind for d in jax.devices() if d.process_index == k] for k in range(jax.process_count())]
    lines = differences(names, [{"number of devices": str(len(k)), "kind of device": k[0]} for k in kinds])
    if not lines:  # JAX gathers from processes with equally many devices only
        text = np.frombuffer(json.dumps({"host": socket.gethostname(), **facts}).encode(), np.uint8)
        size = int(multihost_utils.process_allgather(np.asarray(text.size, np.int32)).max())
        rows = multihost_utils.process_allgather(np.pad(text, (0, size - text.size)))
        every = [json.loads(row.tobytes().rstrip(b"\0")) for row in rows]
        lines = differences([f"{name} ({own.pop('host')})" for name, own in zip(names, every, strict=True)], every)
    if lines:
        raise UserError("the processes of this run are not alike:", *lines, "Start all of them with the same command.")


def leave(status: int) -> NoReturn:
    """End this process after an error. One of several waits `LEAVE_S` for the others, which may have the same error.

    JAX's own exit waits minutes for processes that may hang, and then aborts with another status.
    """
    if not jax.distributed.is_initialized():
        sys.exit(status)
    waiting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    waiting.start()
    waiting.join(LEAVE_S)
    streams.flush()
    os._exit(status)


def differences(names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Return one line for each field whose values differ, with the processes that have each value."""
    lines = []
    for field in dict.fromkeys(field for own in facts for field in own):
        having: dict[str, list[str]] = {}
        for name, own in zip(names, facts, strict=True):
            having.setdefault(own.get(field, "absent"), []).append(name)
        sides = (f"{value} on {', '.join(who[:4])}{', ...' * (len(who) > 4)}" for value, who in having.items())
        lines += [f"  {field}: {', but '.join(sides)}"] * (len(having) > 1)
    return lines


def _avoid_proxies(host: str | None) -> None:
    """Let gRPC reach the coordinator directly: a proxy leads out of the cluster and not back into it."""
    jax.config.update("jax_check_proxy_envs", False)  # a warning
    if host is None:  # JAX will find it
        os.environ[GRPC_PROXY] = ""
    else:
        os.environ[NO_GRPC_PROXY] = ",".join(filter(None, (os.environ.get(NO_GRPC_PROXY), host.strip("[]"))))


def _local_gpus() -> list[int] | None:
    """Return the GPUs of this Slurm task where JAX would take the wrong ones; None leaves the choice to JAX.

    JAX takes GPU k of those it sees for the k-th task of a host.
    """
    if "SLURM_STEP_TASKS_PER_NODE" not in os.environ or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    visible = [text for text in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if text]
    if len(visible) == 1 or os.environ["SLURM_STEP_TASKS_PER_NODE"].split("(")[0] == "1":
        return list(range(len(visible) or int(os.environ.get("SLURM_GPUS_ON_NODE") or 0))) or None
    return None
