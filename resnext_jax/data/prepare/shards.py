"""Writing shards: which image goes where is a function of the list and of SEED; every run writes the same bytes."""

import dataclasses
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from resnext_jax.data import decode
from resnext_jax.data.prepare.images import LOOSE, Entry
from resnext_jax.data.records import WRITER_OPTIONS, File, pack, sha256_of
from resnext_jax.errors import UserError

SEED = 0
MAX_SHARDS = 1024
JPEG_QUALITY = 95
NUM_COMPARED = 16  # of each shard
CHECK_PX = (256, 224)  # evaluation's resize and crop, by which re-encoding is judged


def num_shards(num_images: int, images_per_shard: int) -> int:
    """The largest power of two, up to 1024, that leaves at least `images_per_shard` in each: 1024 and 64 at 1K."""
    count = 1
    while 2 * count <= MAX_SHARDS and num_images // (2 * count) >= images_per_shard:
        count *= 2
    return count


def assign(num_images: int, count: int) -> Iterator[np.ndarray]:
    """The indices of the images of each shard, ascending, so that an archive is read in one direction."""
    order = np.argsort(np.random.Philox(key=SEED).random_raw(num_images), kind="stable")
    yield from (np.sort(order[num_images * i // count : num_images * (i + 1) // count]) for i in range(count))


def shard_name(split: str, index: int, count: int) -> str:
    """As in the manifest."""
    return f"{split}-{index:05d}-of-{count:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Attributes:
      directory: where to.
      file: its name.
      entries: its images, in the order of the records.
      short_side_px: larger images are made this small; None leaves every byte as it is.
      skip_bad: leaves out images that cannot be read, instead of stopping.
    """

    directory: str
    file: str
    entries: tuple[Entry, ...]
    short_side_px: int | None
    skip_bad: bool


@dataclasses.dataclass(frozen=True)
class ShardDone:
    """A shard that lies in its place.

    Attributes:
      file: as in the manifest.
      skipped: position in the task and reason, of each image that was left out.
      source_bytes: of the images before re-encoding.
      fidelity: (mean absolute difference, peak signal-to-noise ratio in dB) of some images that were re-encoded.
    """

    file: File
    skipped: tuple[tuple[int, str], ...]
    source_bytes: int
    fidelity: tuple[tuple[float, float], ...]


def write_shard(task: ShardTask) -> ShardDone:
    """Writes one shard under a temporary name, and gives it its name when every byte is on the disk.

    Raises:
      UserError: an image cannot be read (without skip_bad), or the shard cannot be written.
    """
    final = epath.Path(task.directory) / task.file
    remote = "://" in task.directory
    failures = (Exception,) if remote else (OSError, RuntimeError)  # a bucket's library raises errors of its own
    folder = tempfile.mkdtemp(prefix="prepare-") if remote else task.directory
    temporary = os.path.join(folder, f".{task.file}.tmp-{os.getpid()}")
    try:
        done = _write(task, temporary)
        if remote:
            epath.Path(temporary).copy(final, overwrite=True)  # a bucket shows an object when it is whole
        else:
            os.replace(temporary, final)
    except UserError:
        raise
    except failures as error:
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise UserError(
            f"{final} could not be written: {reason}. Nothing of it is kept; make room (or mend the place), then run "
            "the same command again: finished shards are not written again."
        ) from None
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)
        if remote:
            shutil.rmtree(folder, ignore_errors=True)
    return done


def _write(task: ShardTask, path: str) -> ShardDone:
    # Here, since parents that only read need no writer.
    from array_record.python.array_record_module import ArrayRecordWriter

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
    """Each image's bytes; one archive is open at a time."""
    open_path, file = None, None
    try:
        for entry in entries:
            path = os.path.join(entry.where, entry.name) if entry.offset == LOOSE else entry.where
            try:
                if entry.offset == LOOSE:
                    data = epath.Path(path).read_bytes()
                else:
                    if file is None or path != open_path:
                        if file:
                            file.close()
                        open_path, file = path, epath.Path(path).open("rb")
                    file.seek(entry.offset)
                    data = file.read(entry.size)
            except OSError as error:
                raise UserError(f"{path} could not be read: {error.strerror or error}. Put it back.") from None
            if entry.offset != LOOSE and len(data) != entry.size:
                raise UserError(f"{path} is truncated: it ends within {entry.name}. Fetch it again.")
            yield entry, data
    finally:
        if file:
            file.close()


# ---- smaller images


def smaller(data: bytes, name: str, short_side_px: int) -> bytes:
    """A JPEG with this short side; an image that is no larger stays as it is, byte for byte."""
    with Image.open(io.BytesIO(data)) as image:  # which `decode.check` has found readable
        width, height = image.size
    if min(width, height) <= short_side_px:
        return data
    if width < height:
        size = (short_side_px, round(height * short_side_px / width))
    else:
        size = (round(width * short_side_px / height), short_side_px)
    pixels = Image.fromarray(decode.decode(data, name)).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def difference(data: bytes, image: bytes, name: str) -> tuple[float, float]:
    """How far evaluation's crop of `image` is from that of `data`: mean absolute difference in levels, PSNR in dB."""
    resize_px, size_px = CHECK_PX
    crops = [
        decode.center_crop(decode.decode(bits, name), size_px, resize_px).astype(np.float64) for bits in (data, image)
    ]
    error = crops[0] - crops[1]
    mean_square = max(float((error**2).mean()), 1e-9)
    return float(np.abs(error).mean()), 10 * np.log10(255**2 / mean_square)
