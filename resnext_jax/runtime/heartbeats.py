"""`workdir/heartbeats.json`: the last step and its time, for people and scripts that watch a run."""

import contextlib
import json
import socket
import time
from datetime import UTC, datetime

from etils import epath

from resnext_jax.files import write_whole

WRITE_EVERY_S = 10.0


class Heartbeats:
    """Writes the file of a run, in the primary process."""

    def __init__(self, workdir: str):
        self._path, self._due_s = epath.Path(workdir) / "heartbeats.json", 0.0

    def beat(self, step: int) -> None:
        """Write the step that was just made, at most every `WRITE_EVERY_S`."""
        if time.monotonic() < self._due_s:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"processes": [{"process": 0, "host": socket.gethostname(), "step": step, "time": now}]}
        # A disk that is full stops the run where something is lost by it. A bucket's client has errors of its own.
        with contextlib.suppress(Exception):
            write_whole(self._path, json.dumps(content, indent=2) + "\n")
        self._due_s = time.monotonic() + WRITE_EVERY_S
