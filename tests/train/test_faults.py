"""Steps that are not finite: skipped without a trace, counted, stopped at, and found."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from resnext_jax import builders, metrics
from resnext_jax.errors import UserError
from resnext_jax.sharding import put_replicated, to_global
from resnext_jax.train.nans import NanDebugger, first_nonfinite
from resnext_jax.train.step_sums import DivergenceMonitor, StepAccumulator, Throughput
from resnext_jax.types import Batch

POISON = 255  # in the first pixel


@pytest.fixture(scope="module")
def skipping():
    """(place, run) of the tiny network on two devices, whose augmentation makes NaN of a poisoned image."""

    def augment(images, keys):
        poisoned = images[:, :1, :1] == POISON
        return jnp.where(poisoned, jnp.nan, images.astype(jnp.float32) / 255.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "make_augment", lambda **_: augment)
        run, place = tiny.assembled("--config.on_nonfinite=skip", devices=2)
    return place, run


def batch(place, number, poisoned=()):
    rng = np.random.default_rng(number)
    images = rng.integers(0, 250, (32, 28, 28, 1), np.uint8)
    images[list(poisoned), 0, 0] = POISON
    return to_global(place.mesh, Batch(images, rng.integers(0, 10, 32).astype(np.int32), np.ones(32, np.float32)))


@pytest.mark.slow
def test_a_poisoned_batch_changes_nothing_but_the_counts(skipping):
    place, run = skipping
    state = put_replicated(place.mesh, run.create_state())
    state, _ = run.train_step(state, batch(place, 0))
    before = jax.device_get(state)
    state, sums = run.train_step(state, batch(place, 1, poisoned=[17]))
    after = jax.device_get(state)
    counts = 0
    for (path, old), (_, new) in zip(*map(jax.tree_util.tree_leaves_with_path, (before, after)), strict=True):
        count = np.issubdtype(old.dtype, np.integer)
        np.testing.assert_array_equal(new, old + 1 if count else old, err_msg=jax.tree_util.keystr(path))
        counts += count
    assert counts == 2  # of the step, and of the schedule
    assert [float(value) for value in vars(sums).values()] == [0, 0, 0, 0]

    # A run that never saw that batch goes on to the same bits.
    state, sums = run.train_step(state, batch(place, 2))
    assert int(sums.images) == 32
    without = jax.tree.map(lambda x: x + 1 if np.issubdtype(x.dtype, np.integer) else x, before)
    without, _ = run.train_step(put_replicated(place.mesh, without), batch(place, 2))
    jax.tree.map(np.testing.assert_array_equal, state, without)
    assert not np.array_equal(state.params["classifier"]["kernel"], before.params["classifier"]["kernel"])


@pytest.mark.parametrize("where", ["batch_stats", "classifier"])
@pytest.mark.slow
def test_not_only_the_loss_decides(skipping, where):
    place, run = skipping
    state = jax.tree.map(np.array, run.create_state())
    if where == "batch_stats":
        state.batch_stats["stem_bn"]["mean"][:] = np.inf  # stays so, though neither loss nor gradient sees it
    else:
        state.params["classifier"]["kernel"] *= np.float32(1e30)  # a finite loss, and a gradient that overflows
    after, sums = run.train_step(put_replicated(place.mesh, state), batch(place, 0))
    assert int(sums.images) == 0
    np.testing.assert_array_equal(after.params["stem_conv"]["kernel"], state.params["stem_conv"]["kernel"])


def sums_of(mean_loss, images=4, top1=1, top5=2):
    return metrics.Sums(np.float32(mean_loss * images), np.int32(top1), np.int32(top5), np.int32(images))


MACHINE = Throughput(4, 1, 1.0, None)
SKIPPED = sums_of(0, 0, 0, 0)


def faults(losses=(), max_skipped=3):
    notes = []
    found = DivergenceMonitor(
        "runs/x", skips=True, max_skipped_in_a_row=max_skipped, spike_nats=1.0, losses=losses, log=notes.append
    )
    return found, notes


def test_spikes_by_hand():
    found, notes = faults([9.0, 2.0, 4.0, 3.0])  # the median of these is 3.5
    for step, loss in enumerate([4.5, 4.51, 3.0, 20.0], start=10):
        found.check(step, sums_of(loss))
    assert [note.split(";")[0] for note in notes] == ["loss spike: 4.5100 at step 11", "loss spike: 20.0000 at step 13"]
    assert "median of the last rows is 3.5000" in notes[0]
    assert found.row(8.0) == {"loss_spikes": 2, "skipped_steps": 0}
    assert found.row(8.0) == {"loss_spikes": 0, "skipped_steps": 0}
    found.check(14, sums_of(5.51))  # the median of 9, 2, 4, 3, 8, 8 is 6: no spike
    assert len(notes) == 2
    # Only the last ten rows count: 3, 8, 8 and seven of 1.
    for _ in range(7):
        found.row(1.0)
    found.check(15, sums_of(2.01))
    assert len(notes) == 3


def test_no_spike_before_there_are_rows():
    found, notes = faults([1.0, 1.0])
    found.check(5, sums_of(100.0))
    assert notes == []


def test_skipped_steps_are_counted_and_too_many_in_a_row_stop():
    found, _ = faults(max_skipped=3)
    for step, sums in enumerate([SKIPPED, SKIPPED, sums_of(1.0), SKIPPED, SKIPPED], start=1):
        found.check(step, sums)
    assert found.row(1.0) == {"loss_spikes": 0, "skipped_steps": 4}
    with pytest.raises(UserError, match=r"3 steps in a row is not finite at step 6: .*Lower learning_rate"):
        found.check(6, SKIPPED)  # in a row over two rows


def test_a_window_that_is_left_and_taken_up_gives_the_same_row():
    losses = [0.1, 0.7, 2.3, 0.4, 9.9]
    rows, rows_before = [], [1.0, 1.0, 1.0]
    for stop in range(6):
        found, _ = faults(rows_before)
        window, carried = StepAccumulator(MACHINE, found), None
        for step, loss in enumerate(losses):
            if step == stop:
                window.drain()
                carried = window.carried()
                assert all(type(value) in (int, float) for value in carried.values())
                found, _ = faults(rows_before)
                window = StepAccumulator(MACHINE, found, carried)
            window.add(step, SKIPPED if step == 3 else sums_of(loss), 0.0)
        row = window.row()
        rows.append({name: value for name, value in row.items() if name not in metrics.TIMED_FIELDS})
    assert all(row == rows[0] for row in rows)
    assert rows[0]["loss"] == sum(float(np.float32(4 * loss)) for loss in (0.1, 0.7, 2.3, 9.9)) / 16
    assert (rows[0]["images"], rows[0]["skipped_steps"], rows[0]["loss_spikes"]) == (16, 1, 2)
    window.add(9, SKIPPED, 0.0)
    assert window.row().keys() & {"loss", "top1", "top5"} == set()


def test_the_operation_and_the_layer_are_named():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jax.jit(lambda z: jnp.log(z - 3.0))(x)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Layer(name="conv2")(x) * jnp.nan

    text = first_nonfinite(lambda x: Network().apply({}, x), jnp.array([2.0, 5.0]))
    assert "The first NaN is the result of `log` in conv2 (forward)" in text
    assert "operation by operation it is finite" in first_nonfinite(jnp.square, jnp.array([2.0]))


def test_the_backward_pass_is_told_apart():
    def function(x):
        return 1e30 * (1e30 * x)

    # 1e-35 becomes 1e25; its gradient would be 1e60.
    text = first_nonfinite(jax.grad(function), jnp.float32(1e-35))
    assert "The first infinity is the result of `mul` in the backward pass" in text


@pytest.mark.slow
def test_nan_debugger_names_the_layer_that_overflows():
    """Kernels near the largest float32: the sums of their products overflow, in that very layer."""
    run, place = tiny.assembled("--config.augment.flip=false", "--config.augment.pad_px=0")  # fewer operations
    state = jax.device_get(run.create_state())
    state.params["stage2"]["block1"]["conv2"] = {
        name: kernel / np.abs(kernel).max() * np.float32(3e38)
        for name, kernel in state.params["stage2"]["block1"]["conv2"].items()
    }
    good, bad = (put_replicated(place.mesh, each) for each in (run.create_state(), state))
    debug = NanDebugger(run.train_step, run.plain_step)
    after, sums = debug(good, batch(place, 0))
    assert (int(after.step), int(sums.images)) == (1, 32)
    with pytest.raises(UserError, match=r"debug_nans: step 1 is not finite. .* in stage2/block1/conv2 \(forward\)"):
        debug(bad, batch(place, 0))


@pytest.mark.slow
def test_a_run_stops_after_skipped_steps_and_saves_nothing(tmp_path):
    overrides = ["--config.learning_rate=1e30", "--config.on_nonfinite=skip", "--config.max_skipped_in_a_row=3"]
    output = tiny.finish(tiny.start(tmp_path, *overrides), status=2)
    # Step 1 starts from good weights; its update ruins them. Steps 2, 3 and 4 are skipped.
    assert "the loss or gradient of 3 steps in a row is not finite at step 4" in output
    assert "Traceback" not in output
    assert list((tmp_path / "checkpoints").iterdir()) == []
