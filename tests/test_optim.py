"""optim.py: schedules by hand, SGD against torch.optim.SGD."""

import doctest
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import torch

from resnext_jax import optim
from resnext_jax.errors import UserError
from resnext_jax.models import zoo


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
    plain = make("step", warmup_epochs=0.0)
    np.testing.assert_allclose(rates(plain, 0, 93, 94, 327, 328), [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-6)
    # Goyal et al. 2017: linear from 0 in two epochs, 188 steps; the drops stay where they are.
    warm = make("step", boundaries_steps=(328, 656))
    want = [0.0, 0.05, 0.1 * 187 / 188, 0.1, 0.1, 0.01, 0.001]
    np.testing.assert_allclose(rates(warm, 0, 94, 187, 188, 327, 328, 656), want, rtol=1e-6)
    # Warm-up 2 * 93.75 = 187.5 rounds to 188; half of the rest is at step 188 + 937 / 2.
    got = rates(make("cosine"), 94, 188, 656, 657, 1125)
    np.testing.assert_allclose(got[:2], [0.05, 0.1], rtol=1e-6)
    assert got[2] > 0.05 > got[3]
    assert got[4] == pytest.approx(0, abs=1e-7)


def test_schedule_mistakes():
    with pytest.raises(UserError, match=r"warmup_epochs=12\.0 is 1125 steps, but the run has only 1125"):
        make("cosine", warmup_epochs=12.0)
    with pytest.raises(UserError, match=r"warmup_epochs=12\.0 is 1125 steps"):
        make("step", warmup_epochs=12.0)
    with pytest.raises(UserError, match=r"unknown schedule\.name 'cosin'. Did you mean 'cosine'\?.*step"):
        make("cosin")


START = {
    "conv": {"kernel": np.random.default_rng(0).normal(size=(3, 3, 2, 4))},
    "bn": {"scale": np.array([1.0, -0.5, 0.2, 1.3]), "bias": np.array([0.1, 0.0, -0.3, 0.4])},
    "classifier": {"kernel": np.random.default_rng(1).normal(size=(4, 3)), "bias": np.array([0.5, -0.2, 0.3])},
}
DECAYED = {
    "all": {"conv/kernel", "bn/scale", "bn/bias", "classifier/kernel", "classifier/bias"},
    "but_norms": {"conv/kernel", "classifier/kernel", "classifier/bias"},
    "kernels": {"conv/kernel", "classifier/kernel"},
}


def flat(tree: dict) -> dict[str, np.ndarray]:
    return {f"{module}/{name}": np.asarray(leaf) for module, leaves in tree.items() for name, leaf in leaves.items()}


def gradients(count: int, scale: float = 1.0) -> list[dict]:
    rng = np.random.default_rng(2)
    return [jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape), START) for _ in range(count)]


def trained(name: str, decayed: str, given: list[dict], rate: float, **numbers: float) -> dict[str, np.ndarray]:
    """The parameters after steps of our optimizer, jitted, in float32."""
    arguments = {"momentum": 0.8, "weight_decay": 0.1, **numbers}
    schedule = optim.step_schedule(rate, [2], 0.1)
    optimizer = optim.OPTIMIZERS[name](schedule, decayed=optim.DECAYED[decayed], **arguments)
    to_float32 = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, jnp.float32))
    params = to_float32(START)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in given:
        updates, state = update(to_float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return flat(params)


def trained_by_torch(optimizer_of, decayed: str, given: list[dict]) -> dict[str, np.ndarray]:
    parameters = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in flat(START).items()}
    groups = [
        {"params": [p for name, p in parameters.items() if (name in DECAYED[decayed]) is with_decay], "weight_decay": w}
        for with_decay, w in ((True, 0.1), (False, 0.0))
    ]
    optimizer = optimizer_of([group for group in groups if group["params"]])
    drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)
    for gradient in given:
        for name, array in flat(gradient).items():
            parameters[name].grad = torch.tensor(array)
        optimizer.step()
        drops.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("decayed", DECAYED)
@pytest.mark.parametrize("name", ["sgd", "sgd_nesterov"])
def test_sgd_with_decay_for_some_equals_torch(name, decayed):
    given = gradients(4)
    nesterov = name == "sgd_nesterov"
    want = trained_by_torch(
        lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.8, nesterov=nesterov), decayed, given
    )
    assert_same(trained(name, decayed, given, 0.5), want)


@pytest.mark.parametrize("scale", [10.0, 1e-3], ids=["clipped", "small"])
@pytest.mark.parametrize("decayed", ["all", "kernels"])
def test_lamb_equals_timm(torchvision, decayed, scale):
    from timm.optim.lamb import Lamb

    given = gradients(4, scale)
    want = trained_by_torch(lambda groups: Lamb(groups, lr=0.05), decayed, given)
    assert_same(trained("lamb", decayed, given, 0.05), want)


@pytest.mark.parametrize("decayed", ["all", "kernels"])
def test_lars_equals_its_formula(decayed):
    """That of its docstring, in float64, with the norm of the decayed gradient; without decay, momentum SGD."""
    given, params = gradients(4), flat(START)
    velocity = {name: np.zeros_like(array) for name, array in params.items()}
    for step, gradient in enumerate(given):
        for name, g in flat(gradient).items():
            w, rate = params[name], 8.0 if step < 2 else 0.8
            if name in DECAYED[decayed]:
                g = g + 0.1 * w
                rate *= 0.001 * np.linalg.norm(w) / np.linalg.norm(g)
            velocity[name] = 0.8 * velocity[name] + rate * g
            params[name] = w - velocity[name]
    assert_same(trained("lars", decayed, given, 8.0), params)


def test_what_weight_decay_is_for_in_a_real_network():
    model = tiny.cpu_model(zoo.select("resnext50_32x4d"), 1000)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)["params"]
    # 53 convolutions, each with a batch norm of two arrays; the classifier's kernel and bias.
    counted = {name: sum(jax.tree.leaves(mask(params))) for name, mask in optim.DECAYED.items() if mask}
    assert counted == {"but_norms": 53 + 2, "kernels": 53 + 1}
    assert len(jax.tree.leaves(params)) == 53 + 2 * 53 + 2
    assert optim.but_norms(params)["classifier"] == {"kernel": True, "bias": True}
    assert optim.but_norms(params)["stage2"]["block1"]["shortcut_bn"] == {"scale": False, "bias": False}
