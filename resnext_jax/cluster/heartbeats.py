"""`workdir/heartbeats.json`: where every process of the run was a moment ago, for people and scripts that look."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from etils import epath

from resnext_jax.files import write_whole

FILE = "heartbeats.json"
WRITE_EVERY_S = 10.0


def write_heartbeats(workdir: str, last_seen: Callable[[], list[dict[str, Any]]]) -> None:
    """Writes the file now and then, from a thread of its own: a file system that hangs holds up nothing else.

    Args:
      workdir: of the run.
      last_seen: the id, host, step and time (seconds since 1970) of every process.
    """
    threading.Thread(
        target=_write, args=(epath.Path(workdir) / FILE, last_seen), daemon=True, name="heartbeats"
    ).start()


def _write(path: epath.Path, last_seen: Callable[[], list[dict[str, Any]]]) -> None:
    while True:
        processes = [
            {**seen, "time": datetime.fromtimestamp(seen["time"], UTC).isoformat(timespec="seconds")}
            for seen in last_seen()
        ]
        # A full disk stops the run where something is lost by it; a bucket's client has errors of its own.
        with contextlib.suppress(Exception):
            write_whole(path, json.dumps({"processes": processes}, indent=2) + "\n")
        time.sleep(WRITE_EVERY_S)
