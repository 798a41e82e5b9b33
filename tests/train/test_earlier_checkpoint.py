"""A checkpoint written before the loop was given a task: it loads, evaluates and resumes to the same numbers.

fixtures/run_before_tasks holds the first ten steps of the tiny run with `ema_decay=0.9` (checkpoint and metrics). The
expected numbers were printed by the code that wrote it, which trained on to step 20 and evaluated.
"""

import shutil

import jax
import numpy as np
import pytest
import tiny

import resnext_jax
from resnext_jax.evaluate.loaded import load_checkpoint
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.sharding import Place, make_mesh

EARLIER = tiny.ROOT / "tests" / "fixtures" / "run_before_tasks"
STEP_10 = {"loss": 2.319530578613281, "top1": 0.09866666666666667, "top5": 0.5213333333333333, "images": 3000}
LOSSES = {12: 2.2517857551574707, 15: 2.322855313618978, 16: 2.315215587615967, 20: 2.3930444717407227}
STEP_20 = {"loss": 2.332686197916667, "top1": 0.087, "top5": 0.5153333333333333, "images": 3000}


def test_an_earlier_checkpoint_loads():
    net = resnext_jax.load(str(EARLIER))
    assert net.class_names[0] == "T-shirt/top"
    assert net(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 10)


@pytest.mark.slow
def test_an_earlier_checkpoint_evaluates_alike():
    place = Place(make_mesh(jax.devices()[:2]), "cpu")
    loaded = load_checkpoint(str(EARLIER), None, place, prepare=lambda config: None, raw=False)
    found = loaded.evaluate(loaded.variables)
    assert {name: found[name] for name in STEP_10} == pytest.approx(STEP_10, rel=1e-5)


@pytest.mark.slow
def test_an_earlier_run_resumes_and_evaluates_alike(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(EARLIER, workdir)
    tiny.train(tiny.config("--config.num_steps=20", "--config.ema_decay=0.9"), workdir)
    rows = read_metrics(str(workdir))
    *_, last = (row for row in rows if row["phase"] == "evaluate")
    losses = {row["step"]: row["loss"] for row in rows if row["phase"] == "train" and row["step"] > 10}
    assert losses == pytest.approx(LOSSES, rel=1e-5)
    assert last["step"] == 20
    assert {name: last[name] for name in STEP_20} == pytest.approx(STEP_20, rel=1e-5)
