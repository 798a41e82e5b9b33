"""The script that fills the table's rows of TPUs: what it tries, what it keeps, what it leaves behind."""

import types

import pytest
from absl import flags

from resnext_jax.analysis import tune_tpu
from resnext_jax.analysis.chips import CHIPS
from resnext_jax.models import zoo
from resnext_jax.ops import conv_table
from resnext_jax.ops.conv_choice import choose

# Stage 3 of ResNeXt-50 (32x4d): the grouped convolution of its second block, and the 1x1 after it.
CONV2, CONV3 = (3, 1, 32, 256, 256, 28), (1, 1, 1, 256, 512, 28)
DEVICES = [types.SimpleNamespace(device_kind="TPU v5 lite")]


def test_the_fewest_cycles_of_the_whole_step_win(monkeypatch):
    monkeypatch.setattr(conv_table, "TABLE", {})

    def cycles(config, chip, devices, known) -> float:
        rows = conv_table.TABLE["tpu v5e"]
        impls = [rows[key][0] if key in rows else "by rule" for key in (CONV2, CONV3)]
        # The second gain needs the first: a row stands while the next ones are tried (a first block's 1x1 comes first).
        return 30e6 - 1e6 * (impls[1] == "native") - 2e6 * (impls == ["dense", "native"])

    monkeypatch.setattr(tune_tpu, "cycles", cycles)
    config = types.SimpleNamespace(model=types.SimpleNamespace(name="resnext50_32x4d"))
    rows = dict(tune_tpu.tune(config, CHIPS["v5e"], DEVICES, anew=False))

    table = conv_table.TABLE["tpu v5e"]
    assert table[CONV2][0] == "dense"
    assert table[CONV2][1].startswith("dense 27.00, ")
    assert table[CONV3] == ("native", "native 29.00, moments 30.00")
    assert len(rows) == len(table)
    assert sum(shape.groups > 1 for shape in rows) == 7
    # Where the cycles were the same for all, the rule's choice stays.
    for shape, (winner, _) in rows.items():
        if table[tune_tpu.key_of(shape)] not in (table[CONV2], table[CONV3]):
            with monkeypatch.context() as empty:
                empty.setattr(conv_table, "TABLE", {})
                assert winner == choose("tpu", "v5e", shape)
    # What has a row is left alone, and tried again where that is asked for.
    assert not list(tune_tpu.tune(config, CHIPS["v5e"], DEVICES, anew=False))
    assert dict(tune_tpu.tune(config, CHIPS["v5e"], DEVICES, anew=True)).keys() == rows.keys()


def test_the_trial_has_two_blocks_in_each_stage_and_leaves_no_row():
    from configs.resnext50_32x4d import get_config

    with tune_tpu.trial_of(get_config(), zoo.ARCHS["resnext50_32x4d"]) as trial:
        assert zoo.select(**trial.model).blocks == (2, 2, 2, 2)
        assert zoo.select(**trial.model).cardinality == 32
    assert tune_tpu.TRIAL not in zoo.ARCHS


def test_without_a_config(monkeypatch, capsys):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    with pytest.raises(SystemExit) as exit_:
        tune_tpu.main(["tune_tpu"])
    assert exit_.value.code == 2
    assert "--config=configs/resnext50_32x4d.py" in capsys.readouterr().err
