"""Messages between the processes of a run: one JSON object per line, over TCP."""

import json
import socket
import threading
from typing import Any

BEAT_EVERY_S = 5.0
LOST_AFTER_S = 40.0  # of silence; a connection that breaks says so at once
# For a process that has heard of another's end to come to its own, in its own words.
GRACE_S = 5.0
SAVING_GRACE_S = 30.0  # after a preemption
SEND_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 1 << 22
CHUNK_BYTES = 1 << 16


class Wire:
    """One end of a connection. Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(SEND_TIMEOUT_S)
        if connection.family != socket.AF_UNIX:  # process 0 to itself
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._received, self._sending = connection, bytearray(), threading.Lock()

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, kind: str, content: Any = None) -> None:
        """Raises `OSError` where the connection is gone."""
        with self._sending:
            self._connection.sendall(json.dumps([kind, content]).encode() + b"\n")

    def receive(self) -> list[tuple[str, Any]]:
        """The messages that are complete after one more read, which blocks where nothing has come.

        Raises:
          OSError: the connection is gone, or its other end speaks something else.
        """
        chunk = self._connection.recv(CHUNK_BYTES)
        if not chunk:
            raise ConnectionError("its connection closed")
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = rest
        try:
            messages = [json.loads(line) for line in lines]
            if len(rest) > MAX_MESSAGE_BYTES or not all(isinstance(m[0], str) and len(m) == 2 for m in messages):
                raise ValueError("not a message")
        except (ValueError, TypeError, LookupError) as error:
            raise ConnectionError("it speaks another language") from error
        return [(kind, content) for kind, content in messages]

    def close(self) -> None:
        self._connection.close()
