"""Whatever is wrong with the input ends in an instruction: status 2, no traceback, nothing touched."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from resnext_jax import cli
from resnext_jax.builders import open_data
from resnext_jax.config import command_line
from resnext_jax.errors import THIS_COMMAND, UserError, report_error, unknown
from resnext_jax.runtime.lock import Lock
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train.classification import Classification

INTERVALS = {f"{name}{end}" for name in ("top1", "top5") for end in ("", "_low", "_high")}
QUICKSTART = "--config=configs/quickstart.py"
SYNTHETIC = ("--config.data.name=synthetic", "--config.data.mean=1.0,2.0,3.0", "--config.data.std=1.0,2.0,3.0")


@pytest.fixture
def refused(run_main):
    """Runs the command, which must refuse; returns what it said, on one line."""

    def run(*arguments):
        status, _, error = run_main(*arguments)
        assert status == 2, error
        assert error.startswith("error: ")
        assert "Traceback" not in error
        return " ".join(error.split())

    return run


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        ([], ["wants a config", "python main.py --config=configs/quickstart.py"]),
        (["--config"], ["--config wants a file"]),
        (["--config=configs/quikstart.py"], ["config file 'configs/quikstart.py'", "'configs/quickstart.py'"]),
        (["--config=quickstart"], ["Did you mean 'configs/quickstart.py'"]),
        ([QUICKSTART, "--config", "batch_size=64"], ["--config is given 2 times"]),
        (["--config=nowhere/x.py"], ["'nowhere/x.py'", "configs/quickstart.py"]),
        (["--config=README.md"], ["README.md is no Python file", "configs/quickstart.py"]),
        (["--config=main.py"], ["main.py has no function get_config()"]),
        ([QUICKSTART, "--config.bach_size=64"], ["field 'bach_size'", "'batch_size'"]),
        ([QUICKSTART, "--config.model.cardinalty=64"], ["field 'model.cardinalty'", "'model.cardinality'"]),
        ([QUICKSTART, "--config.model=resnet50"], ["field 'model'", "'model.name'"]),
        ([QUICKSTART, "config.batch_size=64"], ["takes no arguments", "'config.batch_size=64'"]),
        ([QUICKSTART, "--wokdir=x"], ["wokdir"]),
        ([QUICKSTART, "--mode=evalute"], ["unknown mode 'evalute'", "'evaluate'", "predict, recompute_bn, train"]),
        ([QUICKSTART, "--config.model.name=resnext50_32x4"], ["model.name 'resnext50_32x4'", "'resnext50_32x4d'"]),
        ([QUICKSTART, "--config.data.name=bultin"], ["data set 'bultin'", "'builtin'"]),
        ([QUICKSTART, "--config.conv_impl=dens"], ["conv_impl 'dens'", "'dense'"]),
        ([QUICKSTART, "--config.compute_dtype=float16"], ["compute_dtype 'float16'", "bfloat16, float32"]),
        ([QUICKSTART, "--config.freeze_backbone=true"], ["freeze_backbone=True without init_from", "init_from=DIR"]),
        ([QUICKSTART, "--config.data.interpolation=bilnear"], ["data.interpolation 'bilnear'", "'bilinear'"]),
        ([QUICKSTART, "--config.schedule.name=cosin"], ["schedule.name 'cosin'", "'cosine'"]),
        ([QUICKSTART, "--config.num_steps=9"], ["warmup_epochs=1.0", "has only 9"]),
        (
            [QUICKSTART, "--config.batch_size=100", "--config.bn_group_images=0"],
            ["batch_size=100 does not divide over 8 devices", "--config.batch_size=96 or 104"],
        ),
        ([QUICKSTART, "--config.batch_size=120"], ["bn_group_images=32 does not divide batch_size=120"]),
        (
            [QUICKSTART, "--config.accumulation_steps=3"],
            ["accumulation_steps=3 does not divide batch_size=128", "4 batch-norm groups of 32"],
        ),
        ([QUICKSTART, "--config.data.mean=1.0,2.0,3.0", "--config.data.std=1.0,2.0,3.0"], ["3 channel(s)", "have 1"]),
        (["--mode=evaluate"], ["--workdir=DIR", "--config=configs/NAME.py"]),
        (["--mode=evaluate", "--workdir=/nowhere"], ["no checkpoint in /nowhere", "python main.py --config="]),
        (["--mode", "evaluate", "--workdir", "/nowhere"], ["no checkpoint in /nowhere"]),
        (["--mode", "evaluate", "--config.data.dir", "x", "--workdir", "/nowhere"], ["no checkpoint in /nowhere"]),
        ([QUICKSTART, "--workdir", "--json"], ["--workdir wants a value: --workdir=VALUE"]),
        ([QUICKSTART, "--workdir="], ["--workdir= is empty", "shell"]),
        ([QUICKSTART, "--config.data.dir="], ["data.dir is empty", "shell"]),
        (
            [QUICKSTART, "--batch_size=4", "--depth", "50", "-8"],
            ["'--config.batch_size'", "'--config.model.depth'", "'--8'"],
        ),
        ([QUICKSTART, "batch_size=64", "evaluate"], ["Did you mean --config.batch_size=64", "--mode=evaluate"]),
        ([QUICKSTART, "--config.depth=50"], ["'model.depth'", "All fields: configs/common.py"]),
        (["--mode=predict", "--workdir=/nowhere"], ["predict wants images", "IMAGE"]),
        (["--mode=predict", "--workdir=x", "https://a.b/c.jpg"], ["https://a.b/c.jpg is a URL", "download it"]),
        ([QUICKSTART, "--mode=predict", "--workdir=x", "a.jpg"], ["leave --config out"]),
        (["--config.seed=1", "--mode=predict", "--workdir=x", "a.jpg"], ["--config.seed: predict takes all fields"]),
        ([QUICKSTART, "--workdir=a\\b"], ["cannot be stored under", "--workdir=DIR"]),
        ([QUICKSTART, "--workdir=/tmp/a[1]"], ["cannot be stored under"]),
        ([QUICKSTART, "--workdir=/tmp/\udcff"], ["cannot be stored under", "not UTF-8"]),
        (["--mode=predict", "--report=x", "y"], ["--report is for --mode=evaluate"]),
        (["--mode=evaluate", "--top=3", "--csv=x"], ["--top is for --mode=predict", "--csv is for --mode=predict"]),
        (["--mode=predict", "--top=0", "x"], ["--top=0 must be 1 or more"]),
        ([*tiny.ARGUMENTS, "--config.conv_impl=merge3"], ["conv_impl='merge3' cannot merge 4 groups by 3"]),
        ([*tiny.ARGUMENTS, "--config.conv_impl=native+merge3"], ["conv_impl='merge3' cannot merge 4 groups by 3"]),
        (
            [*tiny.ARGUMENTS, "--config.model.name=vgg11"],
            ["images of 28x28 px are too small for this network: it takes 32 px"],
        ),
        ([QUICKSTART, "--config.num_epochs=0.001"], ["are not one step of batch_size=128"]),
        (
            [QUICKSTART, "--config.model.depth=50", "--config.model.cardinality=2"],
            [
                "model.depth, model.cardinality: without effect, since model.name='resnext20_8x4d_small'",
                "--config.model.name=",
            ],
        ),
        (
            ["--config.batch_size=3"],
            ["--config.batch_size changes a field of a config: give --config=FILE as well"],
        ),
        (
            [QUICKSTART, "--workdir=gs://bucket/run"],
            ["the workdir gs://bucket/run is in a bucket, which gcsfs reads and writes", "pip install gcsfs"],
        ),
    ],
)
def test_refused_with_an_instruction(refused, tmp_path, arguments, phrases):
    if not any(argument.startswith("--workdir") for argument in arguments) and QUICKSTART in arguments:
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    message = refused(*arguments)
    assert all(phrase in message for phrase in phrases), message
    assert list(tmp_path.iterdir()) == []


# Several mistakes in one command, by the field: the value that is given, and what is said of it.
WRONG_TYPES = {
    "batch_size": ("many", "batch_size='many' must be a whole number."),
    "num_steps": ("2.5", "num_steps='2.5' must be a whole number."),
    "learning_rate": ("fast", "learning_rate='fast' must be a number."),
    "model.shortcut": ("perhaps", "model.shortcut='perhaps' must be true or false."),
    "data.std": ("narrow", "data.std='narrow' must be numbers"),
    "sede": ("1", "unknown config field 'sede'. Did you mean 'seed'"),
}
OUT_OF_RANGE = {
    "batch_size": ("0", "batch_size=0"),
    "learning_rate": ("-1", "learning_rate=-1.0 must be positive."),
    "momentum": ("1.5", "momentum=1.5 must be in [0, 1)."),
    "label_smoothing": ("1", "label_smoothing=1.0 must be in [0, 1)."),
    "num_steps": ("0", "num_steps=0 must be positive."),
    "checkpoint.keep_newest": ("0", "checkpoint.keep_newest=0 must be 1 or more."),
    "log.every_steps": ("-5", "log.every_steps=-5 must be positive."),
}
DO_NOT_FIT = {
    "data.crop": ("random", "unknown data.crop 'random'. Did you mean 'random_sized'?"),
    "data.std": ("0", "data.std must be positive"),
    "seed": ("4294967296", "seed=4294967296 must be in [0, 2**32)"),
    "num_epochs": ("inf", "num_epochs=inf must be positive and finite"),
    "schedule.warmup_epochs": ("-1", "schedule.warmup_epochs=-1.0 must be 0 or more"),
    "schedule.boundaries_epochs": ("3.0,2.0", "schedule boundaries=[3.0, 2.0] must be increasing"),
    "augment.lighting_std": ("0.1", "augment.lighting_std=0.1 are for three channels, and data.mean has 1"),
}


EMPTY_OR_INFINITE = {
    "data.mean": ("", "data.mean='' must be numbers"),
    "schedule.boundaries_epochs": ("inf", "schedule.boundaries_epochs='inf' must be numbers that are finite"),
    "schedule.boundaries_steps": ("nan", "schedule.boundaries_steps='nan' must be numbers that are finite"),
    "num_steps": ("", "num_steps='' must be a whole number"),
    "learning_rate": ("", "learning_rate='' must be a number"),
}
NOT_FINITE = {
    "schedule.warmup_epochs": ("inf", "schedule.warmup_epochs=inf must be finite"),
    "weight_decay": ("nan", "weight_decay=nan must be finite"),
    "checkpoint.every_steps": ("99999999999", "a whole number below 2**31"),
}
OF_ALL_PARTS = {
    "schedule.name": ("cosin", "unknown schedule.name 'cosin'"),
    "compute_dtype": ("float16", "unknown compute_dtype 'float16'"),
    "conv_impl": ("dens", "unknown conv_impl 'dens'"),
    "model.stochastic_depth": ("2", "model.stochastic_depth=2.0 must be in [0, 1)"),
    "num_epochs": ("0.0001", "are not one step of batch_size=128"),
    "momentum": ("1.5", "momentum=1.5 must be in [0, 1)."),
    "data.interpolation": ("x", "unknown data.interpolation 'x'"),
}
OF_ALL_PARTS_BUT_THE_EVALUATION = dict(list(OF_ALL_PARTS.items())[:-1])
OF_THE_CONFIG_ALONE = {name: case for name, case in OF_ALL_PARTS.items() if name != "num_epochs"}


@pytest.mark.parametrize(
    ("command", "mistakes"),
    [
        ([QUICKSTART], WRONG_TYPES),
        ([QUICKSTART], OUT_OF_RANGE),
        (tiny.ARGUMENTS, DO_NOT_FIT),
        ([QUICKSTART], EMPTY_OR_INFINITE),
        ([QUICKSTART], NOT_FINITE),
        ([QUICKSTART], OF_ALL_PARTS_BUT_THE_EVALUATION),
        ([QUICKSTART], OF_THE_CONFIG_ALONE),
    ],
)
def test_several_mistakes_come_in_one_message(refused, tmp_path, command, mistakes):
    overrides = [f"--config.{field}={value}" for field, (value, _) in mistakes.items()]
    message = refused(*command, f"--workdir={tmp_path / 'run'}", *overrides)
    for _, phrase in mistakes.values():
        assert phrase in message
    assert not (tmp_path / "run").exists()


def test_good_values_of_every_type_pass(run_main, monkeypatch):
    """Also without `=`, and `--no` before a truth value."""
    seen = []
    monkeypatch.setattr(cli, "train", lambda task, config, *_: seen.append(config))
    overrides = ["--config.batch_size", "64", "--config.learning_rate=1", "--noconfig.model.shortcut"]
    overrides += ["--config.data.mean=(7.5,)", "--config.model.name=", "--config.num_steps=12"]
    overrides += ["--config.model.family=cifar", "--config.model.depth=29", "--config.schedule.warmup_epochs=0"]
    status, _, error = run_main(QUICKSTART, *overrides)
    assert status == 0, error
    (config,) = seen
    assert (config.batch_size, config.learning_rate, config.num_steps) == (64, 1.0, 12)
    assert (config.model.shortcut, config.model.name, config.data.mean) == (False, "", (7.5,))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The workdir of a tiny run with its first checkpoint."""
    workdir = tmp_path_factory.mktemp("untrained")
    tiny.save_fresh(workdir)
    return workdir


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_checkpoint_of_another_model(refused, untrained, mode):
    before = tiny.digests(untrained)
    message = refused(QUICKSTART, f"--workdir={untrained}", f"--mode={mode}")
    assert f"{untrained / 'checkpoints' / '0'} belongs to another model; nothing was changed" in message
    # 8 paths of 4 channels against 4 of 2.
    assert "params/stage2/block1/bn1/bias: this model wants float32(32,), the checkpoint has float32(8,)" in message
    assert re.search(r"\.\.\. and \d+ more arrays", message)
    assert ("--workdir=DIR" if mode == "train" else "Leave out --config") in message
    assert tiny.digests(untrained) == before


def test_workdir_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refused(QUICKSTART, f"--workdir={tmp_path / 'file' / 'run'}")
    assert f"the workdir {tmp_path / 'file' / 'run'} cannot be written" in message
    assert "--workdir=DIR" in message
    assert (tmp_path / "file").read_text() == "in the way"


def test_images_that_are_none_are_all_named(refused, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    names = [str(tmp_path / name) for name in ("text.jpg", "empty.png", "missing.png")]
    message = refused("--mode=predict", f"--workdir={tmp_path}", *names)
    assert f"{names[0]} is not a readable image (12 bytes: it begins with b'not an i')" in message
    assert f"{names[1]} is not a readable image (0 bytes" in message
    assert f"{names[2]} could not be read: No such file or directory" in message


@pytest.mark.slow
def test_absent_imagenet_and_the_command_without_it(refused, run_main, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    config = "configs/resnext101_64x4d.py"
    message = refused(f"--config={config}")
    assert "'imagenet2012'" in message
    assert "--config.data.dir=DIR" in message
    assert str(tmp_path / "tfds" / "imagenet2012") in message
    assert "tfds build imagenet2012" in message

    command = re.search(r"python \S*main\.py (--config=\S+ --config\.data\.name=synthetic)", message)[1]
    arguments = shlex.split(command)
    started = []
    monkeypatch.setattr(cli, "train", lambda task, config, workdir, *_: started.append((config, workdir)))
    status, _, error = run_main(*arguments)
    assert status == 0, error
    ((config, workdir),) = started
    assert workdir == "runs/resnext101_64x4d"
    place = Place(make_mesh(jax.devices()), "tpu")
    run = Classification(config, place, open_data(config, "train").info)
    assert len(open_data(config, "validation")) > 0
    state, _ = jax.eval_shape(run.train_step, run.state_shapes(), run.batch_shapes())
    assert state.params["stem_conv"]["kernel"].shape == (7, 7, 3, 64)


@pytest.mark.parametrize(("mode", "keeps"), [("evaluate", True), ("train", False)])
def test_the_command_on_synthetic_images_names_what_it_reads(mode, keeps, capsys):
    argv = ["main.py", f"--mode={mode}", "--workdir=runs/x", "--config.data.dir=/none"]
    assert report_error(UserError(f"      {THIS_COMMAND} --config.data.name=synthetic"), argv) == 2
    kept = "--workdir=runs/x " if keeps else ""
    assert f"python main.py --mode={mode} {kept}--config.data.name=synthetic" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_and_predict_print_json_last(run_main, untrained, tmp_path):
    status, output, error = run_main("--mode=evaluate", f"--workdir={untrained}", "--json")
    assert status == 0, error
    row = json.loads(output.splitlines()[-1])
    conditions = {"protocol": "center", "image_size_px": 28, "resize_px": None, "classes": "all", "num_classes": 10}
    conditions |= {"checkpoint": str(untrained / "checkpoints" / "0"), "data": "builtin"}
    assert {name: row[name] for name in conditions} == conditions
    assert row.keys() == {*conditions, "loss", *INTERVALS, "images"}
    assert row["images"] == 3000
    assert 0 <= row["top1"] <= row["top5"] <= 1

    rng = np.random.default_rng(0)
    paths = [str(tmp_path / name) for name in ("color.jpg", "grey.png")]
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(paths[0])
    Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(paths[1])
    table = f"--csv={tmp_path / 'table.csv'}"
    status, output, error = run_main("--mode=predict", f"--workdir={untrained}", "--json", table, str(tmp_path))
    assert status == 0, error
    results = json.loads(output.splitlines()[-1])["images"]
    assert [result["image"] for result in results] == paths
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3
    for result in results:
        probabilities = [prediction["probability"] for prediction in result["predictions"]]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1
        assert {prediction["class"] for prediction in result["predictions"]} <= set(tiny.INFO.class_names)


def test_unset_fields_of_a_checkpoint_keep_their_types(refused, untrained):
    message = refused("--mode=evaluate", f"--workdir={untrained}", "--config.model.dropout=0.1")
    assert "model.dropout=0.1: only basic blocks" in message
    base, unset = command_line.load(str(tiny.ROOT / "configs" / "resnet50.py")), {}
    for name in command_line.field_names(base):
        *parents, leaf = name.split(".")
        parent = functools.reduce(getattr, parents, base)
        if parent[leaf] is None and parent.get_type(leaf) is not str:
            unset[name] = parent.get_type(leaf)
    assert unset == command_line.OPTIONAL


def test_many_names_are_not_all_printed():
    message = unknown("network", "resnet5O", [f"resnet{number}" for number in range(100)], "All: list_models().")
    assert message.endswith("? All: list_models().")
    assert message.count("resnet") == 4  # the name and three suggestions


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full"])
def test_streams_that_are_closed_or_full(untrained, closed):
    """What cannot be told stops nothing; what was asked for and cannot be written is an error."""
    run = f"{shlex.quote(sys.executable)} main.py --mode=evaluate --json --workdir={untrained} {closed}"
    process = subprocess.run(["sh", "-c", run], cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == (2 if closed == ">/dev/full" else 0), process.stderr
    assert ("error: the output could not be written (No space left" in process.stderr) == (closed == ">/dev/full")
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        ({"PYTHONIOENCODING": "ascii"}, 0, "\\xe9"),
        ({"JAX_PLATFORMS": "cuda"}, 2, "error: JAX cannot use a device here"),
    ],
)
def test_environments_of_other_machines(untrained, tmp_path, environment, status, said):
    path = tmp_path / "\u00e9.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(path)
    command = [sys.executable, "main.py", "--mode=predict", f"--workdir={untrained}", str(path)]
    process = subprocess.run(
        command, cwd=tiny.ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert process.returncode == status, process.stderr
    assert said in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_help():
    """The doormat itself, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "main.py", "--help"], cwd=tiny.ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0
    assert all(flag in process.stdout for flag in ("--config:", "--workdir:", "--mode:", "--[no]json:")), process.stderr


@pytest.mark.slow
def test_evaluation_does_not_mind_the_training_batch(run_main, tmp_path):
    # 8 devices: a training batch of 12 would not divide.
    tiny.save_fresh(tmp_path, "--config.batch_size=12", "--config.bn_group_images=4")
    status, output, error = run_main("--mode=evaluate", f"--workdir={tmp_path}")
    assert status == 0, error
    assert "on 3,000 images of builtin" in output


@pytest.mark.slow
def test_other_classes_are_refused(refused, tmp_path):
    tiny.save_fresh(tmp_path)
    more = {
        "train": "the first that differs: 'class 0', there 'T-shirt/top'",
        "evaluate": "1000 of these are not among them: class 0, class 1, class 2, ... (it knows T-shirt/top, Trouser, ",
    }
    for mode, phrase in more.items():
        message = refused(*tiny.ARGUMENTS, *SYNTHETIC, f"--mode={mode}", f"--workdir={tmp_path}")
        assert "knows the 10 classes of 'builtin', but 'synthetic' has 1000" in message
        assert phrase in message


@pytest.mark.slow
def test_images_that_do_not_fit_write_nothing(refused, tmp_path):
    # Only the images themselves show this one; nothing of the run may be written yet.
    assert "without a crop" in refused(*tiny.ARGUMENTS, f"--workdir={tmp_path}", "--config.data.image_size_px=32")
    assert not (tmp_path / "config.json").exists()
    sizes = ("--config.data.crop=random_sized", "--config.data.image_size_px=224", "--config.data.resize_px=200")
    assert "data.resize_px=200 is smaller than the centre crop" in refused(QUICKSTART, *SYNTHETIC, *sizes)


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ([], {}, "{home}/.cache/resnext_jax/compiled-"),
        ([], {"XDG_CACHE_HOME": "{home}/xdg"}, "{home}/xdg/resnext_jax/compiled-"),
        ([], {"JAX_COMPILATION_CACHE_DIR": "{home}/mine"}, None),  # JAX has read that by itself
        (["--compilation_cache=~/given"], {"JAX_COMPILATION_CACHE_DIR": "{home}/mine"}, "{home}/given"),
        (["--compilation_cache="], {}, "nowhere"),
    ],
)
def test_where_compiled_programs_are_kept(refused, monkeypatch, tmp_path, flags, environment, expected):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "{home}"} | environment).items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    set_to = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: set_to.append((name, value)))
    refused("--mode=predict", *flags)
    if expected is None:
        assert set_to == []
        return
    ((name, value),) = set_to
    assert name == "jax_compilation_cache_dir"
    assert value is None if expected == "nowhere" else value.startswith(expected.format(home=tmp_path))


def test_a_second_run_in_a_workdir(refused, tmp_path):
    with Lock(str(tmp_path), pytest.fail):
        message = refused(*tiny.ARGUMENTS, f"--workdir={tmp_path}")
        assert f"another run is at work in {tmp_path}: process " in message
        assert "--workdir" in message
        assert {path.name for path in tmp_path.iterdir()} == {"run.lock"}


@pytest.mark.slow
def test_a_changed_trajectory_and_a_damaged_checkpoint(refused, tmp_path):
    tiny.save_fresh(tmp_path)
    message = refused(*tiny.ARGUMENTS, f"--workdir={tmp_path}", "--config.seed=5")
    assert "the checkpoint of step 0" in message
    assert "seed was 0, is 5" in message
    assert "--config.resume_changed=true" in message
    path = tmp_path / "checkpoints" / "0" / "config" / "metadata"
    path.write_text(path.read_text()[:100])
    before = tiny.digests(tmp_path)
    message = refused(*tiny.ARGUMENTS, f"--workdir={tmp_path}")
    assert f"no checkpoint in {tmp_path / 'checkpoints'} is sound; nothing was changed" in message
    assert ": 0: config/metadata has 100 " in message
    message = refused("--mode=evaluate", f"--workdir={tmp_path}")
    assert f"the checkpoint {tmp_path / 'checkpoints' / '0'} is damaged (config/metadata has 100 bytes" in message
    assert tiny.digests(tmp_path) == before
