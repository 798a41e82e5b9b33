"""A whole preparation: what is written already stays, the rest is written in parallel, the manifest comes last."""

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from etils import epath

from resnext_jax.data.prepare import shards
from resnext_jax.data.prepare.directory import (
    locked,
    read_unfinished,
    require_ours,
    require_same,
    write_bytes,
    write_text,
    write_unfinished,
)
from resnext_jax.data.prepare.images import Images
from resnext_jax.data.prepare.pool import run_tasks
from resnext_jax.data.prepare.shards import ShardDone, ShardTask
from resnext_jax.data.records import (
    MANIFEST,
    UNFINISHED,
    File,
    Manifest,
    Split,
    check_files,
    manifest_json,
    read_manifest,
)
from resnext_jax.progress import Progress, say

BUCKET_EVERY_S = 10.0  # a bucket takes one version of an object per second


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
      name: "imagenet2012", "imagenet5k" or "folder".
      class_names: one name per class, in label order.
      splits: "train" and "validation", or one of them.
      notes: for the manifest.
      images_per_shard: at least so many, in at most 1024 shards.
      short_side_px: larger images are made this small; None leaves every byte as it is.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Images]
    notes: dict[str, Any]
    images_per_shard: int
    short_side_px: int | None

    def settings(self) -> dict[str, Any]:
        """All that the bytes of the shards depend on; a directory that was begun with other settings is not touched."""
        digest = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape"))
        for split, images in sorted(self.splits.items()):
            digest.update(f"{split} {images.digest()}".encode())
        return {
            "list_sha256": digest.hexdigest(),
            "seed": shards.SEED,
            "images_per_shard": self.images_per_shard,
            "short_side_px": self.short_side_px,
        }


def prepare(job: Job, out: str, pool: Executor, num_processes: int, *, skip_bad: bool) -> Manifest:
    """Writes a job's shards and manifest, and returns at once where that has been done.

    Args:
      job: what to write.
      out: the directory; it is empty, new, or from an earlier run of the same job.
      pool: of `pool.worker_pool`.
      num_processes: its size.
      skip_bad: leaves out images that cannot be read, instead of stopping.

    Raises:
      UserError: the directory holds something else, or another run writes to it; an image cannot be read, or a shard
        cannot be written.
    """
    with locked(out):
        return _prepare(job, out, pool, num_processes, skip_bad)


def _prepare(job: Job, out: str, pool: Executor, num_processes: int, skip_bad: bool) -> Manifest:
    directory, settings = epath.Path(out), job.settings()
    require_ours(out)
    finished = read_manifest(out)
    if finished is not None:
        require_same(out, (finished.name, finished.settings), (job.name, settings))
        if not any(check_files(out, (*split.shards, split.labels)) for split in finished.splits.values()):
            (directory / UNFINISHED).unlink(missing_ok=True)  # of a run that was killed just before it did so
            return finished
        done = {file.file: ShardDone(file, (), 0, ()) for split in finished.splits.values() for file in split.shards}
    else:
        done = read_unfinished(out, job.name, settings)
    for leftover in directory.glob(".*.tmp-*"):
        leftover.unlink(missing_ok=True)
    counts = {split: shards.num_shards(len(images), job.images_per_shard) for split, images in job.splits.items()}
    files = {split: [shards.shard_name(split, i, n) for i in range(n)] for split, n in counts.items()}
    sizes = {name: len(indices) for name, indices in _assigned(job, files)}
    kept = {
        name: shard
        for name, shard in done.items()
        if shard.file.num_images + len(shard.skipped) == sizes.get(name) and not check_files(out, (shard.file,))
    }
    total = sum(map(len, job.splits.values()))
    progress = Progress("prepare", total, "images", sum(shard.file.num_images for shard in kept.values()))
    if kept:
        print(f"{len(kept):,} of {sum(counts.values()):,} shards are finished already; going on with the rest")
    saved_s = 0.0

    def save(*, every_s: float = 0) -> None:
        nonlocal saved_s
        if time.monotonic() - saved_s >= every_s:
            write_unfinished(out, job.name, settings, kept.values())
            saved_s = time.monotonic()

    def on_done(shard: ShardDone) -> None:
        kept[shard.file.file] = shard
        save(every_s=BUCKET_EVERY_S if "://" in out else 0)
        for _, reason in shard.skipped:
            say(f"left out: {reason}")
        images_done = sum(shard.file.num_images + len(shard.skipped) for shard in kept.values())
        progress.update(images_done, f"shard {len(kept):,}/{sum(counts.values()):,}")

    try:
        save()  # before the first shard: without it nobody knows whose the shards are
        run_tasks(shards.write_shard, _tasks(job, out, files, kept, skip_bad), pool, num_processes, on_done)
    finally:
        progress.close()
        save()
    splits = {}
    for split, images in job.splits.items():
        records = tuple(kept[name].file for name in files[split])
        splits[split] = Split(records, _write_labels(directory, split, images, [kept[name] for name in files[split]]))
    if finished is None:
        skipped = [reason for names in files.values() for name in names for _, reason in kept[name].skipped]
        notes = {**job.notes, "left_out": skipped, **_fidelity(list(kept.values()))}
    else:
        notes = finished.notes
    manifest = Manifest(job.name, job.class_names, splits, settings, notes)
    write_text(directory / MANIFEST, manifest_json(manifest))
    (directory / UNFINISHED).unlink(missing_ok=True)
    return manifest


# ---- the work


def _assigned(job: Job, files: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray]]:
    """Each shard's name and the indices of its images."""
    for split, names in files.items():
        yield from zip(names, shards.assign(len(job.splits[split]), len(names)), strict=True)


def _tasks(job: Job, out: str, files: dict[str, list[str]], kept: dict, skip_bad: bool) -> Iterator[ShardTask]:
    for split, images in job.splits.items():
        for name, indices in zip(files[split], shards.assign(len(images), len(files[split])), strict=True):
            if name not in kept:
                entries = tuple(images.entry(index) for index in indices.tolist())
                yield ShardTask(out, name, entries, job.short_side_px, skip_bad)


# ---- the end


def _write_labels(directory: epath.Path, split: str, images: Images, done: Sequence[ShardDone]) -> File:
    parts = []
    for shard, indices in zip(done, shards.assign(len(images), len(done)), strict=True):
        parts.append(np.delete(images.label[indices], [position for position, _ in shard.skipped]))
    labels = np.concatenate(parts).astype("<i4")
    content, name = labels.tobytes(), f"{split}.labels"
    write_bytes(directory / name, content)
    return File(name, len(labels), len(content), hashlib.sha256(content).hexdigest())


def _fidelity(done: Sequence[ShardDone]) -> dict[str, Any]:
    found = np.array([pair for shard in done for pair in shard.fidelity])
    if not len(found):
        return {}
    return {
        "source_bytes": sum(shard.source_bytes for shard in done),
        "compared_images": len(found),
        "mean_difference_levels": round(float(found[:, 0].mean()), 3),
        "mean_psnr_db": round(float(found[:, 1].mean()), 2),
    }
