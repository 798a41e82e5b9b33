"""A loopback stand-in for the coordination service of JAX, which dies with process 0.

A JAX client whose service closes the connection ends its process at once, in C++, with a page of its own words and
before anybody else can say what happened. Through the relay it sees silence instead, which it bears for longer
(`heartbeat_timeout_seconds` of `jax.distributed.initialize`) than this program needs to say it.
"""

import contextlib
import socket
import threading
import time

from resnext_jax.cluster.wire import CHUNK_BYTES

RETRY_EVERY_S = 0.1


def start_relay(host: str, port: int, connect_timeout_s: float) -> int:
    """Forwards every connection to a port of this machine, which it returns, to `host:port`.

    Args:
      host, port: of the service.
      connect_timeout_s: for as long it is tried, since the service may start a moment later.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    _in_background(_accept, listener, host, port, connect_timeout_s)
    return listener.getsockname()[1]


def _accept(listener: socket.socket, host: str, port: int, connect_timeout_s: float) -> None:
    while True:
        near, _ = listener.accept()
        _in_background(_forward, near, host, port, connect_timeout_s)


def _forward(near: socket.socket, host: str, port: int, connect_timeout_s: float) -> None:
    deadline_s = time.monotonic() + connect_timeout_s
    while True:
        try:
            far = socket.create_connection((host, port), timeout=connect_timeout_s)
            if far.getsockname() != far.getpeername():  # with itself, as TCP may where nobody listens yet
                break
            far.close()
        except OSError:
            if time.monotonic() > deadline_s:
                near.close()
                return
            time.sleep(RETRY_EVERY_S)
    far.settimeout(None)
    for connection in (near, far):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = _in_background(_pump, far, near)
    _pump(near, far)
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)
    back.join()
    near.close()  # only now, when the near end has closed: it shall not learn that the far end is gone
    far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until the source ends; what the sink no longer takes is thrown away."""
    while True:
        try:
            data = source.recv(CHUNK_BYTES)
        except OSError:
            return
        if not data:
            return
        with contextlib.suppress(OSError):
            sink.sendall(data)


def _in_background(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True, name=f"relay {function.__name__}")
    thread.start()
    return thread
