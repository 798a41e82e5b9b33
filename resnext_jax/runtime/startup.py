"""What a command sets up before anything else (compiled programs, logging), and the versions of what it runs."""

import hashlib
import importlib.metadata
import logging
import os
import platform
import sys
import zlib
from pathlib import Path
from typing import Any

import jax

from resnext_jax.progress import AboveProgress

PACKAGE = Path(__file__).resolve().parents[1]


def keep_compiled(directory: str | None) -> None:
    """Compiled programs outlive the process: the second start of a run loads them.

    Args:
      directory: where; "" for nowhere. By default JAX_COMPILATION_CACHE_DIR where it is set, or a directory of this
        user: what lies there is run, so that it must not be anybody else's to write.
    """
    if directory is None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "resnext_jax"
        if str(cache).startswith("~"):
            return  # a user without a home and without a name
        # JAX does not ask on which processor a program for the CPU was compiled.
        directory = str(cache / f"compiled-{platform.machine()}-{_processor():08x}")
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError:
            return  # a home that cannot be written to is no reason to stop
    if directory is not None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory) or None)


def _processor() -> int:
    """A number for what the processor can do; 0 where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return 0
    return zlib.crc32("".join(sorted({line for line in lines if line.startswith(("flags", "Features"))})).encode())


def versions() -> dict[str, str]:
    """Of the packages that the numbers of a run depend on."""
    packages = ("resnext_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def source_digest(root: Path = PACKAGE) -> str:
    """Return twelve digits that change with every line of this package."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def quiet_logging() -> None:
    """Orbax and JAX tell a lot; warnings are enough beside a progress line, and on lines of their own."""
    # Importing Orbax leaves a handler that writes on the progress line. One of another kind is meant.
    if all(type(handler) is logging.StreamHandler for handler in logging.getLogger().handlers):
        logging.basicConfig(handlers=[AboveProgress(logging.WARNING)], format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("jax").setLevel(logging.WARNING)
    # An error in a thread of orbax is raised to us and reported in a sentence. Of several errors only the first is
    # read; asyncio would print a traceback for each of the others.
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


def environment() -> dict[str, Any]:
    """Return versions, devices and the command: what one needs to know to run it again."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }
