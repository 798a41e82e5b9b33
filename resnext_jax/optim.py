"""SGD with Nesterov momentum and coupled weight decay, and the learning-rate schedules."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from resnext_jax.errors import UserError, unknown


def step_schedule(learning_rate: float, boundaries_steps: Sequence[int], factor: float = 0.1) -> optax.Schedule:
    """`learning_rate * factor ** (number of boundaries <= step)`: the paper's, dropping at epochs 30, 60 and 90.

    Args:
      learning_rate: before the first boundary.
      boundaries_steps: increasing; the drop holds from the step that equals the boundary.
      factor: of each drop.

    Example:
      >>> schedule = step_schedule(0.1, [10, 20])
      >>> [round(float(schedule(step)), 6) for step in (0, 9, 10, 19, 20)]
      [0.1, 0.1, 0.01, 0.01, 0.001]
    """
    boundaries = jnp.asarray(boundaries_steps, jnp.int32)

    def schedule(step):
        passed = jnp.sum(step >= boundaries).astype(jnp.float32)
        return jnp.float32(learning_rate) * jnp.float32(factor) ** passed

    return schedule


def cosine_schedule(learning_rate: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Half a cosine from `learning_rate` to 0, after a linear warm-up from 0 (Loshchilov and Hutter 2016).

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
    """The schedule of a config.

    Raises:
      UserError: an unknown name, or a warm-up as long as the run.
    """
    if name == "step":
        return step_schedule(learning_rate, boundaries_steps, factor)
    if name == "cosine":
        warmup_steps = round(warmup_epochs * steps_per_epoch)
        if warmup_steps >= total_steps:
            raise UserError(
                f"schedule.warmup_epochs={warmup_epochs} is {warmup_steps} steps, but the run has only {total_steps}: "
                "shorten the warm-up (--config.schedule.warmup_epochs=0) or lengthen the run (num_epochs, num_steps)."
            )
        return cosine_schedule(learning_rate, total_steps, warmup_steps)
    raise UserError(unknown("schedule.name", name, ("step", "cosine")))


def only(optimizer: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
    """The optimizer, whose updates change nothing but the parameters under `name`: weight decay neither."""
    others = optax.masked(optax.set_to_zero(), lambda params: {key: key != name for key in params})
    return optax.chain(optimizer, others)


def sgd_nesterov(schedule: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD as Torch's: `g += decay * w; v = momentum * v + g; w -= rate * (g + momentum * v)`.

    The decay is coupled (added to the gradient, so momentum sees it) and applies to every parameter, batch norm and
    biases included, as in the original code.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum, nesterov=True),
        optax.scale_by_learning_rate(schedule),
    )
