"""Kills `data.prepare` at random moments and compares what it has written with an uninterrupted preparation."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.faults.restarts import ROOT

NUM_IMAGES = {"train": 240, "validation": 60}
NUM_CLASSES = 4


def make_images(root: Path) -> None:
    """Write class folders of noise."""
    rng = np.random.default_rng(0)
    for split, count in NUM_IMAGES.items():
        for index in range(count):
            path = root / split / f"class{index % NUM_CLASSES}" / f"{index:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)).save(path, quality=90)


def prepare(images: Path, out: Path, log: Path) -> subprocess.Popen:
    """Start the command."""
    command = [sys.executable, "-m", "resnext_jax.data.prepare", "folder", f"--dir={images}", f"--out={out}"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "--images_per_shard=20"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
        )


def kill_and_resume(root: Path, kills: int, rng: random.Random, say: Callable[[str], None]) -> tuple[int, list[str]]:
    """Prepare the same images again and again, killed `kills` times in all.

    Returns:
      The kills before an end, and a line for every file that differs from those of the uninterrupted preparation.
    """
    make_images(root / "images")
    log = root / "log"
    start_s = time.monotonic()
    _end(prepare(root / "images", root / "uninterrupted", log), log)
    duration_s = time.monotonic() - start_s
    expected = _digests(root / "uninterrupted")
    struck, lines, number = 0, [], 0
    while struck < kills:
        out = root / f"out{number}"
        process = prepare(root / "images", out, log)
        while struck < kills:
            time.sleep(rng.uniform(0.0, duration_s))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            struck += 1
            process = prepare(root / "images", out, log)
        _end(process, log)
        found = _digests(out)
        lines += [
            f"{out.name}/{name} differs"
            for name in found.keys() | expected.keys()
            if found.get(name) != expected.get(name)
        ]
        number += 1
    say(f"data.prepare: killed {struck} times in {number} preparations, {len(lines) or 'no'} differences")
    return struck, lines


def _end(process: subprocess.Popen, log: Path) -> None:
    if process.wait(600):
        raise RuntimeError(f"data.prepare ended with status {process.returncode}:\n{log.read_text()[-2000:]}")


def _digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}
