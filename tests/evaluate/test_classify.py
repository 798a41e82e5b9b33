"""N images count exactly N, in any batches on any devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import evaluation_batches
from resnext_jax.data.readers import ArraySource
from resnext_jax.evaluate.classify import evaluate
from resnext_jax.models import zoo
from resnext_jax.sharding import Place, make_mesh

NUM_IMAGES, NUM_CLASSES = 203, 10


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 28, 28, 1), np.uint8)
    return ArraySource("noise", images, rng.integers(0, NUM_CLASSES, NUM_IMAGES), tiny.INFO.class_names, "memory")


@pytest.fixture(scope="module")
def variables():
    run, _ = tiny.assembled()
    state = run.create_state()
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})


@pytest.fixture(scope="module")
def expected(source, variables):
    """Mean loss and counts by numpy, from the logits of one plain call."""
    model = tiny.cpu_model(zoo.select("resnext11_4x2d_tiny"), NUM_CLASSES, conv_impl="native")
    images = (source.images.astype(np.float32) - np.float32(72.94)) / np.float32(90.02)
    logits = model.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(images), train=False)
    logits = np.asarray(logits, np.float64)
    own = logits[np.arange(NUM_IMAGES), source.labels]
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) + logits.max(axis=1) - own
    top5 = np.argsort(-logits, axis=1)[:, :5]
    return {
        "loss": losses.sum(),
        "top1": (logits.argmax(axis=1) == source.labels).sum(),
        "top5": (top5 == source.labels[:, None]).any(axis=1).sum(),
    }


@functools.cache
def step_on(devices):
    run, _ = tiny.assembled("--config.batch_size=64", f"--config.evaluate.batch_size={8 * devices}", devices=devices)
    return run.evaluation_step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "batch_size"), [(1, 7), (1, 64), (1, NUM_IMAGES), (2, 14), (2, 64), (8, 8), (8, 64), (8, 208)]
)
def test_counts_are_exact(source, variables, expected, devices, batch_size):
    place = Place(make_mesh(jax.devices()[:devices]), "cpu")
    seen = []
    batches = evaluation_batches(source, Crop("none", 28), batch_size=batch_size, num_threads=1)
    sums = evaluate(step_on(devices), variables, batches, place, progress=lambda sums: seen.append(int(sums.images)))
    assert sums.images == NUM_IMAGES
    assert (sums.top1, sums.top5) == (expected["top1"], expected["top5"])
    assert sums.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert all(isinstance(count, np.integer) for count in (sums.images, sums.top1, sums.top5))
    assert seen == [min(end, NUM_IMAGES) for end in range(batch_size, NUM_IMAGES + batch_size, batch_size)]
