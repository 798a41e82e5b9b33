"""Resident memory of the process of one host while it reads an epoch of ImageNet's size.

The records are real ArrayRecord shards, 1024 of them, but links to one file: so an epoch takes minutes and megabytes.
Most images are thumbnails for the same reason; the batches are as large as they are in training.
"""

import argparse
import io
import math
import os
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from resnext_jax.data.bench.contenders import SIZE_PX
from resnext_jax.data.bench.photos import photographs
from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.prepare.shards import shard_name
from resnext_jax.data.records import WRITER_OPTIONS, File, Manifest, RecordSource, Split, pack
from resnext_jax.errors import UserError
from resnext_jax.files import sha256_of
from resnext_jax.progress import Progress, duration

RECORDS_PER_SHARD = 1252
IMAGENET = 1024 * RECORDS_PER_SHARD  # 881 more than ImageNet's 1,281,167
PHOTOGRAPH_EVERY, THUMBNAIL_PX = 16, (96, 72)
NUM_CLASSES = 1000


def _thumbnail(photo: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize(THUMBNAIL_PX).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def linked_shards(directory: pathlib.Path, num_records: int) -> RecordSource:
    """Write `num_records`, rounded up to whole shards, to `directory` in the layout of `prepare`, and return them."""
    photos = photographs(RECORDS_PER_SHARD // PHOTOGRAPH_EVERY + 1)
    thumbnails = [_thumbnail(photo) for photo in photos]
    first = directory / "first"
    writer = ArrayRecordWriter(str(first), WRITER_OPTIONS)
    for number in range(RECORDS_PER_SHARD):
        photo, rest = divmod(number, PHOTOGRAPH_EVERY)
        image = thumbnails[photo] if rest else photos[photo]
        writer.write(pack(image, number % NUM_CLASSES, f"class/{number}.jpg"))
    writer.close()
    count = math.ceil(num_records / RECORDS_PER_SHARD)
    of_shard = File("", RECORDS_PER_SHARD, first.stat().st_size, sha256_of(first))
    shards = [of_shard._replace(file=shard_name("train", index, count)) for index in range(count)]
    for shard in shards:
        os.link(first, directory / shard.file)
    labels = np.tile(np.arange(RECORDS_PER_SHARD, dtype="<i4") % NUM_CLASSES, count).tobytes()
    path = directory / "train.labels"
    path.write_bytes(labels)
    of_labels = File(path.name, len(labels) // 4, len(labels), sha256_of(path))
    classes = tuple(f"class {number}" for number in range(NUM_CLASSES))
    manifest = Manifest("folder", classes, {"train": Split(tuple(shards), of_labels)}, {}, {})
    return RecordSource("records", "train", str(directory), manifest)


def resident_mb() -> float:
    """Return the resident memory of this process."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reads every record once in batches and prints the resident memory; raises UserError without /proc."""
    if not pathlib.Path("/proc/self/statm").exists():
        raise UserError("resident memory is read from /proc, which this system does not have; take Linux.")
    with tempfile.TemporaryDirectory() as directory:
        source = linked_shards(pathlib.Path(directory), arguments.num_records)
        batch_size = arguments.batch_size or 256
        num_steps = math.ceil(len(source) / batch_size)
        print(
            f"{len(source):,} records in {len(source) // RECORDS_PER_SHARD:,} shards (one photograph of 500x375 px to "
            f"{PHOTOGRAPH_EVERY - 1} thumbnails),\nbatches of {batch_size} crops of {SIZE_PX} px "
            f"({batch_size * SIZE_PX**2 * 3 / 1e6:.0f} MB), {arguments.num_threads} threads\n"
            f"before the first batch  {resident_mb():6.0f} MB",
            flush=True,
        )
        crop, threads = Crop("random_sized", SIZE_PX), arguments.num_threads
        batches = train_batches(
            source, crop, batch_size=batch_size, seed=0, steps=range(num_steps), num_threads=threads
        )
        progress, start_s, highest, tenths = Progress("pass", num_steps, "step"), time.monotonic(), 0.0, []
        for step, _ in enumerate(batches, start=1):
            highest = max(highest, resident_mb())
            progress.update(step, f"{highest:.0f} MB")
            if step * 10 // num_steps > len(tenths):
                tenths.append(highest)
                print(f"{len(tenths):>4}0 % of the records  {highest:8.0f} MB", flush=True)
                highest = 0.0
        progress.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    print(f"(the most within each tenth; of the whole process {peak:.0f} MB) in {duration(time.monotonic() - start_s)}")
    return {"num_records": len(source), "resident_mb": tenths, "peak_mb": peak}
