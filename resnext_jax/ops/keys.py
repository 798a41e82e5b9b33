"""The random key of a seed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key


def seed_key(seed: int) -> Key[Array, ""]:
    """Return `jax.random.key(seed)` as it is by default.

    JAX_DEFAULT_PRNG_IMPL, JAX_RANDOM_SEED_OFFSET and JAX_ENABLE_X64 do not change it.
    """
    return jax.random.wrap_key_data(jnp.array([0, seed % 2**32], jnp.uint32), impl="threefry2x32")
