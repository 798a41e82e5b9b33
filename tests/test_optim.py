"""optim.py: schedules by hand, SGD against torch.optim.SGD."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from resnext_jax import optim
from resnext_jax.errors import UserError


def rates(schedule: optax.Schedule, *steps: int) -> list[float]:
    """As the training step asks: compiled, with an int32 counter."""
    return [float(jax.jit(schedule)(jnp.int32(step))) for step in steps]


def test_examples_in_docstrings():
    result = doctest.testmod(optim)
    assert result.attempted >= 4
    assert result.failed == 0


def test_step_schedule_drops_at_each_boundary():
    schedule = optim.step_schedule(0.1, [30, 60, 90])
    got = rates(schedule, 0, 29, 30, 59, 60, 89, 90, 1000)
    np.testing.assert_allclose(got, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-6)
    np.testing.assert_allclose(rates(optim.step_schedule(0.3, []), 0, 99), [0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(rates(optim.step_schedule(0.3, [2], 0.5), 1, 2), [0.3, 0.15], rtol=1e-6)


def test_cosine_schedule():
    schedule = optim.cosine_schedule(0.4, total_steps=120, warmup_steps=20)
    # A third of the way down the cosine is at cos(60 degrees) = 1/2; past the end the rate stays 0.
    want = [0.0, 0.02, 0.38, 0.4, 0.4 * (1 + math.cos(math.pi / 4)) / 2, 0.2, 0.0, 0.0]
    np.testing.assert_allclose(rates(schedule, 0, 1, 19, 20, 45, 70, 120, 500), want, rtol=1e-5, atol=1e-7)
    schedule = optim.cosine_schedule(0.4, total_steps=90)
    np.testing.assert_allclose(rates(schedule, 0, 30, 45, 60, 90), [0.4, 0.3, 0.2, 0.1, 0.0], rtol=1e-5, atol=1e-7)


def make(name: str, **changes) -> optax.Schedule:
    numbers = dict(learning_rate=0.1, steps_per_epoch=93.75, total_steps=1125, boundaries_steps=(94, 328), factor=0.1)
    return optim.make_schedule(name, **{**numbers, "warmup_epochs": 2.0, **changes})


def test_schedules_by_name():
    np.testing.assert_allclose(rates(make("step"), 93, 94, 327, 328), [0.1, 0.01, 0.01, 0.001], rtol=1e-6)
    # Warm-up 2 * 93.75 = 187.5 rounds to 188; half of the rest is at step 188 + 937 / 2.
    got = rates(make("cosine"), 94, 188, 656, 657, 1125)
    np.testing.assert_allclose(got[:2], [0.05, 0.1], rtol=1e-6)
    assert got[2] > 0.05 > got[3]
    assert got[4] == pytest.approx(0, abs=1e-7)


def test_schedule_mistakes():
    with pytest.raises(UserError, match=r"warmup_epochs=12\.0 is 1125 steps, but the run has only 1125"):
        make("cosine", warmup_epochs=12.0)
    with pytest.raises(UserError, match=r"unknown schedule\.name 'cosin'. Did you mean 'cosine'\?.*step"):
        make("cosin")


def test_sgd_equals_torch():
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    gradients = [{name: rng.normal(size=array.shape) for name, array in start.items()} for _ in range(6)]

    theirs = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in start.items()}
    sgd = torch.optim.SGD(theirs.values(), lr=0.5, momentum=0.8, weight_decay=0.1, nesterov=True)
    drops = torch.optim.lr_scheduler.MultiStepLR(sgd, [3], 0.1)
    for gradient in gradients:
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        sgd.step()
        drops.step()

    optimizer = optim.sgd_nesterov(optim.step_schedule(0.5, [3]), momentum=0.8, weight_decay=0.1)
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), start)
    state = optimizer.init(params)
    for gradient in gradients:
        gradient = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), gradient)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)
