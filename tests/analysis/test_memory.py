"""The table of memory: which configs, which rows, the exit status, wrong input; the compiler itself where it is."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from resnext_jax.analysis import chips, compiling, memory

RESNET50, RESNEXT50, NO_SHORTCUT = (
    f"configs/{name}.py" for name in ("resnet50", "resnext50_32x4d", "resnext50_32x4d_no_shortcut")
)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not there")


@pytest.fixture
def compiler(monkeypatch) -> list[str]:
    """Four chips; a program's text is its network, and 101 layers do not fit. Returns the texts that it compiled."""
    compiled: list[str] = []

    def lower(config, devices):
        assert (config.batch_size, len(devices)) == (128, 4)
        return SimpleNamespace(as_text=lambda: config.model.name)

    def compile_for(chip, lowered):
        compiled.append(lowered.as_text())
        if "101" in compiled[-1]:
            return compiling.Program(80.0, False, 20 * 2**30, "RESOURCE_EXHAUSTED: ..."), None
        return compiling.Program(70.0, True, 2**30), object()

    monkeypatch.setattr(memory, "open_topology", lambda name: (chips.CHIPS["v5e"], jax.devices()[:4]))
    monkeypatch.setattr(memory, "lower_training_step", lower)
    monkeypatch.setattr(memory, "compile_for", compile_for)
    return compiled


def test_the_same_program_is_compiled_once_and_the_row_says_so(command, compiler):
    """The fake text leaves out the shortcuts, so that two configs are one program."""
    status, out, _ = command(memory, RESNET50, RESNEXT50, NO_SHORTCUT, "--json")
    assert status is None
    assert compiler == ["resnet50", "resnext50_32x4d"]
    *shown, last = out.splitlines()
    assert shown[-3].split() == [RESNET50, "resnet50", "1.00", "15.75", "fits", "70"]
    assert shown[-1].split()[1:] == ["resnext50_32x4d,", "no", "shortcuts", "1.00", "15.75", "fits", "as", RESNEXT50]
    assert "not a measurement" in shown[0]
    result = json.loads(last)
    assert (result["fits"], result["batch_size"], result["num_chips"]) == (True, 128, 4)
    assert [row["same_as"] for row in result["configs"]] == [None, None, RESNEXT50]
    assert [row["peak_hbm_bytes"] for row in result["configs"]] == [2**30] * 3


@pytest.mark.slow
def test_by_default_imagenet_configs_and_status_1_if_too_large(command, compiler):
    status, out, _ = command(memory, "--json")
    assert status == 1
    *shown, last = out.splitlines()
    rows = {Path(row["config"]).stem: row for row in json.loads(last)["configs"]}
    # 14 of Tables 3 and 4, 2 without shortcuts, 4 of ImageNet-5K; nothing of CIFAR or Fashion-MNIST.
    assert {"resnet50", "resnext101_64x4d", "resnet50_no_shortcut", "resnext101_32x4d_imagenet5k"} <= rows.keys()
    assert not [name for name in rows if "cifar" in name or "fashion" in name or name == "quickstart"]
    assert {name for name, row in rows.items() if not row["fits"]} == {name for name in rows if "101" in name}
    line = next(line for line in shown if line.startswith("configs/resnext101_64x4d.py"))
    assert line.split()[1:] == ["resnext101_64x4d", "20.00", "15.75", "DOES", "NOT", "FIT", "80"]
    assert "do not fit: lower --images_per_chip" in shown[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--topology=v9:2x2",), "unknown topology 'v9:2x2'. Did you mean"),
        ((RESNET50, "configs/resnet5.py"), "unknown config file 'configs/resnet5.py'. Did you mean"),
        (("--images_per_chip=0",), "--images_per_chip=0 must be 1 or more"),
        (("--images_per_chip=many",), "--images_per_chip=many"),
        ((f"--config={RESNET50}",), "--help"),
    ],
)
def test_a_wrong_argument_is_one_line_with_the_remedy(command, arguments, words):
    status, out, err = command(memory, *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_an_impossible_batch_is_refused_before_compiling(command, compiler):
    status, _, err = command(memory, RESNET50, RESNEXT50, "--images_per_chip=20")
    assert (status, compiler) == (2, [])
    assert f"{RESNET50} and 1 more, with a batch_size of --images_per_chip times the chips: bn_group_images=32" in err
    assert len(err.splitlines()) == 1


def test_without_the_compiler_the_message_says_how_to_install_it(command, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    status, _, err = command(memory)
    assert status == 2
    assert "pip install -e '.[tpu]'" in err


def test_configs_are_looked_for_where_the_command_runs(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(memory)
    assert status == 2
    assert "no ImageNet configs in configs/" in err


@pytest.mark.parametrize(
    ("words", "num_bytes"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (1.50T) exceeds", 3 * 2**39),
        ("Ran out of memory in memory space hbm. Used 17.5G of 15.75G hbm. Exceeded hbm", 35 * 2**29),
        ("Ran out of memory", None),
    ],
)
def test_a_refusal_keeps_the_compilers_figure(words, num_bytes):
    def refuse() -> None:
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}\nand more lines")

    program, executable = compiling.compile_for(chips.CHIPS["v5e"], SimpleNamespace(compile=refuse))
    assert (program.fits, program.peak_hbm_bytes, executable) == (False, num_bytes, None)
    assert program.refusal == f"RESOURCE_EXHAUSTED: {words}"


def test_another_error_of_the_compiler_is_no_refusal():
    def fail() -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: bug")

    with pytest.raises(jax.errors.JaxRuntimeError):
        compiling.compile_for(chips.CHIPS["v5e"], SimpleNamespace(compile=fail))


@needs_libtpu
def test_a_step_that_is_far_too_large_is_a_row(command, tmp_path):
    """The compiler says so within a second: 32 images of 6000 px."""
    config = tmp_path / "large.py"
    config.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n    config = quickstart.get_config()\n"
        "    config.model.name = 'resnext11_4x2d_tiny'\n    config.data.image_size_px = 6000\n"
        "    config.data.resize_px = 6000\n    return config\n"
    )
    status, out, _ = command(memory, str(config), "--topology=v5e:1x1", "--json")
    (row,) = json.loads(out.splitlines()[-1])["configs"]
    assert status == 1
    assert not row["fits"]
    assert row["peak_hbm_bytes"] > 100 * 2**30
    assert "Ran out of memory" in row["refusal"]
