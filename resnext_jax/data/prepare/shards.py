"""Write shards. The images of a shard depend only on the list and on SEED, so every run writes the same bytes."""

import contextlib
import dataclasses
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from resnext_jax.data import decode, resize
from resnext_jax.data.prepare.images import LOOSE, Entry
from resnext_jax.data.records import WRITER_OPTIONS, File, pack
from resnext_jax.errors import UserError
from resnext_jax.files import in_bucket, sha256_of

SEED = 0
MAX_SHARDS = 1024
JPEG_QUALITY = 95
NUM_COMPARED = 16  # images of each shard
CHECK_PX = (256, 224)  # resize and crop of the evaluation, for the comparison with the original image


def num_shards(num_images: int, images_per_shard: int) -> int:
    """Return the largest power of two, up to 1024, with at least `images_per_shard` images in each shard."""
    count = 1
    while 2 * count <= MAX_SHARDS and num_images // (2 * count) >= images_per_shard:
        count *= 2
    return count


def assign(num_images: int, count: int) -> Iterator[np.ndarray]:
    """Yields the image indices of each shard, ascending, so that an archive is read in one direction."""
    order = np.argsort(np.random.Philox(key=SEED).random_raw(num_images), kind="stable")
    yield from (np.sort(order[num_images * i // count : num_images * (i + 1) // count]) for i in range(count))


def shard_name(split: str, index: int, count: int) -> str:
    """Return the file name of a shard."""
    return f"{split}-{index:05d}-of-{count:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to write: the entries, in this order, to a file in the output directory.

    Attributes:
      short_side_px: short side of larger images after re-encoding; None copies every image unchanged.
      skip_bad: whether images that cannot be read are left out, instead of raising.
    """

    directory: str
    file: str
    entries: tuple[Entry, ...]
    short_side_px: int | None
    skip_bad: bool


@dataclasses.dataclass(frozen=True)
class ShardDone:
    """A finished shard, with its entry in the manifest.

    Attributes:
      skipped: position in the task and reason of each image that was left out.
      source_bytes: total size of the images before re-encoding.
      fidelity: (mean absolute difference, peak signal-to-noise ratio in dB) of some re-encoded images.
    """

    file: File
    skipped: tuple[tuple[int, str], ...]
    source_bytes: int
    fidelity: tuple[tuple[float, float], ...]


def write_shard(task: ShardTask) -> ShardDone:
    """Writes one shard under a temporary name, and renames it when every byte is on the disk.

    Raises:
      UserError: an image cannot be read (without skip_bad), or the shard cannot be written.
    """
    final = epath.Path(task.directory) / task.file
    with writing(final):
        if in_bucket(task.directory):
            with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
                temporary = os.path.join(folder, task.file)
                done = _write(task, temporary)
                epath.Path(temporary).copy(final, overwrite=True)
            return done
        temporary = os.path.join(task.directory, f".{task.file}.tmp-{os.getpid()}")
        try:
            done = _write(task, temporary)
            os.replace(temporary, final)
        finally:
            pathlib.Path(temporary).unlink(missing_ok=True)
        return done


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[None]:
    """Turns an error while a file is written into a `UserError`."""
    # The library of a bucket raises errors of its own; ArrayRecord raises RuntimeError.
    failures = Exception if in_bucket(path) else (OSError, RuntimeError)
    try:
        yield
    except UserError:
        raise
    except failures as error:
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise UserError(
            f"{path} could not be written: {reason}. Free disk space (or fix the directory), then run the same command "
            "again: nothing of this file is kept, and finished shards are not written again."
        ) from None


def _write(task: ShardTask, path: str) -> ShardDone:
    from array_record.python.array_record_module import ArrayRecordWriter  # only this needs it

    writer = ArrayRecordWriter(path, WRITER_OPTIONS)
    skipped, source_bytes, fidelity = [], 0, []
    try:
        for position, (entry, data) in enumerate(_read(task.entries)):
            try:
                decode.check(data, entry.name)
                image = data if task.short_side_px is None else smaller(data, entry.name, task.short_side_px)
            except UserError as error:
                if not task.skip_bad:
                    raise UserError(f"{error} Or leave such images out with --on_bad_image=skip.") from None
                skipped.append((position, str(error)))
                continue
            source_bytes += len(data)
            if len(fidelity) < NUM_COMPARED and image is not data:
                fidelity.append(difference(data, image, entry.name))
            writer.write(pack(image, entry.label, entry.name))
    finally:
        writer.close()
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    count = len(task.entries) - len(skipped)
    found = File(task.file, count, os.path.getsize(path), sha256_of(path))
    return ShardDone(found, tuple(skipped), source_bytes, tuple(fidelity))


def _read(entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Yields the bytes of each image; one archive is open at a time."""
    with contextlib.ExitStack() as stack:
        opened, file = None, io.BytesIO()
        for entry in entries:
            loose = entry.offset == LOOSE
            path = os.path.join(entry.where, entry.name) if loose else entry.where
            try:
                if loose:
                    data = epath.Path(path).read_bytes()
                else:
                    if path != opened:
                        stack.close()
                        opened, file = path, stack.enter_context(epath.Path(path).open("rb"))
                    file.seek(entry.offset)
                    data = file.read(entry.size)
            except OSError as error:
                raise UserError(f"{path} could not be read: {error.strerror or error}. Put it back.") from None
            if not loose and len(data) != entry.size:
                raise UserError(f"{path} is truncated: it ends within {entry.name}. Fetch it again.")
            yield entry, data


def smaller(data: bytes, name: str, short_side_px: int) -> bytes:
    """Return a JPEG with this short side; a smaller image is returned unchanged."""
    height, width = decode.size(data, name)
    short = min(width, height)
    if short <= short_side_px:
        return data
    size = (round(height * short_side_px / short), round(width * short_side_px / short))
    pixels = resize.bicubic(decode.decode(data, name), *size)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def difference(data: bytes, image: bytes, name: str) -> tuple[float, float]:
    """Return mean absolute difference (in levels) and PSNR (in dB) of the evaluation crops of two image files."""
    resize_px, size_px = CHECK_PX
    before, after = (decode.center_crop(decode.decode(bits, name), size_px, resize_px) for bits in (data, image))
    error = before.astype(np.float64) - after
    mean_square = max(float((error**2).mean()), 1e-9)
    return float(np.abs(error).mean()), 10 * np.log10(255**2 / mean_square)
