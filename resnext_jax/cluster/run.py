"""The story of a run's processes: joined before anything else, alike, watched, and left with a status."""

import contextlib
import dataclasses
import functools
import logging
import os
import socket
import sys
import time
import traceback
from typing import Any

import jax

from resnext_jax.cluster.find import NAMES, Part, find_part
from resnext_jax.cluster.heartbeats import write_heartbeats
from resnext_jax.cluster.hub import Hub
from resnext_jax.cluster.member import Connection, connect
from resnext_jax.cluster.relay import start_relay
from resnext_jax.cluster.roll_call import Facts
from resnext_jax.cluster.wire import BEAT_EVERY_S, LOST_AFTER_S, Wire
from resnext_jax.errors import Lost, UserError, may_miss_a_process

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# JAX's own limit: later than this program's, which has more to say.
JAX_HEARTBEAT_TIMEOUT_S = 100
CRASH_STATUS = 1
NEWS_TAKE_S = 1.0  # at most, from a process that has closed its connections


@dataclasses.dataclass
class _Run:
    """What this process knows of its run; `connection` and `hub` only where it is one of several."""

    workdir: str | None
    host: str
    connection: Connection | None = None
    hub: Hub | None = None
    process_id: int = 0
    step: int | None = None


_run: _Run | None = None


def join(
    address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    timeout_s: float,
    facts: Facts,
    workdir: str | None,
) -> None:
    """Joins the processes of a run, or notes that this one is alone. To be called once, before JAX has any devices.

    Args:
      address: HOST:PORT of process 0; None, as for the next two, to take it from the environment (`find.find_part`).
      num_processes: of the run.
      process_id: which one this is.
      timeout_s: for all processes to come.
      facts: what must be the same on all of them.
      workdir: where the heartbeats are written; None for a run without one.

    Raises:
      UserError: a value is wrong, or the processes are not alike.
      Lost: process 0 does not answer. Where another is absent, process 0 tells all, and they end at once.
    """
    global _run
    if timeout_s <= 0:
        raise UserError(f"--join_timeout_s={timeout_s} must be positive: the seconds to wait for the other processes.")
    part = find_part(address, num_processes, process_id, timeout_s=timeout_s)
    run = _run = _Run(workdir, socket.gethostname())
    if part is None:
        return
    run.process_id = part.process_id
    if part.process_id == 0:
        run.hub, run.connection = _open_hub(part, run.host, timeout_s)
    else:
        run.connection = connect(part, run.host, timeout_s)
    run.connection.compare(facts)
    _start_jax(part, run.connection, timeout_s)
    devices = jax.local_devices()
    run.connection.compare({"number of devices": str(len(devices)), "kind of device": devices[0].device_kind})


def beat(step: int) -> None:
    """Notes the step that this process is at: the others and `workdir/heartbeats.json` learn of it within seconds."""
    if _run is None:
        return
    first, _run.step = _run.step is None, step
    if _run.connection is not None:
        _run.connection.step = step
    if first and _run.process_id == 0 and _run.workdir:
        write_heartbeats(_run.workdir, _run.hub.last_seen if _run.hub else functools.partial(_lone, _run))


def leave(status: int) -> None:
    """Ends this process with `status`, as the others are told first; returns, at once, only to a lone process."""
    global _run
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if _run is None or _run.connection is None:
        _run = None
        return
    _run.connection.leave(status)
    logging.shutdown()
    # Not by way of JAX, which at a normal end waits at a barrier for processes that may be gone.
    os._exit(status)


def failed(error: Exception) -> None:
    """Ends one of several processes after an unexpected error; returns only to a lone process.

    Where the error is the consequence of another's loss, the message is about that one: the news of it, which end this
    process, may take as long as a frozen machine is given.
    """
    if _run is None or _run.connection is None:
        return
    _run.connection.wait_for_news(LOST_AFTER_S + BEAT_EVERY_S if may_miss_a_process(error) else NEWS_TAKE_S)
    traceback.print_exception(error)
    leave(CRASH_STATUS)


# ------------------------------------------------------------------------------------------------------------ Parts


def _open_hub(part: Part, host: str, timeout_s: float) -> tuple[Hub, Connection]:
    bind = _bind_host(part)
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        listener = socket.create_server(
            (bind, part.port), family=family, backlog=part.num_processes, dualstack_ipv6=bind == "::"
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {part.port} of this host ({error.strerror}): is another run there, or is "
            f"the coordinator another host? Choose another port, for all the same: --coordinator_address, {NAMES[0]}."
        ) from error
    hub_end, own_end = socket.socketpair()
    hub = Hub(listener, hub_end, host, part.num_processes, timeout_s, _say)
    return hub, Connection(Wire(own_end), 0, f"process 0 ({host})")


def _bind_host(part: Part) -> str:
    """Where process 0 listens: on all interfaces, like JAX, unless the run is this machine's own."""
    if address := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return address.rpartition(":")[0].strip("[]")
    if part.host in LOOPBACK:
        return "127.0.0.1" if part.host == "localhost" else part.host
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def _start_jax(part: Part, connection: Connection, timeout_s: float) -> None:
    """Connects JAX's own processes, now that all are known to be there."""
    bind = _bind_host(part)
    if part.process_id == 0:
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        connection.announce_service(port)
        connection.service_port()
        address = f"127.0.0.1:{port}" if bind in ("::", "0.0.0.0") else f"{_bracketed(bind)}:{port}"
    else:
        port = connection.service_port()
        address = f"127.0.0.1:{start_relay(part.host, port, timeout_s)}"
        if any(name.lower().endswith("_proxy") for name in os.environ):
            name = "no_grpc_proxy"  # what leads out of a cluster does not lead back to this machine
            os.environ[name] = ",".join(filter(None, ("127.0.0.1", os.environ.get(name))))
    # JAX's own notice would swallow a SIGTERM from here on; until training listens itself, it shall end the process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            part.num_processes,
            part.process_id,
            local_device_ids=part.local_device_ids,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"{_bracketed(bind)}:{port}",
            initialization_timeout=max(1, round(timeout_s)),
            heartbeat_timeout_seconds=JAX_HEARTBEAT_TIMEOUT_S,
        )
    except jax.errors.JaxRuntimeError as error:
        raise Lost(f"JAX could not connect to its service, port {port} of process 0 ({part.host}): {error}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _lone(run: _Run) -> list[dict[str, Any]]:
    return [{"process": 0, "host": run.host, "step": run.step, "time": time.time()}]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
