"""One run per workdir at a time: a small file that the run renews while it lives."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.files import in_bucket, write_whole
from resnext_jax.json_files import WHOLE, parse_json

RENEW_EVERY_S, STALE_AFTER_S, LOOK_AGAIN_S = 10.0, 60.0, 1.0
HOLDER = {"token": str, "host": str, "pid": WHOLE, "since?": str, "machine?": (str, None), "command?": str}


class Lock:
    """Holds `workdir/run.lock` as a context manager; UserError if another run holds it. `say` takes a line for people.

    A lock is taken over at once if its process on this machine is gone, otherwise after a minute without renewal.
    """

    def __init__(self, workdir: str, say: Callable[[str], None]):
        self._workdir, self._say, self._path = workdir, say, epath.Path(workdir) / "run.lock"
        who = {"host": os.uname().nodename, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        boot, pids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")  # shared with whom /proc shows
        machine = f"{boot.read_text().strip()}/{pids.stat().st_ino}" if boot.exists() else None
        self._own = who | {"machine": machine, "command": "\0".join([*sys.orig_argv, ""]), "token": os.urandom(8).hex()}
        self._taken_by, self._stop, self._thread = None, Event(), Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lock":
        first = other = self._other()
        until_s = time.monotonic() + STALE_AFTER_S
        if first and self._own["machine"] and first.get("machine") == self._own["machine"]:
            commands = [os.fsdecode(path.read_bytes()) for path in Path("/proc").glob(f"{first['pid']}/cmdline")]
            if commands == [first.get("command")]:  # not a dead one, nor another process that has its number now
                raise self._refused(first)
            until_s = 0.0
        elif first:
            self._say(f"{self._path}: waiting a minute to see whether the run on {first.get('host', '?')} is alive")
        while time.monotonic() < until_s and (other := self._other()):
            if other != first:
                raise self._refused(other)
            time.sleep(LOOK_AGAIN_S)
        if not first and not in_bucket(self._workdir):
            try:
                Path(self._path).touch(exist_ok=False)
            except FileExistsError:
                raise self._refused(self._other() or {}) from None
        write_whole(self._path, json.dumps(self._own))
        if first or in_bucket(self._workdir):
            time.sleep(LOOK_AGAIN_S)  # of two that start now, the last one that writes has the lock
            self.check()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self._other():
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise UserError if another run has taken the lock: this one was thought dead, and must not write."""
        self._taken_by = self._taken_by or self._other()
        if self._taken_by:
            raise self._refused(self._taken_by)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_EVERY_S):
            with contextlib.suppress(OSError, ValueError, UserError):  # a file system may recover
                self.check()
                write_whole(self._path, json.dumps(self._own | {"renewed": time.time()}))

    def _other(self) -> dict | None:
        try:
            holder = parse_json(self._path.read_bytes(), HOLDER)
        except FileNotFoundError:
            return None
        except ValueError:  # empty while it is created, or damaged: an unknown run, which may still renew it
            holder = {}
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be read: {error.strerror or error}. It says whether another run is at work in "
                "that workdir: make it readable, or give another --workdir."
            ) from error
        return None if holder.get("token") == self._own["token"] else {"token": "", **holder}

    def _refused(self, other: dict) -> UserError:
        return UserError(
            f"another run is at work in {self._workdir}: process {other.get('pid', '?')} on {other.get('host', '?')}, "
            f"since {other.get('since', '?')}. Two runs must not write into one workdir: wait for it, or end it, or "
            f"give another --workdir. (The lock of a dead run is taken over after {STALE_AFTER_S:.0f} s at most.)"
        )
