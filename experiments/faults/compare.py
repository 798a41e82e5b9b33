"""Compares the ends of two runs: every array and every row, bit for bit, or up to another order of sums."""

import math
from pathlib import Path

import numpy as np

from resnext_jax.checkpoint import locate, read_arrays
from resnext_jax.metrics import TIMED_FIELDS

RTOL = 1e-5
RECOMPUTED = "recomputed_bn"  # phase of a row, and folder in a workdir


def differing_bits(ours: Path, theirs: Path, our_rows: list[dict], their_rows: list[dict], step: int) -> list[str]:
    """Return what differs between the ends of two runs that should be the same, one line each."""
    lines = _differing_arrays(ours / "checkpoints" / str(step), theirs / "checkpoints" / str(step))
    recomputed = [workdir / RECOMPUTED / "checkpoints" / str(step) for workdir in (ours, theirs)]
    if any(path.exists() for path in recomputed):
        lines += [f"{RECOMPUTED}: {line}" for line in _differing_arrays(*recomputed)]
    left_rows, right_rows = ([_untimed(row) for row in rows] for rows in (our_rows, their_rows))
    keys = [(row["step"], row["phase"]) for row in left_rows]
    lines += [f"metrics: {key} is there twice" for key in sorted({key for key in keys if keys.count(key) > 1})]
    known = {(row["step"], row["phase"]): row for row in right_rows}
    lines += [f"metrics: {key} is missing" for key in known.keys() - set(keys)]
    lines += [f"metrics: {key} is one too many" for key in set(keys) - known.keys()]
    for row in left_rows:
        other = known.get((row["step"], row["phase"]), row)
        lines += [
            f"metrics: step {row['step']} {row['phase']} {name}: {row.get(name)!r} against {other.get(name)!r}"
            for name in sorted(row.keys() | other.keys())
            if row.get(name) != other.get(name)
        ]
    return lines


def _differing_arrays(ours: Path, theirs: Path) -> list[str]:
    missing = [f"{path} is missing" for path in (ours, theirs) if not path.exists()]
    if missing:
        return missing
    left, right = (read_arrays(locate(str(path))) for path in (ours, theirs))
    lines = [f"{name} is in one of the checkpoints only" for name in sorted(left.keys() ^ right.keys())]
    return lines + [
        f"{name}: differs by up to {np.abs(left[name] - right[name]).max():.3g}"
        for name in sorted(left.keys() & right.keys())
        if left[name].dtype != right[name].dtype or left[name].tobytes() != right[name].tobytes()
    ]


def differing_losses(our_rows: list[dict], their_rows: list[dict]) -> tuple[list[str], float]:
    """Compare two runs on different devices: losses to 1e-5 relative, evaluations of the same images.

    Returns:
      One line for every row that differs by more, and the largest relative difference of a loss.
    """
    lines, worst = [], 0.0
    keys = [[(row["step"], row["phase"], row["images"]) for row in rows] for rows in (our_rows, their_rows)]
    if keys[0] != keys[1]:
        lines.append(f"metrics: other rows or numbers of images: {sorted(set(keys[0]) ^ set(keys[1]))[:5]}")
    known = {(row["step"], row["phase"]): row for row in their_rows}
    for row in our_rows:
        other = known.get((row["step"], row["phase"]))
        if other is None:
            continue
        difference = abs(row["loss"] - other["loss"]) / abs(other["loss"])
        worst = max(worst, difference)
        if not difference <= RTOL or math.isnan(difference):
            lines.append(f"step {row['step']} {row['phase']}: loss {row['loss']!r} against {other['loss']!r}")
    return lines, worst


def _untimed(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in TIMED_FIELDS}
