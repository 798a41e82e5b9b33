"""cluster/relay.py: what goes to the service and back, and the silence after its end."""

import socket
import threading

import pytest

from resnext_jax.cluster.relay import start_relay


def test_bytes_go_both_ways_and_the_end_of_the_service_is_hidden():
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = start_relay("127.0.0.1", service.getsockname()[1], connect_timeout_s=5)
        near = socket.create_connection(("127.0.0.1", port), timeout=5)
        far, _ = service.accept()
    near.sendall(b"question")
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    assert near.recv(100) == b"answer"
    far.close()
    near.settimeout(0.3)
    with pytest.raises(TimeoutError):
        near.recv(100)
    for _ in range(3):
        near.sendall(b"is anybody there?")
    with pytest.raises(TimeoutError):
        near.recv(100)
    near.close()


def test_a_service_that_starts_later_is_reached():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()
    port = start_relay(*address, connect_timeout_s=10)
    near = socket.create_connection(("127.0.0.1", port), timeout=10)
    near.sendall(b"early")
    services = []
    timer = threading.Timer(0.3, lambda: services.append(socket.create_server(address)))
    timer.start()
    timer.join()
    with services[0], services[0].accept()[0] as far:
        assert far.recv(100) == b"early"
    near.close()
