"""Saved and restored, found, kept and compared."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from resnext_jax.checkpoint import Checkpoints, locate, mismatches, newest_sound, read_description, read_variables
from resnext_jax.errors import UserError
from resnext_jax.sharding import make_mesh, replicated
from resnext_jax.types import TrainState

DESCRIPTION = {"config": {"seed": 3}, "dataset": {"name": "builtin", "class_names": ["a", "b"]}}
PROGRESS = {"window": {"loss": 0.1, "top1": 3}, "evaluated": False}


def state_at(step, weight=1.0):
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"conv": {"kernel": jnp.full((3, 4), weight, jnp.float32)}},
        batch_stats={"bn": {"mean": jnp.arange(4, dtype=jnp.float32)}},
        opt_state=({}, {"trace": {"conv": {"kernel": jnp.full((3, 4), 2 * weight, jnp.float32)}}}),
    )


def shapes_of(state, sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def saved(workdir, *states, keep_newest=9, **options):
    checkpoints = Checkpoints(str(workdir), keep_newest=keep_newest, **{"keep_best": 0, **options})
    for state in states:
        checkpoints.save(state, DESCRIPTION, PROGRESS)
    checkpoints.close()
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_round_trip_onto_other_devices(tmp_path):
    state = state_at(7, weight=0.1)
    saved(tmp_path, state)
    sharding = replicated(make_mesh(jax.devices()))
    assert newest_sound(str(tmp_path), pytest.fail) == 7
    checkpoints = Checkpoints(str(tmp_path), keep_newest=1, keep_best=0)
    restored = checkpoints.restore(7, shapes_of(state, sharding))
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert left.dtype == right.dtype
        assert right.sharding == sharding
        np.testing.assert_array_equal(left, right)


def test_read_without_the_optimizer(tmp_path, monkeypatch):
    saved(tmp_path / "run", state_at(7, weight=0.1))
    monkeypatch.chdir(tmp_path)
    assert read_description(locate("run")) == {**DESCRIPTION, "progress": PROGRESS}
    variables = read_variables(locate("run"), jax.sharding.SingleDeviceSharding(jax.devices()[5]))
    assert variables.keys() == {"params", "batch_stats"}
    np.testing.assert_array_equal(variables["params"]["conv"]["kernel"], np.full((3, 4), np.float32(0.1)))
    assert variables["batch_stats"]["bn"]["mean"].devices() == {jax.devices()[5]}


def test_save_is_of_its_moment_though_buffers_are_donated_at_once(tmp_path):
    """The arrays are large enough (16 MB) for the write to go on while the next steps reuse the memory."""
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state), donate_argnums=0)
    state = TrainState(jnp.asarray(1, jnp.int32), {"kernel": jnp.ones((2048, 2048))}, {}, ())
    checkpoints = Checkpoints(str(tmp_path), keep_newest=9, keep_best=0)
    for _ in range(3):
        checkpoints.save(state, DESCRIPTION, PROGRESS)
        for _ in range(4):
            state = step(state)
    checkpoints.close()
    for number in (1, 5, 9):
        kernel = tiny.arrays(tmp_path / "checkpoints" / str(number))["['params']['kernel']"]
        assert (kernel == number).all(), number


def test_newest_and_best_are_kept(tmp_path):
    """Step 1 has the highest score; 5 and 6 are the newest, though 6 has no score."""
    states = [state_at(step) for step in range(1, 7)]
    scores = {1: 0.9, 2: 0.5, 3: 0.8, 5: 0.7}
    assert saved(tmp_path, *states, keep_newest=2, keep_best=1, scores=scores) == [1, 5, 6]


def test_locate(tmp_path):
    saved(tmp_path / "run", state_at(9), state_at(10))
    newest = tmp_path / "run" / "checkpoints" / "10"
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", newest):
        assert str(locate(str(path))) == str(newest)
    with pytest.raises(UserError, match=r"no checkpoint in .*nothing") as error:
        locate(str(tmp_path / "nothing"))
    assert "python main.py" in str(error.value)


def test_unfinished_save_is_never_read(tmp_path):
    saved(tmp_path, state_at(3))
    unfinished = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    (tmp_path / "checkpoints" / "3").rename(unfinished)
    (unfinished / "commit_success.txt").unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        locate(str(tmp_path))
    assert newest_sound(str(tmp_path), pytest.fail) is None
    checkpoints = Checkpoints(str(tmp_path), keep_newest=1, keep_best=0)
    checkpoints.save(state_at(8, weight=5), DESCRIPTION, PROGRESS)  # the step of the unfinished save
    checkpoints.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["8"]
    assert (tiny.arrays(locate(str(tmp_path)))["['params']['conv']['kernel']"] == 5).all()


def test_mismatches_by_hand():
    def array(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, dtype)

    wanted = {"params": {"a": array(3, 4), "b": array(2), "d": array(1)}, "step": array(dtype="int32")}
    found = {"params": {"a": array(3, 4), "b": array(5), "c": array(6)}, "step": array()}
    assert mismatches(wanted, wanted) == []
    assert mismatches(wanted, found) == [
        "params/b: this model wants float32(2,), the checkpoint has float32(5,)",
        "params/c: the checkpoint has float32(6,), this model has no such array",
        "params/d: this model wants float32(1,), the checkpoint lacks it",
        "step: this model wants int32(), the checkpoint has float32()",
    ]


def test_restore_into_another_model_names_both_shapes_and_changes_nothing(tmp_path):
    saved(tmp_path, state_at(7))
    other = state_at(7).replace(params={"conv": {"kernel": jnp.zeros((5, 4))}})
    before = tiny.digests(tmp_path)
    checkpoints = Checkpoints(str(tmp_path), keep_newest=1, keep_best=0)
    with pytest.raises(UserError, match="belongs to another model") as error:
        checkpoints.restore(7, shapes_of(other, None))
    checkpoints.close()
    assert "params/conv/kernel: this model wants float32(5, 4), the checkpoint has float32(3, 4)" in str(error.value)
    assert tiny.digests(tmp_path) == before


@pytest.mark.parametrize("lost", ["variables/_METADATA", "config"])
def test_a_damaged_checkpoint_is_named(tmp_path, lost):
    state = state_at(7, weight=0.1)
    saved(tmp_path, state)
    path = tmp_path / "checkpoints" / "7" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    checkpoint, device = locate(str(tmp_path)), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    read = functools.partial(read_description if lost == "config" else read_variables, checkpoint)
    with pytest.raises(UserError, match=r"checkpoints/7 is damaged .*Move it away to use the one before"):
        read(*([] if lost == "config" else [device]))
