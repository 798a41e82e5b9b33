"""One run per workdir at a time: a small file that the run keeps fresh for as long as it lives."""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.files import cannot_write, in_bucket, write_whole

LOCK_FILE = "run.lock"
RENEW_EVERY_S = 10.0
STALE_AFTER_S = 60.0
LOOK_AGAIN_S = 1.0


class Lock:
    """Holds `workdir/run.lock`; a context manager, entered by the first process of a run alone.

    The file names its process. A lock of this machine whose process is gone is taken over at once. One of another
    machine, or of another container, is taken over when it has not been renewed for a minute; a run renews its own
    every ten seconds. A bucket has no exclusive creation: of two runs that start there within one second, the one whose
    file was overwritten ends.

    Args:
      workdir: of the run.
      say: takes a line where there is something to wait for.

    Raises:
      UserError: another run holds the lock.
    """

    def __init__(self, workdir: str, say: Callable[[str], None]):
        self._workdir, self._say = workdir, say
        self._path = epath.Path(workdir) / LOCK_FILE
        started = {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": uuid.uuid4().hex, "renewed": 0}
        self._own: dict[str, Any] = _this_process() | started
        self._taken_by: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="workdir lock", daemon=True)

    def __enter__(self) -> "Lock":
        self._await_free()
        self._claim()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets others have the workdir; what `with` does at its end."""
        self._stop.set()
        self._thread.join()
        if self._is_ours(self._read()):
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises UserError where another run has taken the lock: this one was thought dead, and must not write."""
        if self._taken_by is not None:
            raise self._refused(self._taken_by)

    def _await_free(self) -> None:
        seen, since_s = None, time.monotonic()
        while (holder := self._read()) is not None:
            if holder.get("kernel") == self._own["kernel"]:
                if _is_alive(holder):
                    raise self._refused(holder)
                return
            if seen is not None and holder != seen:
                raise self._refused(holder)
            if time.monotonic() - since_s > STALE_AFTER_S or self._age_s() > STALE_AFTER_S:
                return
            if seen is None:
                self._say(f"{self._path} is of {_name(holder)}; waiting a minute whether that run is still alive")
            seen = holder
            time.sleep(LOOK_AGAIN_S)

    def _claim(self) -> None:
        try:
            if not in_bucket(self._workdir):
                with Path(self._path).open("x") as file:
                    file.write(json.dumps(self._own))
                return
        except FileExistsError:
            pass
        except OSError as error:
            raise cannot_write(self._path, error) from error
        write_whole(self._path, json.dumps(self._own))
        time.sleep(LOOK_AGAIN_S)  # another may have found it free at the same moment: the last who wrote has it
        holder = self._read()
        if not self._is_ours(holder):
            raise self._refused(holder or {})

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_EVERY_S):
            try:
                holder = self._read()
                if holder is not None and not self._is_ours(holder):
                    self._taken_by = holder
                    return
                self._own["renewed"] += 1
                write_whole(self._path, json.dumps(self._own))
            except (OSError, UserError):
                continue  # a network file system or a full disk may recover; others wait for a minute

    def _read(self) -> dict[str, Any] | None:
        """What the file holds: None where there is none, nothing where it is being written."""
        try:
            holder = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _age_s(self) -> float:
        """Since the lock was renewed, by the clock of the file system; 0 where it does not tell."""
        probe = self._path.parent / f".{LOCK_FILE}.{self._own['token']}"
        try:
            write_whole(probe, "now")
            if not in_bucket(self._workdir):
                return os.stat(probe).st_mtime - os.stat(self._path).st_mtime
            now_s, renewed_s = probe.stat().mtime, self._path.stat().mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink(missing_ok=True)
        return float(now_s - renewed_s) if now_s and renewed_s else 0.0

    def _is_ours(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder.get("token") == self._own["token"]

    def _refused(self, holder: dict[str, Any]) -> UserError:
        return UserError(
            f"another run is at work in {self._workdir}: {_name(holder)}. Two runs must not write into one workdir: "
            "wait for it or end it, or give this one another --workdir. (A run that is gone stops nobody: its lock is "
            f"taken over after {STALE_AFTER_S:.0f} s at most.)"
        )


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"


def _this_process() -> dict[str, Any]:
    """The process, and what it shares with those whose process numbers it can see."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        kernel = f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux: process numbers are those of the machine
        kernel = platform.node()
    return {"host": platform.node(), "kernel": kernel, "pid": os.getpid(), "started": _started(os.getpid())}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process of a lock of this machine runs: the number alone may belong to another by now."""
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(pid) == holder.get("started")


def _started(pid: int) -> str | None:
    """When a process began, in ticks of its machine; None where the system does not tell, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
