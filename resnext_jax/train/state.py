"""The first state of a run: a function of (model, seed) alone."""

import jax.numpy as jnp
import optax

from resnext_jax.models.zoo import Network
from resnext_jax.ops.keys import seed_key
from resnext_jax.types import TrainState


def create_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    averages: bool = False,
) -> TrainState:
    """Initial parameters, statistics and momentum buffers at step 0.

    Pure: `jax.jit` places the result, `jax.eval_shape` gives its shapes for nothing.

    Args:
      optimizer: its state is created from the parameters.
      image_shape: (height, width, channel) of a training image; parameters depend on the channels alone.
      averages: whether to keep exponential moving averages.
    """
    variables = model.init(seed_key(seed), jnp.zeros((1, *image_shape), jnp.float32), train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),  # VGG may have no batch norm
        opt_state=optimizer.init(params),
        ema={"params": params, "batch_stats": variables.get("batch_stats", {})} if averages else None,
    )
