"""The output directory: locked by one command, continued from what an earlier one left, written file by file."""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from resnext_jax.data.prepare.shards import ShardDone, writing
from resnext_jax.data.records import FILE, MANIFEST, UNFINISHED, file_of, size_problem
from resnext_jax.errors import UserError
from resnext_jax.files import in_bucket, replace_file
from resnext_jax.json_files import WHOLE, read_json, shown

PAIRS = {"skipped": [[(WHOLE, str)]], "fidelity": [[float]]}  # forms of JSON values
CONTENT = {"name": str, "settings": dict, "shards": [{"file": FILE, "source_bytes": WHOLE, **PAIRS}]}


@contextlib.contextmanager
def locked(out: str) -> Iterator[None]:
    """Makes the directory and keeps other commands from writing to it until this process ends.

    A bucket has no locks. There, two commands do the work twice and write the same bytes.

    Raises:
      UserError: another command writes to it, or it cannot be made.
    """
    if in_bucket(out):
        yield
        return
    try:
        os.makedirs(out, exist_ok=True)
        directory = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error.strerror}. Give another --out.") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(directory)
        raise UserError(
            f"another prepare command is writing to {out}. Wait until it has ended (this one finds its shards "
            "finished then), or give another --out."
        ) from None
    except OSError as error:  # some network file systems
        print(f"note: {out} cannot be locked ({error.strerror}): start no second prepare command on it")
    try:
        yield
    finally:
        os.close(directory)


def require_same(out: str, found: tuple[str, dict], wanted: tuple[str, dict]) -> None:
    """Raises UserError if the (name, settings) of the directory differ from those that are wanted."""
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
    """Return the shards that an earlier run finished, by file name; raises UserError if it was another job."""
    path = epath.Path(out) / UNFINISHED
    if not path.exists():
        return {}
    advice = f"Remove {out}, then start again."
    content, found = read_json(path, CONTENT, advice), {}
    require_same(out, (content["name"], content["settings"]), (name, settings))
    for shard in content["shards"]:
        file, skipped, fidelity = file_of(shard["file"]), shard["skipped"], shard["fidelity"]
        pairs, positions = (*skipped, *fidelity), range(file.num_images + len(skipped))
        wrong = any(len(pair) != 2 for pair in pairs) or len({pair[0] for pair in skipped}) < len(skipped)
        wrong = wrong or any(type(pair[0]) is str or pair[0] not in positions for pair in skipped)
        wrong = wrong or any(type(reason) is not str for _, reason in skipped)
        if problem := size_problem(file) or (wrong and f"what {shown(file.file)} leaves out"):
            raise UserError(f"{path} is damaged ({problem}). {advice}")
        skipped, fidelity = (tuple(map(tuple, part)) for part in (skipped, fidelity))
        found[file.file] = ShardDone(file, skipped, shard["source_bytes"], fidelity)
    return found


def write_unfinished(out: str, name: str, settings: dict[str, Any], done: Iterable[ShardDone]) -> None:
    """Writes the file that `read_unfinished` reads."""
    shards = [{**dataclasses.asdict(shard), "file": shard.file._asdict()} for shard in done]
    write_file(epath.Path(out) / UNFINISHED, json.dumps({"name": name, "settings": settings, "shards": shards}))


def require_ours(out: str) -> None:
    """Raises UserError if the directory holds files that this command did not write."""
    directory = epath.Path(out)
    if not directory.exists() or any((directory / file).exists() for file in (MANIFEST, UNFINISHED)):
        return
    if not directory.is_dir():
        raise UserError(f"{out} is a file. Give a new or an empty directory with --out.")
    others = sorted(path.name for path in directory.iterdir() if ".tmp-" not in path.name)
    if others:
        raise UserError(
            f"{out} is not empty (it holds {others[0]}) and was not written by this command. Give a new or an empty "
            "directory with --out."
        )


def write_file(path: epath.Path, content: bytes | str) -> None:
    """Writes a file completely or not at all; raises UserError if it cannot be written."""
    with writing(path):
        replace_file(path, content)
