"""sharding.py: which rows lie where, and the sentence for a batch that does not divide."""

import jax
import numpy as np
import pytest

from resnext_jax import sharding
from resnext_jax.types import Batch


@pytest.mark.parametrize(("batch_size", "num_devices"), [(8, 1), (8, 8), (256, 8), (3, 3)])
def test_a_batch_that_divides_has_no_problem(batch_size, num_devices):
    assert sharding.check_batch_size("batch_size", batch_size, num_devices) == []


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "advice"),
    [(250, 8, "248 or 256"), (7, 8, "8"), (0, 8, "8"), (0, 1, "1"), (-3, 2, "2"), (-8, 1, "8")],
)
def test_a_batch_that_does_not_divide(batch_size, num_devices, advice):
    (line,) = sharding.check_batch_size("evaluate.batch_size", batch_size, num_devices)
    assert f"evaluate.batch_size={batch_size} " in line
    assert f"positive multiple of {num_devices};" in line
    assert line.endswith(f"--config.evaluate.batch_size={advice}.")


def test_each_device_holds_consecutive_rows():
    devices = jax.devices()[:4]
    images = np.arange(8 * 2 * 2, dtype=np.uint8).reshape(8, 2, 2, 1)
    local = Batch(images, np.arange(8, dtype=np.int32), np.ones(8, np.float32))
    batch = sharding.to_global(sharding.make_mesh(devices), local)
    for name in ("image", "label", "mask"):
        rows, want = getattr(batch, name), getattr(local, name)
        assert (rows.shape, rows.dtype) == (want.shape, want.dtype)
        for shard in rows.addressable_shards:
            first = 2 * devices.index(shard.device)
            np.testing.assert_array_equal(shard.data, want[first : first + 2])


def test_replicated_is_whole_on_every_device():
    tree = {"kernel": np.arange(6.0, dtype=np.float32), "step": np.int32(3)}
    placed = sharding.put_replicated(sharding.make_mesh(jax.devices()), tree)
    for name, want in tree.items():
        assert len(placed[name].addressable_shards) == 8
        for shard in placed[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, want)
