"""Averaged weights and recomputed statistics: by hand, through checkpoints, and to the end of a run."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import resnext_jax
from resnext_jax.checkpoint import Checkpoints, locate, read_description, read_variables
from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from resnext_jax.sharding import make_mesh, put_replicated, replicated, to_global
from resnext_jax.types import TrainState


@pytest.mark.slow
def test_averages_by_hand():
    run, place = tiny.assembled("--config.ema_decay=0.25", "--config.learning_rate=0.1", devices=2)
    state = put_replicated(place.mesh, run.create_state())
    average = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    jax.tree.map(np.testing.assert_array_equal, state.ema, average)
    source = open_source("builtin", "train", image_size_px=28)
    batches = train_batches(source, Crop("none", 28), batch_size=32, seed=0, steps=range(3), num_threads=0)
    for decay, batch in zip([2 / 11, 3 / 12, 0.25], batches, strict=True):  # 4 / 13 would be more than 0.25
        state, _ = run.train_step(state, to_global(place.mesh, batch))
        now = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        average = jax.tree.map(lambda old, new, d=decay: d * old.astype("float64") + (1 - d) * new, average, now)
        for got, want in zip(jax.tree.leaves(state.ema), jax.tree.leaves(average), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    assert state.variables is state.ema


def filled(value, averaged):
    def tree(value):
        return {"conv": {"kernel": jnp.full((3, 4), value, jnp.float32)}}

    def stats(value):
        return {"bn": {"mean": jnp.full(4, value, jnp.float32)}}

    ema = None if averaged is None else {"params": tree(averaged), "batch_stats": stats(averaged)}
    return TrainState(jnp.asarray(7, jnp.int32), tree(value), stats(value), {"trace": tree(0)}, ema)


def shapes(state):
    everywhere = replicated(make_mesh(jax.devices()))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)


def test_a_checkpoint_holds_both_and_gives_the_averages(tmp_path):
    state = filled(1.0, 2.0)
    for name, saved in (("both", state), ("raw", filled(1.0, None))):
        checkpoints = Checkpoints(str(tmp_path / name), keep_newest=1, keep_best=0)
        checkpoints.save(saved, {"config": {}})
        checkpoints.wait()
        restored = checkpoints.restore(7, shapes(saved))
        jax.tree.map(np.testing.assert_array_equal, restored, saved)
        checkpoints.close()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for name, raw, value in (("both", False, 2.0), ("both", True, 1.0), ("raw", False, 1.0), ("raw", True, 1.0)):
        variables = read_variables(locate(str(tmp_path / name)), device, raw=raw)
        assert variables.keys() == {"params", "batch_stats"}
        assert all((leaf == value).all() for leaf in jax.tree.leaves(variables))

    checkpoints = Checkpoints(str(tmp_path / "raw"), keep_newest=1, keep_best=0)
    with pytest.raises(UserError, match=r"ema/params/conv/kernel: this model wants .* the checkpoint lacks it"):
        checkpoints.restore(7, shapes(state))
    checkpoints.close()


@pytest.mark.slow
def test_from_the_last_step_to_recomputed_statistics(run_main, tmp_path):
    workdir = tmp_path / "run"
    overrides = ("--config.num_steps=4", "--config.ema_decay=0.5", "--config.recompute_bn_images=70")
    # A relative path, as the default one is.
    command = tiny.arguments(f"--workdir={os.path.relpath(workdir)}", *overrides)
    assert "recomputed  " in run_main(*command)[2]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["phase"]) for row in rows] == [(4, "train"), (4, "evaluate"), (4, "recomputed_bn")]
    before = tiny.digests(tmp_path)
    assert "is done: 4 of 4 steps" in run_main(*command)[2]
    assert tiny.digests(tmp_path) == before

    recomputed = workdir / "recomputed_bn"
    assert read_description(locate(str(recomputed)))["progress"] == {"recomputed_bn_images": 96}  # whole batches
    net, averaged = resnext_jax.load(str(recomputed)), resnext_jax.load(str(workdir))
    raw = resnext_jax.load(str(workdir), raw=True)
    same = jax.tree.map(np.array_equal, net.variables["params"], averaged.variables["params"])
    assert all(jax.tree.leaves(same))
    for other in (averaged, raw):
        differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), net.variables, other.variables)
        assert all(jax.tree.leaves(differs["batch_stats"]))
    assert not np.array_equal(
        raw.variables["params"]["stem_conv"]["kernel"], averaged.variables["params"]["stem_conv"]["kernel"]
    )

    def evaluated(*arguments):
        return json.loads(run_main("--mode=evaluate", "--json", *arguments)[1].splitlines()[-1])["loss"]

    evaluations = {row["phase"]: row["loss"] for row in rows if row["phase"] != "train"}
    assert evaluated(f"--workdir={workdir}") == pytest.approx(evaluations["evaluate"], rel=1e-6)
    assert evaluated(f"--workdir={recomputed}") == pytest.approx(evaluations["recomputed_bn"], rel=1e-6)
    assert evaluated(f"--workdir={workdir}", "--raw") != pytest.approx(evaluations["evaluate"], rel=1e-6)

    status, _, error = run_main("--mode=recompute_bn", f"--workdir={workdir}")
    assert status == 2
    assert f"{recomputed / 'checkpoints' / '4'} is there already, and is never overwritten" in error
    arrays = tiny.arrays(recomputed / "checkpoints" / "4")
    recomputed.rename(tmp_path / "away")
    _, said, _ = run_main("--mode=recompute_bn", "--json", f"--workdir={workdir}")
    row = json.loads(said.splitlines()[-1])
    assert row["checkpoint"] == str(recomputed / "checkpoints" / "4")
    assert row["loss"] == pytest.approx(evaluations["recomputed_bn"], rel=1e-6)
    for name, array in tiny.arrays(recomputed / "checkpoints" / "4").items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    (line,) = (recomputed / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["phase"] == "recomputed_bn"
