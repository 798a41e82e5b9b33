"""The recipes beyond the paper: on any number of devices the same steps, what is refused, and configs of before."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_step import BATCH, config_of

from resnext_jax import builders as dataset
from resnext_jax.builders import build_augment
from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from resnext_jax.ops.augment import image_keys
from resnext_jax.sharding import Place, make_mesh, put_replicated, to_global
from resnext_jax.train.classification import Classification
from resnext_jax.types import Batch, TrainState

STEPS = 3
# Of one image, on the host and on the device, and of a group; the network's depth; the loss.
EVERYTHING = {
    "augment.policy": "trivial_augment",
    "augment.erase_probability": 0.5,
    "augment.mixup_alpha": 0.8,
    "augment.cutmix_alpha": 1.0,
    "data.repeats": 2,
    "model.stochastic_depth": 0.3,
    "loss": "sigmoid",
    "label_smoothing": 0.1,
    "weight_decay_of": "kernels",
}


class Setup:
    """Every addition at once; a batch is 4 batch-norm groups of 16."""

    def __init__(self):
        self.config = config_of(16, STEPS)
        self.config.update_from_flattened_dict(EVERYTHING)
        self.source = open_source("builtin", "train", image_size_px=28)
        place = Place(make_mesh(jax.devices()[:1]), "cpu")
        self.batches: list[Batch] = list(dataset.training_batches(self.config, self.source, place, 0, STEPS))
        self.start: TrainState = jax.device_get(self.run(1)[1].create_state())

    def run(self, num_devices: int, microbatches: int = 1) -> tuple[Place, Classification]:
        self.config.accumulation_steps = microbatches
        place = Place(make_mesh(jax.devices()[:num_devices]), "cpu")
        return place, Classification(self.config, place, self.source.info)

    def train(self, steps: int, **how: int) -> tuple[TrainState, np.ndarray]:
        place, run = self.run(**how)
        state, rows = put_replicated(place.mesh, self.start), []
        for batch in itertools.islice(self.batches, steps):
            state, sums = run.train_step(state, to_global(place.mesh, batch))
            rows.append([float(sums.loss) / BATCH, int(sums.top1), int(sums.images)])
        return jax.device_get(state), np.array(rows)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


@pytest.fixture(scope="module")
def one_device(setup) -> tuple[TrainState, np.ndarray]:
    return setup.train(STEPS, num_devices=1)


def assert_same_way(setup: Setup, got: TrainState, want: TrainState) -> None:
    """The way from the start is the same, as one vector: a flipped ReLU moves single elements by a percent."""
    ours, theirs, before = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]) for state in (got, want, setup.start)
    )
    assert np.linalg.norm(ours - theirs) <= 3e-2 * np.linalg.norm(theirs - before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    # With 8 devices a group, which is also mixed, lies on two.
    [{"num_devices": 4}, {"num_devices": 8}, {"num_devices": 2, "microbatches": 2}],
    ids=str,
)
def test_steps_do_not_depend_on_the_devices(setup, one_device, how):
    want_state, want = one_device
    state, rows = setup.train(STEPS, **how)
    np.testing.assert_allclose(rows, want, rtol=1e-5)
    assert_same_way(setup, state, want_state)


@pytest.mark.slow
def test_every_addition_is_in_the_program(setup):
    def program(**changes) -> str:
        setup.config.update_from_flattened_dict(EVERYTHING | changes)
        _, run = setup.run(1)
        return str(jax.make_jaxpr(run.plain_step)(run.state_shapes(), run.batch_shapes()))

    offs = {"augment.policy": "none", "augment.erase_probability": 0.0, "model.stochastic_depth": 0.0}
    offs |= {"loss": "softmax", "label_smoothing": 0.0, "weight_decay_of": "all"}
    programs = [program(), *(program(**{name: off}) for name, off in offs.items())]
    programs.append(program(**{"augment.mixup_alpha": 0.0, "augment.cutmix_alpha": 0.0}))
    setup.config.update_from_flattened_dict(EVERYTHING)
    assert len(set(programs)) == len(offs) + 2


@pytest.mark.slow
def test_a_policy_flips_on_the_host():
    config = tiny.config("--config.augment.pad_px=0")
    images = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 1)).astype(np.uint8)
    keys = image_keys(0, jnp.int32(0), 32)
    plain = np.asarray(build_augment(config)(images, keys))
    normalized = (images.astype(np.float32) - config.data.mean[0]) / config.data.std[0]
    assert 0 < np.isclose(plain, normalized, atol=1e-5).all(axis=(1, 2, 3)).mean() < 1
    config.augment.policy = "trivial_augment"
    np.testing.assert_allclose(np.asarray(build_augment(config)(images, keys)), normalized, rtol=1e-5, atol=1e-5)


def test_training_images_of_another_size():
    config = tiny.config("--config.data.crop=resize", "--config.data.train_size_px=20")
    place = Place(make_mesh(jax.devices()[:1]), "cpu")
    run = Classification(config, place, tiny.INFO)
    assert run.image_shape == (20, 20, 1)
    source = open_source("builtin", "train", image_size_px=28)
    batch = next(dataset.training_batches(config, source, place, 0, 1))
    assert batch.image.shape == (32, 20, 20, 1)
    assert run.batch_shapes().image.shape == batch.image.shape
    want = next(train_batches(source, Crop("resize", 20), batch_size=32, seed=0, steps=range(1)))
    np.testing.assert_array_equal(batch.image, want.image)


@pytest.mark.slow
def test_lamb_trains_and_is_resumed_by_its_state():
    run, _ = tiny.assembled("--config.optimizer=lamb", "--config.weight_decay_of=kernels")
    shapes = run.state_shapes()
    state, _ = jax.eval_shape(run.train_step, shapes, run.batch_shapes())
    assert jax.tree.structure(state) == jax.tree.structure(shapes)


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (
            ["augment.mixup_alpha=-0.1", "augment.cutmix_alpha=-1.0", "augment.erase_probability=1.5"],
            [r"augment\.mixup_alpha=-0\.1 must be 0 or more", r"cutmix_alpha=-1\.0 must", r"1\.5 must be in \[0, 1\]"],
        ),
        (["augment.policy=trivialaugment"], [r"unknown augment\.policy 'trivialaugment'. Did you mean 'trivial_aug"]),
        (["optimizer=adam"], [r"unknown optimizer 'adam'.*lamb"]),
        (["loss=bce"], [r"unknown loss 'bce'.*sigmoid"]),
        (["weight_decay_of=kernel"], [r"unknown weight_decay_of 'kernel'. Did you mean 'kernels'"]),
        (["augment.mixup_alpha=0.2", "bn_group_images=1"], [r"bn_group_images=1 leaves each alone"]),
        (["target_threshold=0.2"], [r"target_threshold=0\.2 .* is for loss='sigmoid' \(it is 'softmax'\)"]),
        (["target_threshold=0.2", "loss=sigmoid", "label_smoothing=0.1"], [r"would take label_smoothing=0\.1 away"]),
        (["data.repeats=5"], [r"data\.repeats=5 wants .* in as many batch-norm groups, and the batch has 4"]),
        (
            ["data.repeats=0", "augment.magnitude=11"],
            [r"data\.repeats=0 must be 1", r"magnitude=11 must be in \[0, 10"],
        ),
        (["data.train_size_px=20"], [r"data\.train_size_px=20 is not data\.image_size_px=28"]),
        (["data.train_size_px=0"], [r"data\.train_size_px=0 must be positive"]),
        (["model.stochastic_depth=1.0"], [r"model\.stochastic_depth=1\.0 must be in \[0, 1\)"]),
        (["model.stochastic_depth=0.1", "model.shortcut=false"], [r"leaves nothing of an image without a shortcut"]),
        (["model.stochastic_depth=0.1", "model.name=vgg11"], [r"stochastic_depth=0\.1: vgg11 has no residual blocks"]),
    ],
)
def test_what_cannot_work_is_refused(overrides, problems):
    with pytest.raises(UserError) as error:
        tiny.assembled(*(f"--config.{override}" for override in overrides))
    said = " ".join(str(error.value).split())
    for problem in problems:
        assert re.search(problem, said), said


def test_stochastic_depth_grows_from_block_to_block():
    run, _ = tiny.assembled("--config.model.stochastic_depth=0.2")
    rates = {}

    def look(call, args, kwargs, context):
        if context.method_name == "__call__" and hasattr(context.module, "stochastic_depth"):
            rates["/".join(context.module.path)] = context.module.stochastic_depth
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(run.create_state)
    assert rates == pytest.approx({"stage2/block1": 0.0, "stage3/block1": 0.1, "stage4/block1": 0.2})
