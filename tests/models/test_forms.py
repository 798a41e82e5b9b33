"""Figures 3 and 4: the forms are one function, before training and after ten steps of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnext_jax.errors import UserError
from resnext_jax.models.forms import Concatenated, Grouped, Summed, to_grouped, to_paths
from resnext_jax.models.layers import Numerics
from resnext_jax.models.resnext import Bottleneck
from resnext_jax.optim import sgd_nesterov

RNG = np.random.default_rng(0)
IMAGES, TARGET = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((8, 9, 9, 10), (8, 5, 5, 24)))
NUMERICS = Numerics(choose_conv=lambda shape: "native", bn_group_images=4)
PATHS, WIDTH, STEPS = 4, 3, 10


def block(form, kernels_px=(1, 3, 1)):
    """With a stride, and with a projection: all parts of a block."""
    return form(24, PATHS, WIDTH, 2, NUMERICS, kernels_px)


def random_variables(model) -> dict:
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)
    ranges = {"kernel": (-0.5, 0.5), "scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-0.5, 0.5), "var": (0.5, 2)}

    def draw(path, leaf):
        return jnp.asarray(rng.uniform(*ranges[path[-1].key], size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def train(model, variables: dict) -> tuple[dict, dict, jax.Array]:
    """The first gradients, the variables after ten steps of the recipe, and the outputs with the last statistics."""
    optimizer = sgd_nesterov(lambda step: 0.02, momentum=0.9, weight_decay=1e-3)

    def loss_fn(params, batch_stats):
        y, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return jnp.square(y - TARGET).mean(), updated["batch_stats"]

    @jax.jit
    def step(params, batch_stats, opt_state):
        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(params, batch_stats)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state, grads

    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state, first = optimizer.init(params), None
    for _ in range(STEPS):
        params, batch_stats, opt_state, grads = step(params, batch_stats, opt_state)
        first = grads if first is None else first
    variables = {"params": params, "batch_stats": batch_stats}
    return {"params": first}, variables, jax.jit(partial(model.apply, train=False))(variables, IMAGES)


def assert_close(got, want) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert ours.shape == theirs.shape
        assert float(jnp.abs(ours - theirs).max()) < 1e-5


@pytest.fixture(scope="module", params=[(1, 3, 1), (3, 3)])
def grouped(request) -> tuple:
    model = block(Grouped, request.param)
    variables = random_variables(model)
    return request.param, variables, train(model, variables)


@pytest.mark.slow
@pytest.mark.parametrize("form", [Summed, Concatenated])
def test_one_function_with_one_gradient_for_ten_steps(grouped, form):
    kernels_px, variables, (gradients, after, outputs) = grouped
    model, mapped = block(form, kernels_px), to_paths(variables, form, PATHS)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, mapped) == jax.tree.map(jnp.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, to_grouped(mapped, form), variables)
    their_gradients, their_after, their_outputs = train(model, mapped)
    assert float(jnp.abs(after["params"]["conv1"]["kernel"] - variables["params"]["conv1"]["kernel"]).max()) > 1e-3
    assert_close(to_grouped(their_gradients, form), gradients)
    assert_close(to_grouped(their_after, form), after)
    assert_close(their_after, to_paths(after, form, PATHS))
    assert_close(their_outputs, outputs)


@pytest.mark.slow
def test_the_grouped_form_is_the_block_of_the_networks(grouped):
    kernels_px, variables, _ = grouped
    if kernels_px == (3, 3):
        # Figure 4: wider and dense, no groups anywhere.
        assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 10, PATHS * WIDTH)
        assert variables["params"]["conv2"]["kernel"].shape == (3, 3, PATHS * WIDTH, 24)
        return
    model = Bottleneck(24, 2, NUMERICS, inner=PATHS * WIDTH, cardinality=PATHS)
    for mode in (True, False):
        ours, theirs = (
            jax.jit(partial(form.apply, train=mode, mutable=["batch_stats"]))(variables, IMAGES)
            for form in (block(Grouped), model)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_cardinality_that_does_not_divide(grouped):
    with pytest.raises(UserError, match="cardinality 5 does not divide the 12 channels of this block"):
        to_paths(grouped[1], Summed, 5)
