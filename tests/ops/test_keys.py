"""Random keys, against jax.random.key under JAX's own settings."""

import jax
import numpy as np
import pytest

from resnext_jax.ops.keys import seed_key


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_key_is_jaxs_own_under_its_default_settings(seed):
    assert jax.random.key_impl(seed_key(seed)) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(seed_key(seed)), jax.random.key_data(jax.random.key(seed)))
