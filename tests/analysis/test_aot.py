"""The command: wrong input on every machine, a compile for a TPU where its compiler is installed."""

import importlib.util
import json
import re
from types import SimpleNamespace

import jax
import pytest
import tiny

from resnext_jax.analysis import aot, chips, compiling, report
from resnext_jax.errors import UserError

CONFIG = "--config=configs/quickstart.py"
TINY = (CONFIG, "--config.model.name=resnext11_4x2d_tiny", "--config.batch_size=32", "--config.bn_group_images=8")
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not there")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((CONFIG, "--topology=v9:2x2"), "unknown topology 'v9:2x2'. Did you mean"),
        ((CONFIG, "--topology=v5e:0x4"), "v5e:2x4, v5e:4x4"),
        ((CONFIG, "--topology=v5e"), "v6e:16x16"),
        ((CONFIG, "--conv_impl=nativ"), "unknown conv_impl 'nativ'. Did you mean 'native'"),
        ((CONFIG, "--compare=fast"), "unknown conv_impl 'fast'"),
        ((), "--config=configs/NAME.py"),
        ((CONFIG, "v5e:2x4"), "remove 'v5e:2x4'"),
    ],
)
def test_a_wrong_argument_is_one_line_with_the_remedy(failure, arguments, words):
    assert words in failure(aot, *arguments)


def test_without_the_compiler_the_message_says_how_to_install_it(failure, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    assert "pip install -e '.[tpu]'" in failure(aot, CONFIG)


def test_a_batch_that_does_not_divide_over_the_chips_is_refused():
    config = tiny.config("--config.batch_size=36", "--config.bn_group_images=0")
    with pytest.raises(UserError, match=r"batch_size=36 does not divide over 8 devices.*32 or 40"):
        aot.compile_step(config, chips.CHIPS["v5e"], jax.devices()[:8], "auto")


@pytest.fixture
def no_compiler(monkeypatch):
    """Eight chips that are CPUs; notes what was to be compiled, and refuses it as the compiler does."""
    compiled = []
    refused = compiling.Program(60.0, False, 18 * 2**30, "RESOURCE_EXHAUSTED: Used 18.00G of 15.75G hbm."), None
    monkeypatch.setattr(aot, "open_topology", lambda name: (chips.CHIPS["v5e"], jax.devices()[:8]))
    monkeypatch.setattr(aot, "lower_training_step", lambda config, devices: config.conv_impl)
    monkeypatch.setattr(aot, "compile_for", lambda chip, lowered: compiled.append(lowered) or refused)
    return compiled


def test_an_impossible_comparison_is_refused_before_compiling(failure, no_compiler):
    assert "conv_impl='merge3' cannot merge 4 groups by 3" in failure(aot, *TINY, "--compare=native+merge3")
    assert no_compiler == []


def test_a_batch_that_does_not_fit_gives_advice_and_status_1(command, no_compiler):
    status, out, _ = command(aot, *TINY, "--json")
    assert status == 1
    shown, last = out.rstrip().rsplit("\n", 1)
    (line,) = [line for line in shown.splitlines() if "DOES NOT FIT" in line]
    assert "Used 18.00G of 15.75G" in line
    assert "--config.batch_size" in line
    assert "--config.accumulation_steps" in line
    assert no_compiler == ["auto"]
    assert (json.loads(last)["fits"], json.loads(last)["estimated_cycles"]) == (False, None)


def test_flops_include_every_microbatch(monkeypatch):
    """XLA counts the body of a loop once; the loop over microbatches is nearly the whole step."""
    program_text = "ENTRY %main (x: f32[]) -> f32[] {\n}"
    executable = SimpleNamespace(as_text=lambda: program_text, cost_analysis=lambda: {"flops": 5e6})
    program = compiling.Program(1.0, True, 2**20)
    monkeypatch.setattr(aot, "compile_for", lambda chip, lowered: (program, executable))
    monkeypatch.setattr(aot, "lower_training_step", lambda config, devices: None)
    for steps, flops in ((1, 5e6), (4, 20e6)):
        config = tiny.config(f"--config.accumulation_steps={steps}")
        fields, text = aot.compile_step(config, chips.CHIPS["v5e"], [], "auto")
        assert fields["flops"] == flops
        assert f"{flops / 1e12:.3f} T flops per chip" in text


def test_classes_of_a_folder_are_unknown_without_its_files():
    with pytest.raises(UserError, match="imagenet2012"):
        compiling.dataset_info("folder")


@needs_libtpu
def test_a_topology_that_the_compiler_refuses_is_a_users_mistake(failure):
    assert "unknown topology 'v5e:3x3'" in failure(aot, CONFIG, "--topology=v5e:3x3")


@needs_libtpu
@pytest.mark.parametrize(("name", "count"), [("v3:2x2", 8), ("v4:2x2x1", 4), ("v5p:2x2x1", 4), ("v6e:2x4", 8)])
def test_devices_of_a_topology(name, count):
    """Four chips each, eight of v6e; on v3 the two cores of a chip are two devices."""
    assert len(chips.open_topology(name)[1]) == count


@needs_libtpu
def test_the_report_of_a_tiny_network(command, monkeypatch):
    texts, account = [], report.account
    monkeypatch.setattr(report, "account", lambda text, *rest: account(texts.append(text) or text, *rest))
    _, out, _ = command(aot, *TINY, "--config.augment.pad_px=0", "--topology=v5e:2x2", "--json")
    shown, last = out.rstrip().rsplit("\n", 1)
    result = json.loads(last)

    # Without a loop (cropping would bring one) the sum is that of all numbers in the text.
    assert result["estimated_cycles"] == sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', texts[0]))
    assert result["estimated_cycles"] == sum(sum(row.values()) for row in result["parts"].values())
    assert result["fits"]
    assert 0 < result["peak_hbm_bytes"] < 2**30
    assert {"flops", "compile_s", "custom_calls"} <= result.keys()
    # Every chip adds up what the others have: of the classifier the gradients of 64 x 10 weights and 10 biases, beside
    # them the loss and three counts, four bytes each.
    by_part = [pair for row in result["collectives"] for pair in row["parts"].items()]
    assert sum(size for part, size in by_part if part.startswith("classifier ")) == 4 * (64 * 10 + 10 + 1 + 3)
    assert {row["opcode"].removesuffix("-start") for row in result["collectives"]} == {"all-reduce"}
    assert {"stem", "1x1", "grouped 3x3", "BN", "shortcut", "optimizer", "input"} <= result["parts"].keys()
    assert result["parts"].get("other", {}).get("other", 0) < 0.05 * result["estimated_cycles"]
    assert "not a measurement" in shown
