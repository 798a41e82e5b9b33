"""The directory that is written to: by one run at a time, on from what an earlier one left, each file whole or not."""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from resnext_jax.data.prepare.shards import ShardDone
from resnext_jax.data.records import MANIFEST, UNFINISHED, File
from resnext_jax.errors import UserError

# ---- one run at a time


@contextlib.contextmanager
def locked(out: str) -> Iterator[None]:
    """Makes the directory, and within no other run writes to it; the lock ends with its process, however that ends.

    In a bucket there are no locks, and none is needed for what is written to be right: an object appears whole, and
    the same images give the same bytes. Two runs would do the work twice.

    Raises:
      UserError: another run writes to it, or it cannot be made.
    """
    if "://" in out:
        yield
        return
    try:
        os.makedirs(out, exist_ok=True)
        directory = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error.strerror}. Give another --out.") from None
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another prepare command is writing to {out}. Wait until it has ended (this one finds its shards "
                "finished then), or give another --out."
            ) from None
        except OSError as error:  # some network file systems
            print(f"note: {out} cannot be locked ({error.strerror}): start no second prepare command on it")
        yield
    finally:
        os.close(directory)


# ---- what an earlier run left


def require_same(out: str, found: tuple[str, dict], wanted: tuple[str, dict]) -> None:
    """Raises UserError where the directory holds another (name, settings) than is wanted."""
    if found != wanted:
        pairs = {"name": (found[0], wanted[0])}
        pairs |= {key: (found[1].get(key), value) for key, value in wanted[1].items()}
        differ = [
            "of other images, or of other classes" if key == "list_sha256" else f"{key} {there!r} there, {now!r} now"
            for key, (there, now) in pairs.items()
            if there != now
        ]
        raise UserError(
            f"{out} holds another preparation ({'; '.join(differ)}). Give another --out, or remove that directory."
        )


def read_unfinished(out: str, name: str, settings: dict[str, Any]) -> dict[str, ShardDone]:
    """The shards that an earlier run of the same job finished, by their names.

    Raises:
      UserError: it was another job, or what it left cannot be read.
    """
    path = epath.Path(out) / UNFINISHED
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        found = [
            ShardDone(
                File(**shard["file"]),
                tuple((position, reason) for position, reason in shard["skipped"]),
                shard["source_bytes"],
                tuple((levels, decibel) for levels, decibel in shard["fidelity"]),
            )
            for shard in content["shards"]
        ]
        require_same(out, (content["name"], content["settings"]), (name, settings))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Remove {out}, then start again.") from None
    return {shard.file.file: shard for shard in found}


def write_unfinished(out: str, name: str, settings: dict[str, Any], done: Iterable[ShardDone]) -> None:
    """Keeps what `read_unfinished` reads."""
    shards = [{**dataclasses.asdict(shard), "file": shard.file._asdict()} for shard in done]
    write_text(epath.Path(out) / UNFINISHED, json.dumps({"name": name, "settings": settings, "shards": shards}))


def require_ours(out: str) -> None:
    """Raises UserError where the directory holds something that no run of this command wrote."""
    directory = epath.Path(out)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{out} is a file. Give a new or an empty directory with --out.")
    if not directory.exists() or any((directory / file).exists() for file in (MANIFEST, UNFINISHED)):
        return
    others = sorted(path.name for path in directory.iterdir() if ".tmp-" not in path.name)
    if others:
        raise UserError(
            f"{out} is not empty (it holds {others[0]}) and was not written by this command. Give a new or an empty "
            "directory with --out."
        )


# ---- writing


def write_text(path: epath.Path, text: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file whole or not at all; a bucket does that by itself.

    Raises:
      UserError: it cannot be written.
    """
    remote = "://" in str(path)
    failures = (Exception,) if remote else (OSError,)  # a bucket's library raises errors of its own
    written = path if remote else path.parent / f".{path.name}.tmp-{os.getpid()}"
    try:
        written.write_bytes(content)
        if written != path:
            written.replace(path)
    except failures as error:
        if written != path:
            written.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} could not be written: {reason}. Make room (or mend the place), then run the same command again: "
            "finished shards are not written again."
        ) from None
