"""train_step as the loop runs it: the same trajectory on any number of devices and in any number of microbatches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.sources import open_source
from resnext_jax.sharding import Place, make_mesh, put_replicated, to_global
from resnext_jax.train.classification import Classification
from resnext_jax.train.step import all_finite, split_rows
from resnext_jax.types import Batch, TrainState

STEPS, BATCH = 20, 64


def config_of(group_images: int, num_steps: int) -> ConfigDict:
    """The tiny network on the built-in images, augmentation on."""
    config = common.fashion_mnist()
    config.model.name, config.data.name = "resnext11_4x2d_tiny", "builtin"
    config.batch_size, config.bn_group_images, config.num_steps = BATCH, group_images, num_steps
    # Rounding grows where a ReLU flips, the faster the larger the steps: at 0.1 one unit in the last place of the
    # weights is a percent of the loss after 20 steps. Statistics of the wrong images or draws of the wrong key differ
    # from the first step on.
    config.learning_rate, config.schedule.name, config.schedule.warmup_epochs = 3e-4, "step", 0.0
    return config


class Setup:
    """A batch is 8 batch-norm groups of 8."""

    def __init__(self):
        self.config = config_of(8, STEPS)
        self.config.label_smoothing = 0.1
        self.source = open_source("builtin", "train", image_size_px=28)
        self.batches: list[Batch] = list(
            train_batches(self.source, Crop("none", 28), batch_size=BATCH, seed=0, steps=range(STEPS), num_threads=1)
        )
        self.runs: dict[tuple[int, int, int], tuple[Place, Classification]] = {}
        _, run = self.run(1)
        self.start: TrainState = jax.device_get(run.create_state())

    def run(self, num_devices: int, microbatches: int = 1, group_images: int = 8) -> tuple[Place, Classification]:
        key = num_devices, microbatches, group_images
        if key not in self.runs:
            self.config.accumulation_steps, self.config.bn_group_images = microbatches, group_images
            place = Place(make_mesh(jax.devices()[:num_devices]), "cpu")
            self.runs[key] = place, Classification(self.config, place, self.source.info)
        return self.runs[key]

    def train(self, steps: int, *how: int, **by_name: int) -> tuple[TrainState, list[float]]:
        """The state after these steps and the mean loss of each; the rest as for `run`."""
        place, run = self.run(*how, **by_name)
        state, losses = put_replicated(place.mesh, self.start), []
        for batch in itertools.islice(self.batches, steps):
            state, metrics = run.train_step(state, to_global(place.mesh, batch))
            assert int(metrics.images) == BATCH
            losses.append(float(metrics.loss) / BATCH)
        return jax.device_get(state), losses


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


@pytest.fixture(scope="module")
def one_device(setup) -> tuple[TrainState, list[float]]:
    return setup.train(STEPS, num_devices=1)


def assert_states_close(got: TrainState, want: TrainState, start: TrainState, relative: float) -> None:
    """The way from `start` is the same, as one vector: a flipped ReLU moves single elements by a percent."""
    for part in ("params", "batch_stats", "opt_state"):
        ours, theirs, before = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(getattr(state, part))])
            for state in (got, want, start)
        )
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - before)
        assert error <= relative, f"{part}: {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_trajectory_does_not_depend_on_the_devices(setup, one_device, num_devices):
    want_state, want = one_device
    state, losses = setup.train(STEPS, num_devices)
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    assert_states_close(state, want_state, setup.start, 3e-2)
    assert int(state.step) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("group_images", [16, 32, 64])
def test_a_group_may_span_devices(setup, group_images):
    """With 8 images per device the partitioner exchanges what a group needs: 2, 4 or all devices share one."""
    want_state, want = setup.train(3, num_devices=1, group_images=group_images)
    state, losses = setup.train(3, num_devices=8, group_images=group_images)
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    assert_states_close(state, want_state, setup.start, 3e-2)


def test_first_state_does_not_depend_on_the_devices(setup):
    _, run = setup.run(8)
    state = run.create_state()
    jax.tree.map(np.testing.assert_array_equal, state, setup.start)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_change_nothing(setup, microbatches):
    want, want_losses = setup.train(3, num_devices=2)
    got, losses = setup.train(3, num_devices=2, microbatches=microbatches)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    assert_states_close(got, want, setup.start, 3e-2)


def test_split_rows_takes_whole_groups_in_turn():
    rows = jnp.arange(12)[:, None] * jnp.array([[1, 100]])
    # Batch-norm groups of 2: 0 1 | 2 3 | 4 5 | 6 7 | 8 9 | 10 11, dealt to three parts.
    parts = split_rows(rows, 3, 2)
    np.testing.assert_array_equal(parts[:, :, 0], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])
    np.testing.assert_array_equal(parts[:, :, 1], 100 * parts[:, :, 0])
    np.testing.assert_array_equal(split_rows(rows[:, 0], 2, 2), [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]])


@pytest.mark.slow
def test_state_is_donated_and_counted(setup):
    place, run = setup.run(2)
    state, batch = put_replicated(place.mesh, setup.start), to_global(place.mesh, setup.batches[0])
    new_state, _ = run.train_step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new_state, batch)))
    assert int(new_state.step) == 1


def test_draws_depend_on_the_step(setup):
    place, run = setup.run(2)
    batch = to_global(place.mesh, setup.batches[0])
    states = [put_replicated(place.mesh, setup.start.replace(step=np.int32(step))) for step in (0, 0, 1)]
    losses = [float(run.train_step(state, batch)[1].loss) for state in states]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "factor"), [("stem_conv", np.nan), ("classifier", np.nan), ("classifier", 1e30)])
def test_a_bad_gradient_shows_in_the_loss_and_the_parameters(setup, module, factor):
    place, run = setup.run(2)
    params = {**setup.start.params, module: {**setup.start.params[module]}}
    params[module]["kernel"] = params[module]["kernel"] * np.float32(factor)
    state = put_replicated(place.mesh, setup.start.replace(params=params))
    state, metrics = run.train_step(state, to_global(place.mesh, setup.batches[0]))
    assert np.isnan(metrics.loss)  # also for 1e30, where the logits have a finite loss and the gradient overflows
    assert not bool(all_finite(state))
    assert bool(all_finite(setup.start))
