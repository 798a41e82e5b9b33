"""Sizes and CRC-32s of the files of a checkpoint, to detect damage.

Orbax and TensorStore check the index that leads to the arrays, but not the arrays themselves nor the JSON item.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from resnext_jax.files import cannot_read
from resnext_jax.json_files import WHOLE, is_file_name, parse_json, shown

CHECKSUMS_FILE = "checksums.json"
# Orbax writes these after the checksums: the time of the commit, and in a bucket the mark of a finished save.
WRITTEN_LAST = {"_CHECKPOINT_METADATA", "commit_success.txt"}
CHUNK_BYTES = 1 << 22
NUM_THREADS = 8


def write_checksums(directory: epath.Path) -> None:
    """Reads every file of an unfinished checkpoint back, and writes `checksums.json`."""
    names = sorted(set(files_below(directory)) - WRITTEN_LAST)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        sums = dict(zip(names, threads.map(lambda name: _size_and_crc32(directory / name), names), strict=True))
    (directory / CHECKSUMS_FILE).write_text(json.dumps(sums) + "\n")


def damage(checkpoint: epath.Path, items: Iterable[str] = ()) -> str | None:
    """Return what is wrong with the files of a finished checkpoint, in a few words; None if they are as written.

    Args:
      items: subdirectories to check; all by default.

    Raises:
      UserError: this user may not read it.
    """
    try:
        sums = parse_json((checkpoint / CHECKSUMS_FILE).read_bytes(), {str: [WHOLE]})
        for name, pair in sums.items():
            if len(pair) != 2 or not all(map(is_file_name, name.split("/"))):
                raise ValueError(f"the entry {shown(name)}")
    except FileNotFoundError:
        return f"{CHECKSUMS_FILE} is missing"
    except PermissionError as error:
        raise cannot_read(checkpoint, error) from error
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE} cannot be read: {error}"
    prefixes = tuple(f"{item}/" for item in items) or ("",)
    names = [name for name in sums if name.startswith(prefixes)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        found = threads.map(lambda name: _difference(checkpoint / name, name, sums[name]), names)
        return next((line for line in found if line is not None), None)


def files_below(directory: epath.Path, prefix: str = "") -> Iterable[str]:
    """Yields every file below a directory, as `variables/manifest.ocdbt`."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from files_below(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}"


def _difference(path: epath.Path, name: str, written: Sequence[int]) -> str | None:
    try:
        size, crc32 = _size_and_crc32(path)
    except FileNotFoundError:
        return f"{name} is missing"
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    if size != written[0]:
        return f"{name} has {size:,} bytes, {written[0]:,} were written"
    return None if crc32 == written[1] else f"{name} has changed since it was written: another CRC-32"


def _size_and_crc32(path: epath.Path) -> tuple[int, int]:
    size, crc32 = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size, crc32 = size + len(chunk), zlib.crc32(chunk, crc32)
    return size, crc32
