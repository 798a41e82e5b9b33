"""The script that writes the table of algorithms: what it measures and what it writes."""

import types

import jax.numpy as jnp
from absl import flags

from resnext_jax.analysis import tune
from resnext_jax.ops import conv_table
from resnext_jax.ops.conv_choice import ConvShape, choose, problems_of, rule

GROUPED = ConvShape(kernel_px=3, stride=2, groups=4, in_channels=8, out_channels=8, height=4, width=4)


def test_shapes_of_a_network():
    shapes = tune.shapes_of("resnext50_32x4d")
    assert ConvShape(7, 2, 1, 3, 64, 224, 224) in shapes
    assert ConvShape(3, 2, 32, 1024, 1024, 14, 14) in shapes
    # Four grouped ones of stride 1 and three of stride 2.
    assert sum(shape.groups == 32 for shape in shapes) == 7


def test_the_fastest_wins_and_a_near_tie_does_not(monkeypatch):
    seconds = dict.fromkeys(tune.GROUPED, 1.0) | {"dense": 0.5, "im2col": 0.49}
    monkeypatch.setattr(tune, "step_of", lambda shape, batch, dtype, impl: lambda: impl)
    monkeypatch.setattr(tune, "_seconds", lambda step: seconds[step()])
    assert tune.measure(GROUPED, 1, jnp.float32, "native")[0] == "im2col"
    winner, times = tune.measure(GROUPED, 1, jnp.float32, "dense")
    assert winner == "dense"
    assert times.startswith("im2col 490, dense 500, ")


def test_the_written_table_is_read_again_and_rules(monkeypatch, tmp_path):
    row = ("im2col", "im2col 1, native 2")
    file = tmp_path / "table.py"
    monkeypatch.setattr(conv_table, "TABLE", {"gpu": {(1, 1, 1, 8, 8, 4): row}})
    monkeypatch.setattr(tune, "shapes_of", lambda name: {GROUPED: 2})
    monkeypatch.setattr(tune, "measure", lambda *arguments: row)
    tune.run(_flags(f"--out={file}"), [])
    namespace: dict = {}
    exec(file.read_text(), namespace)  # a table of literals, just written
    assert namespace["TABLE"] == {"cpu": {(3, 2, 4, 8, 8, 4): row}, "gpu": {(1, 1, 1, 8, 8, 4): row}}

    monkeypatch.setattr(conv_table, "TABLE", namespace["TABLE"])
    assert choose("cpu", "cpu", GROUPED) == "im2col" != rule("cpu", "cpu", GROUPED)
    assert choose("tpu", "v5e", GROUPED) == rule("tpu", "v5e", GROUPED)


def test_a_gpu_is_measured_with_batches_that_fill_it(monkeypatch, tmp_path):
    """Eight images, enough for a CPU, would time the launch of its kernels; and in the precision that it trains in."""
    measured = []
    monkeypatch.setattr(tune, "shapes_of", lambda name: {GROUPED: 8})
    measure = lambda shape, batch, dtype, rule: measured.append((batch, dtype)) or ("dense", "")  # noqa: E731
    monkeypatch.setattr(tune, "measure", measure)
    device = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(tune.jax, "devices", lambda: [device])
    tune.run(_flags("--networks=resnext50_32x4d", f"--out={tmp_path / 'table.py'}"), [])
    assert measured == [(64, jnp.bfloat16)]


def _flags(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    tune.define_flags(values)
    values(["tune", *arguments])
    return values


def test_every_row_names_an_algorithm():
    winners = {winner for rows in conv_table.TABLE.values() for winner, _ in rows.values()}
    assert [problem for winner in winners for problem in problems_of(winner)] == []


def test_an_unknown_network(failure):
    assert "unknown network 'resnet5'. Did you mean" in failure(tune, "--networks=resnet5")
