"""What the README shows of the quickstart, beside the metrics of the run that docs/make_outputs.py made."""

import itertools
import json
import re

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from configs import quickstart
from resnext_jax.runtime.curves import draw_curves
from resnext_jax.sharding import Place, make_mesh, to_global
from resnext_jax.train.classification import TOP1, open_classification

DOCS = tiny.ROOT / "docs"
ROWS = [json.loads(line) for line in (DOCS / "quickstart_metrics.jsonl").read_text().splitlines()]
EVALUATIONS = [row for row in ROWS if row["phase"] == "evaluate"]
BLOCK = re.search(r"```\n\$ make demo\n.*?```\n", (tiny.ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_shows_the_numbers_of_the_run():
    assert BLOCK
    lines = BLOCK[0].splitlines()
    shown = [re.search(r"loss ([\d.]+)  top-1 ([\d.]+%)", line) for line in lines if line.startswith("evaluate")]
    last = EVALUATIONS[-1]
    assert [found and found.groups() for found in shown] == 2 * [(f"{last['loss']:.4f}", f"{last['top1']:.2%}")]
    best = max(EVALUATIONS, key=lambda row: (row["top1"], row["step"]))
    for name, row in (("last", last), ("best", best)):
        line = f"{name} {row['step']:,} {row['epoch']:.2f} {row['loss']:.4f} {row['top1']:.2%} {row['top5']:.2%}"
        assert [" ".join(shown.split()) for shown in lines if shown.startswith(f"{name} ")] == [line]
    # Wilson's interval of 3,000 images.
    share, z, n = last["top1"], 1.959964, 3000
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert f"top-1 {share:.2%} (95 %: {low:.2%} to {high:.2%})" in BLOCK[0]


def test_the_shown_curves_are_those_of_the_run(tmp_path):
    draw_curves(ROWS, str(tmp_path), "resnext20_8x4d_small on builtin", TOP1)
    drawn, shown = (
        np.asarray(Image.open(path / name).convert("RGB"), float)
        for path, name in ((tmp_path, "curves.png"), (DOCS, "quickstart_curves.png"))
    )
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 1


@pytest.mark.slow
def test_todays_code_makes_the_run_that_is_shown():
    place = Place(make_mesh(jax.devices()[:1]), "cpu")
    task = open_classification(quickstart.get_config(), place)
    state, losses = task.initial_state(lambda line: None), []
    for batch in itertools.islice(task.batches(0), ROWS[0]["step"]):
        state, sums = task.train_step(state, to_global(place.mesh, batch))
        losses.append(float(sums.loss) / float(sums.images))
    # The tests compile with fewer optimizations, and rounding grows with the steps; another seed is 6 % off.
    assert np.mean(losses) == pytest.approx(ROWS[0]["loss"], rel=1e-2)
