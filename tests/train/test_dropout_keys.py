"""Dropout in the training step: the same draws on any devices and in any microbatches, other ones in every step."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.models import zoo
from resnext_jax.models.arch import SMALL_STEM, Arch
from resnext_jax.models.vgg import VggArch
from resnext_jax.ops.augment import image_keys
from resnext_jax.sharding import Place, make_mesh, put_replicated, to_global
from resnext_jax.train.classification import Classification
from resnext_jax.types import Batch, DatasetInfo

WIDE = Arch("basic", (1, 1), stem=SMALL_STEM, width=2, widen=2, preactivation=True)
BATCH, PX = 32, 12
INFO = DatasetInfo("builtin", 15_000, tuple("abcdefghij"), (PX, PX, 1))
IMAGES = np.random.default_rng(0).integers(0, 256, (BATCH, PX, PX, 1), np.uint8)
LABELS = np.arange(BATCH, dtype=np.int32) % 10


@pytest.fixture(scope="module", autouse=True)
def row():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.ARCHS, "wide", WIDE)
        yield


class Losses:
    """The loss of the first step, by how it is computed; from one state."""

    def __init__(self):
        self.config = importlib.import_module("configs.quickstart").get_config()
        self.config.model.name, self.config.model.dropout = "wide", 0.5
        self.config.batch_size, self.config.bn_group_images = BATCH, 2
        self.config.data.image_size_px = self.config.data.resize_px = PX
        self.config.augment.flip, self.config.augment.pad_px = False, 0
        self.start = None

    def __call__(self, steps: list[int], devices: int = 1, microbatches: int = 1) -> list[float]:
        self.config.accumulation_steps = microbatches
        place = Place(make_mesh(jax.devices()[:devices]), "cpu")
        run = Classification(self.config, place, INFO)
        if self.start is None:
            self.start = jax.device_get(run.create_state())
        batch = to_global(place.mesh, Batch(IMAGES, LABELS, np.ones(BATCH, np.float32)))
        states = [put_replicated(place.mesh, self.start.replace(step=np.int32(step))) for step in steps]
        return [float(run.train_step(state, batch)[1].loss) for state in states]


@pytest.mark.slow
def test_draws_depend_on_the_step_and_not_on_devices_or_microbatches():
    losses = Losses()
    first, again, second = losses([0, 0, 1])
    assert first == again
    assert abs(second / first - 1) > 1e-4
    assert losses([0], devices=8, microbatches=2) == [pytest.approx(first, rel=1e-6)]


def test_where_there_is_no_dropout_keys_change_nothing_in_the_program():
    def program(arch, keys) -> str:
        model = zoo.NETWORKS[type(arch)](arch, 10, lambda shape: "native", 4)
        images = jnp.zeros((4, 16, 16, 3))
        variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        run = partial(model.apply, train=True, keys=keys, mutable=["batch_stats"])
        return str(jax.make_jaxpr(run)(variables, images))

    keys = image_keys(0, jnp.asarray(0), 4)
    assert program(WIDE, keys) == program(WIDE, None)
    assert "random_bits" in program(zoo.select("wide", dropout=0.5), keys)


@pytest.mark.parametrize("arch", [zoo.select("wrn16_8", dropout=0.1), VggArch((1, 1), widths=(2, 2), hidden=4)])
def test_training_without_keys_is_refused_and_evaluation_needs_none(arch):
    model = zoo.NETWORKS[type(arch)](arch, 10, lambda shape: "native", 2)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    with pytest.raises(ValueError, match="call the network with keys"):
        jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), variables, images)
    assert jax.eval_shape(partial(model.apply, train=False), variables, images).shape == (2, 10)
