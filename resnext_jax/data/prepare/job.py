"""A preparation: finished shards stay, the others are written in parallel, the manifest comes last."""

import dataclasses
import hashlib
import time
from concurrent.futures import Executor
from typing import Any

import numpy as np
from etils import epath

from resnext_jax.data import records
from resnext_jax.data.prepare import directory as output
from resnext_jax.data.prepare import shards
from resnext_jax.data.prepare.images import Images
from resnext_jax.data.prepare.pool import run_tasks
from resnext_jax.data.prepare.shards import ShardDone, ShardTask
from resnext_jax.files import in_bucket
from resnext_jax.progress import Progress, say

BUCKET_EVERY_S = 10.0  # a bucket takes one version of an object per second


@dataclasses.dataclass(frozen=True)
class Job:
    """A data set to write; name, class names, splits and notes are those of `records.Manifest`.

    Attributes:
      images_per_shard: minimum number of images in a shard, with at most 1024 shards.
      short_side_px: short side of larger images after re-encoding; None copies every image unchanged.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Images]
    notes: dict[str, Any]
    images_per_shard: int
    short_side_px: int | None

    def settings(self) -> dict[str, Any]:
        """Return everything that the content of the shards depends on; a directory with other settings is refused."""
        digest = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape"))
        for split, images in sorted(self.splits.items()):
            digest.update(f"{split} {images.digest()}".encode())
        return {
            "list_sha256": digest.hexdigest(),
            "seed": shards.SEED,
            "images_per_shard": self.images_per_shard,
            "short_side_px": self.short_side_px,
        }


def prepare(job: Job, out: str, pool: Executor, num_processes: int, *, skip_bad: bool) -> records.Manifest:
    """Writes the shards and the manifest of a job. Returns at once if that was done before.

    Args:
      out: output directory: new, empty, or left by an earlier run of the same job.
      pool, num_processes: workers from `pool.worker_pool`, and their number.
      skip_bad: whether images that cannot be read are left out, instead of raising.

    Raises:
      UserError: the directory holds something else, or another run writes to it; an image cannot be read, or a shard
        cannot be written.
    """
    with output.locked(out):
        directory, settings = epath.Path(out), job.settings()
        output.require_ours(out)
        finished = records.read_manifest(out)
        if finished is not None:
            output.require_same(out, (finished.name, finished.settings), (job.name, settings))
            if not records.check_files(out, finished.files()):
                (directory / records.UNFINISHED).unlink(missing_ok=True)  # a kill may have left it
                return finished
            done = {file.file: ShardDone(file, (), 0, ()) for file in finished.files()}
        else:
            done = output.read_unfinished(out, job.name, settings)
        for leftover in directory.glob(".*.tmp-*"):
            leftover.unlink(missing_ok=True)
        indices = {}
        for split, images in job.splits.items():
            count = shards.num_shards(len(images), job.images_per_shard)
            parts = enumerate(shards.assign(len(images), count))
            indices[split] = {shards.shard_name(split, index, count): part for index, part in parts}
        kept = _write_shards(job, out, settings, indices, done, pool, num_processes, skip_bad=skip_bad)
        splits = {}
        for split, parts in indices.items():
            labels = _write_labels(directory, split, job.splits[split], parts, kept)
            splits[split] = records.Split(tuple(kept[name].file for name in parts), labels)
        skipped = [reason for parts in indices.values() for name in parts for _, reason in kept[name].skipped]
        notes = finished.notes if finished else {**job.notes, "left_out": skipped, **_fidelity(kept)}
        manifest = records.Manifest(job.name, job.class_names, splits, settings, notes)
        output.write_file(directory / records.MANIFEST, records.manifest_json(manifest))
        (directory / records.UNFINISHED).unlink(missing_ok=True)
        return manifest


def _write_shards(
    job: Job,
    out: str,
    settings: dict[str, Any],
    indices: dict[str, dict[str, np.ndarray]],
    done: dict[str, ShardDone],
    pool: Executor,
    num_processes: int,
    *,
    skip_bad: bool,
) -> dict[str, ShardDone]:
    """Writes every shard that is not finished yet, and returns all of them by name."""
    sizes = {name: len(part) for parts in indices.values() for name, part in parts.items()}
    kept = {
        name: shard
        for name, shard in done.items()
        if shard.file.num_images + len(shard.skipped) == sizes.get(name) and not records.check_files(out, (shard.file,))
    }
    start = sum(shard.file.num_images for shard in kept.values())
    progress, saved_s = Progress("prepare", sum(sizes.values()), "images", start), 0.0
    if kept:
        print(f"{len(kept):,} of {len(sizes):,} shards are finished already; going on with the rest")

    def save(*, every_s: float = 0.0) -> None:
        nonlocal saved_s
        if time.monotonic() - saved_s >= every_s:
            output.write_unfinished(out, job.name, settings, kept.values())
            saved_s = time.monotonic()

    def on_done(shard: ShardDone) -> None:
        kept[shard.file.file] = shard
        save(every_s=BUCKET_EVERY_S if in_bucket(out) else 0.0)
        for _, reason in shard.skipped:
            say(f"left out: {reason}")
        progress.update(sum(sizes[name] for name in kept), f"shard {len(kept):,}/{len(sizes):,}")

    tasks = (
        ShardTask(out, name, tuple(map(job.splits[split].entry, part.tolist())), job.short_side_px, skip_bad)
        for split, parts in indices.items()
        for name, part in parts.items()
        if name not in kept
    )
    try:
        save()  # before the first shard, so that the next run recognizes the shards
        run_tasks(shards.write_shard, tasks, pool, num_processes, on_done)
    finally:
        progress.close()
        save()
    return kept


def _write_labels(
    directory: epath.Path, split: str, images: Images, parts: dict[str, np.ndarray], kept: dict[str, ShardDone]
) -> records.File:
    skipped = {name: [position for position, _ in kept[name].skipped] for name in parts}
    labels = np.concatenate([np.delete(images.label[part], skipped[name]) for name, part in parts.items()])
    content, name = labels.astype("<i4").tobytes(), f"{split}.labels"
    output.write_file(directory / name, content)
    return records.File(name, len(labels), len(content), hashlib.sha256(content).hexdigest())


def _fidelity(kept: dict[str, ShardDone]) -> dict[str, Any]:
    found = np.array([pair for shard in kept.values() for pair in shard.fidelity])
    if not len(found):
        return {}
    return {
        "source_bytes": sum(shard.source_bytes for shard in kept.values()),
        "compared_images": len(found),
        "mean_difference_levels": round(float(found[:, 0].mean()), 3),
        "mean_psnr_db": round(float(found[:, 1].mean()), 2),
    }
