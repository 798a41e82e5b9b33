"""Optimizers, masks for their weight decay, and learning-rate schedules."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from resnext_jax.errors import raise_all, unknown
from resnext_jax.types import PyTree

Mask = Callable[[PyTree], PyTree]
SCHEDULES = ("step", "cosine")


def step_schedule(
    learning_rate: float, boundaries_steps: Sequence[int], factor: float = 0.1, warmup_steps: int = 0
) -> optax.Schedule:
    """Return `learning_rate * factor ** (number of boundaries <= step)`; the paper drops at epochs 30, 60 and 90.

    Args:
      learning_rate: rate before the first boundary.
      boundaries_steps: increasing steps; a drop begins at the step that equals the boundary.
      warmup_steps: number of first steps where the rate is multiplied by `step / warmup_steps`, as in Goyal et al.
        2017 for large batches; the paper has none.

    Example:
      >>> schedule = step_schedule(0.1, [10, 20])
      >>> [round(float(schedule(step)), 6) for step in (0, 9, 10, 19, 20)]
      [0.1, 0.1, 0.01, 0.01, 0.001]
    """
    boundaries = jnp.asarray([min(step, 2**31 - 1) for step in boundaries_steps], jnp.int32)

    def schedule(step):
        passed = jnp.sum(step >= boundaries).astype(jnp.float32)
        rate = jnp.float32(learning_rate) * jnp.float32(factor) ** passed
        return rate * jnp.minimum(jnp.asarray(step, jnp.float32) / warmup_steps, 1) if warmup_steps else rate

    return schedule


def cosine_schedule(learning_rate: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Return half a cosine from `learning_rate` to 0, after a linear warm-up from 0 (Loshchilov and Hutter 2016).

    `rate * step / warmup` while step < warmup, then `rate * (1 + cos(pi * (step - warmup) / (total - warmup))) / 2`.

    Example:
      >>> schedule = cosine_schedule(0.4, total_steps=120, warmup_steps=20)
      >>> [round(float(schedule(step)), 6) for step in (0, 10, 20, 70, 120)]
      [0.0, 0.2, 0.4, 0.2, 0.0]
    """
    if warmup_steps:
        schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, total_steps)
    else:
        schedule = optax.cosine_decay_schedule(learning_rate, total_steps)
    # Optax mixes the int32 step with floats, which strict promotion forbids; float32 is exact to 16 M steps.
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    steps_per_epoch: float,
    total_steps: int,
    boundaries_steps: Sequence[int],
    factor: float,
    warmup_epochs: float,
) -> optax.Schedule:
    """Return the schedule of a config; raise UserError for an unknown name or a warm-up as long as the run."""
    raise_all([unknown("schedule.name", name, SCHEDULES)] if name not in SCHEDULES else [])
    raise_all(warmup_problems(warmup_epochs, steps_per_epoch, total_steps))
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if name == "step":
        return step_schedule(learning_rate, boundaries_steps, factor, warmup_steps)
    return cosine_schedule(learning_rate, total_steps, warmup_steps)


def warmup_problems(warmup_epochs: float, steps_per_epoch: float, total_steps: int) -> list[str]:
    """Return what is wrong with a warm-up as long as the run: an empty list, or one sentence."""
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if warmup_steps < total_steps:
        return []
    return [
        f"schedule.warmup_epochs={warmup_epochs} is {warmup_steps} steps, but the run has only {total_steps}: "
        "shorten the warm-up (--config.schedule.warmup_epochs=0) or lengthen the run (num_epochs, num_steps)."
    ]


def only(optimizer: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
    """Return the optimizer with updates only for the parameters under `name`; others do not decay either."""
    others = optax.masked(optax.set_to_zero(), lambda params: {key: key != name for key in params})
    return optax.chain(optimizer, others)


def but_norms(params: PyTree) -> PyTree:
    """Return True for every parameter outside of batch norms, which are modules with a `scale`."""
    if "scale" in params:
        return jax.tree.map(lambda _: False, params)
    return {name: but_norms(part) if isinstance(part, dict) else True for name, part in params.items()}


def kernels(params: PyTree) -> PyTree:
    """Return True for kernels, False for batch norms and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


# Which parameters decay: parameters -> True or False for each. None means all of them, as in the original code.
DECAYED: dict[str, Mask | None] = {"all": None, "but_norms": but_norms, "kernels": kernels}


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    decayed: Mask | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Return SGD as in Torch: `g += decay * w; v = momentum * v + g; w -= rate * v`.

    With `nesterov` the last step is `w -= rate * (g + momentum * v)`. The decay is added to the gradient, so momentum
    includes it. Without a mask it applies to every parameter, also batch norms and biases, as in the original code.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.trace(decay=momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(schedule),
    )


sgd_nesterov = functools.partial(sgd, nesterov=True)


def lars(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float, decayed: Mask | None = None
) -> optax.GradientTransformation:
    """Return LARS (You, Gitman and Ginsburg 2017, arXiv 1708.03888), with the ratio of optax.

    `g += decay * w; v = momentum * v + rate * 0.001 * |w| / |g| * g; w -= v` for every array. Arrays without weight
    decay have no ratio either. `|g|` is the norm of gradient plus decay, as in TensorFlow's later LARS. Algorithm 1 of
    the paper has `|gradient| + decay * |w|`, which is never less. Its steps are shorter by up to sqrt(2) if the two are
    orthogonal, as a weight before a batch norm and its gradient are.
    """
    everything = True if decayed is None else decayed
    return optax.lars(
        schedule,
        weight_decay=weight_decay,
        weight_decay_mask=everything,
        trust_coefficient=0.001,  # the paper's eta
        trust_ratio_mask=everything,
        momentum=momentum,
    )


def lamb(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float, decayed: Mask | None = None
) -> optax.GradientTransformation:
    """Return LAMB (You et al. 2019, arXiv 1904.00962, Algorithm 2) as in timm and its recipes.

    `u = m / (sqrt(v) + 1e-6) + decay * w; w -= rate * |w| / |u| * u`. m and v are Adam's bias-corrected averages
    (0.9, 0.999) of the gradient, clipped to a global norm of 1. Arrays without weight decay have no ratio either.
    `momentum` is not used.
    """
    del momentum
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        _promoting(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-6)),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.masked(optax.scale_by_trust_ratio(), True if decayed is None else decayed),
        optax.scale_by_learning_rate(schedule),
    )


def _promoting(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the same with standard promotion to 32 bits: Optax raises a float to an int32, which strict forbids."""

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


OPTIMIZERS = {"sgd_nesterov": sgd_nesterov, "sgd": sgd, "lars": lars, "lamb": lamb}
