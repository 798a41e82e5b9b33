"""Networks that are no ResNeXt go the whole way: a run is trained, resumed, evaluated, loaded."""

import numpy as np
import pytest
import tiny

from resnext_jax import api as net
from resnext_jax.models import zoo
from resnext_jax.models.arch import SMALL_STEM
from resnext_jax.models.densenet import DenseNetArch
from resnext_jax.models.vgg import VggArch
from resnext_jax.runtime.writer import read_metrics

ROWS = {
    "vgg": VggArch((1, 1), widths=(2, 4), hidden=8),  # no batch norm: no running statistics to keep
    "densenet": DenseNetArch((1, 1), growth=2, width=4, stem=SMALL_STEM),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_train_resume_evaluate_load(name, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.ARCHS, name, ROWS[name])
    for steps in (2, 3):
        config = tiny.config(f"--config.model.name={name}", f"--config.num_steps={steps}")
        config.evaluate.every_steps = config.log.every_steps = config.checkpoint.every_steps = 1
        tiny.train(config, tmp_path)
    rows = read_metrics(str(tmp_path))
    assert [row["step"] for row in rows if row["phase"] == "evaluate"] == [1, 2, 3]
    loaded = net.load(str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8)
    assert loaded(images).shape == (2, 10)
    assert {"stage1", "stage2", "pooled"} <= loaded.features(images).keys()
    assert bool(loaded.variables.get("batch_stats")) == (name == "densenet")
