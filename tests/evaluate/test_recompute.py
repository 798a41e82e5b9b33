"""Batch-norm statistics over many batches, against PyTorch's cumulative averages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_reference

from resnext_jax.evaluate.recompute import average_statistics, statistics_step
from resnext_jax.models.arch import SMALL_STEM, Arch
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.ops.augment import make_augment
from resnext_jax.ops.conv_choice import resolver
from resnext_jax.sharding import Place, make_mesh, put_replicated
from resnext_jax.types import Batch

GROUP, BATCH, FIRST_STEP, SEED = 4, 16, 40, 5
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 70.0)
AUGMENT = make_augment(mean=MEAN, std=STD, color_jitter_strength=0.4, flip_images=True, pad_px=2)


@pytest.fixture(scope="module")
def model():
    arch = Arch("bottleneck", (2, 1), 4, 2, SMALL_STEM, width=4)
    return ResNeXt(arch, 7, resolver("auto", "cpu"), GROUP)


@pytest.fixture(scope="module")
def variables(model):
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), jnp.zeros((1, 12, 12, 3)))
    # Running statistics of no account: nothing of them may be left.
    return {"params": variables["params"], "batch_stats": jax.tree.map(lambda x: x + 100.0, variables["batch_stats"])}


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256 >> number, (BATCH, 12, 12, 3), np.uint8) for number in range(3)]
    return [Batch(image, np.zeros(BATCH, np.int32), np.ones(BATCH, np.float32)) for image in images]


@pytest.fixture(scope="module")
def expected(variables, batches):
    """Torch's own `momentum=None`: the average over all groups, each a batch of its own, in float64."""
    network = torch_reference.Network(
        block="bottleneck",
        blocks=(2, 1),
        cardinality=4,
        bottleneck_width=2,
        stem=(3, 2, False),
        width=4,
        num_classes=7,
    ).double()
    torch_reference.load(network, variables)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.__class__ = torch.nn.BatchNorm2d
            module.reset_running_stats()
            module.momentum = None
    network.train()
    for number, batch in enumerate(batches, start=FIRST_STEP):
        step_key = jax.random.fold_in(jax.random.key(SEED), number)
        keys = jnp.stack([jax.random.fold_in(step_key, position) for position in range(BATCH)])
        images = np.array(AUGMENT(jnp.asarray(batch.image), keys), np.float64)
        for group in np.split(images, BATCH // GROUP):
            with torch.no_grad():
                network(torch.from_numpy(group).permute(0, 3, 1, 2))
    shapes = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    return torch_reference.from_torch(network.state_dict(), shapes)["batch_stats"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 8])  # with 8, a group spans two devices
def test_average_of_the_groups(model, variables, batches, expected, devices):
    place = Place(make_mesh(jax.devices()[:devices]), "cpu")
    step = jax.jit(partial(statistics_step, model=model, augment=AUGMENT, seed=SEED, mesh=place.mesh))
    done = []
    stats = average_statistics(
        step, put_replicated(place.mesh, variables), batches, FIRST_STEP, place, progress=done.append
    )
    assert done == [1, 2, 3]
    assert jax.tree.structure(stats) == jax.tree.structure(expected)
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(stats), jax.tree.leaves(expected), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))
