"""Starting from another run's weights: what is taken, what is new, what stays still, what is refused."""

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import resnext_jax
from resnext_jax.checkpoint import Checkpoints
from resnext_jax.errors import UserError
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train.classification import Classification
from resnext_jax.train.finetune import fill_from_checkpoint, initial_weights
from resnext_jax.types import Batch, DatasetInfo

CLASSES = ("boot", "cap", "scarf")
DATA = DatasetInfo("folder", 24, CLASSES, None, num_channels=1)
FINETUNE = ("--config=configs/finetune.py", "--config.batch_size=8", "--config.bn_group_images=8")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The workdir of a run on the ten classes of Fashion-MNIST, and its state."""
    workdir = tmp_path_factory.mktemp("start")
    return workdir, tiny.save_fresh(workdir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight grey images of each of three classes, of many sizes, bright in another corner."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "validation"):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                size_px = 30 + 2 * number
                pixels = rng.integers(0, 80, (size_px, size_px), np.uint8)
                pixels[label % 2 * 15 :, label // 2 * 15 :] += 150
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def config_from(workdir, *overrides, own="runs/none"):
    with tiny.command_line(*FINETUNE, f"--config.init_from={workdir}", *overrides) as (argv, values):
        tiny.parse(argv, values)
    return fill_from_checkpoint(values.config, str(own))


def first(config):
    lines, run = [], Classification(config, Place(make_mesh(jax.devices()[:1]), "cpu"), DATA)
    return run, run.initial_state(lines.append), lines


def test_a_run_that_has_begun_needs_its_start_no_more(start, tmp_path):
    config = config_from(start[0])
    saved = Checkpoints(str(tmp_path), keep_newest=1, keep_best=0)
    saved.save(start[1], {"config": config.to_dict(), "dataset": {}})
    saved.close()
    with pytest.raises(UserError, match="no checkpoint in /nowhere"):
        config_from("/nowhere")
    again = config_from("/nowhere", own=tmp_path)
    assert (again.model, again.data) == (config.model, config.data)


def test_open_fields_are_the_checkpoints(start):
    config = config_from(start[0])
    assert config.model.name == "resnext11_4x2d_tiny"
    assert (config.data.mean, config.data.std) == ((72.94,), (90.02,))
    assert (config.data.image_size_px, config.data.resize_px, config.data.interpolation) == (28, 28, "bicubic")
    # What the config says itself stays, and what the command line says wins.
    assert (config.data.crop, config.data.name, config.learning_rate) == ("random_sized", "folder", 0.01)
    config = config_from(start[0], "--config.data.image_size_px=32", "--config.data.mean=1.5")
    assert (config.data.image_size_px, config.data.mean) == (32, (1.5,))


@pytest.fixture(scope="module")
def frozen(start):
    """The parts and the first state of a run whose backbone is frozen, what it said, and that state on the host."""
    config = config_from(
        start[0],
        *("--config.freeze_backbone=true", "--config.schedule.name=step", "--config.schedule.warmup_epochs=0"),
        *("--config.weight_decay=0.1", "--config.augment.flip=false", "--config.learning_rate=0.5"),
    )
    run, state, lines = first(config)
    return run, state, lines, jax.device_get(state)


def test_all_but_the_classifier_is_taken(start, frozen):
    *_, lines, taken = frozen
    for name, value in taken.params.items():
        if name != "classifier":
            jax.tree.map(np.testing.assert_array_equal, value, start[1].params[name])
    jax.tree.map(np.testing.assert_array_equal, taken.batch_stats, start[1].batch_stats)
    assert jax.tree.map(np.shape, taken.params["classifier"]) == {"kernel": (64, 3), "bias": (3,)}
    assert (int(taken.step), len(lines)) == (0, 1)
    # 13 convolutions and 13 batch norms: the stem, and 3 blocks of three and a projection.
    assert f"{13 + 13 * 4} arrays are taken" in lines[0]
    assert "new: params/classifier/bias (3,), params/classifier/kernel (64, 3)" in lines[0]


@pytest.mark.slow
def test_averages_start_from_the_weights_that_are_taken(start):
    _, state, _ = first(config_from(start[0], "--config.ema_decay=0.9"))
    for name in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, state.ema[name], getattr(state, name))


def test_the_same_classes_keep_their_classifier(start):
    workdir, state = start
    lines = []
    place = Place(make_mesh(jax.devices()[:1]), "cpu")
    fresh = state.replace(params=jax.tree.map(np.zeros_like, state.params))
    dataset = {"name": "builtin", "class_names": list(tiny.INFO.class_names)}
    taken = initial_weights(fresh, str(workdir), dataset, place, lines.append)
    jax.tree.map(np.testing.assert_array_equal, taken.params, state.params)
    assert "67 arrays are taken; new: nothing" in lines[0]


def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 28, 28, 1), np.uint8)
    return Batch(images, rng.integers(0, 3, 8).astype(np.int32), np.ones(8, np.float32))


@pytest.mark.slow
def test_a_frozen_backbone_stays_bit_for_bit(start, frozen):
    """The classifier makes a step of plain SGD from the inference network's features, weight decay included."""
    run, state, _, before = frozen
    after, sums = run.train_step(state, batch())
    after = jax.device_get(after)
    for name, value in after.params.items():
        if name != "classifier":
            jax.tree.map(np.testing.assert_array_equal, value, before.params[name])
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, before.batch_stats)

    # By hand: softmax minus one-hot, times the features; Nesterov's first step is 1.9 times the gradient.
    net = resnext_jax.load(str(start[0]))
    pooled = np.asarray(net.features(batch().image)["pooled"], np.float64)
    kernel, bias = (np.asarray(before.params["classifier"][name], np.float64) for name in ("kernel", "bias"))
    logits = pooled @ kernel + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (probabilities - np.eye(3)[batch().label]) / 8
    gradients = {"kernel": pooled.T @ error + 0.1 * kernel, "bias": error.sum(0) + 0.1 * bias}
    for name, gradient in gradients.items():
        want = np.asarray(before.params["classifier"][name], np.float64) - 0.5 * 1.9 * gradient
        np.testing.assert_allclose(after.params["classifier"][name], want, rtol=1e-4, atol=1e-6)
    assert float(sums.loss) == pytest.approx(-np.log(probabilities[np.arange(8), batch().label]).sum(), rel=1e-4)


@pytest.mark.slow
def test_another_network_is_refused_with_both_shapes(start):
    config = config_from(start[0], "--config.model.name=resnext20_8x4d_small")
    with pytest.raises(Exception, match="belongs to another model") as error:
        first(config)
    both = "params/stage2/block1/bn1/bias: this model wants float32(32,), the checkpoint has float32(8,)"
    assert both in str(error.value)
    assert "give another --config.init_from" in str(error.value)


def test_mistakes_in_the_command(start, folder, run_main, tmp_path):
    for arguments, phrase in (
        ((), "add --config.init_from=DIR"),
        (("--config.init_from=/nowhere",), "no checkpoint in /nowhere"),
    ):
        paths = (f"--config.data.dir={folder}", f"--workdir={tmp_path / 'run'}")
        status, _, error = run_main(*FINETUNE, *paths, *arguments)
        assert status == 2
        assert phrase in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("marks", "kind"),
    [
        ({"source": {"format": "torchvision", "file": "net.pth"}}, "converted from the file net.pth"),
        ({"progress": {"recomputed_bn_images": 8}}, "with recomputed batch-norm statistics"),
    ],
)
def test_training_where_weights_alone_lie(start, run_main, tmp_path, marks, kind):
    """Nothing can go on without momentum: the sentence says how to start from the weights, and all stays as it is."""
    checkpoints = Checkpoints(str(tmp_path), keep_newest=1, keep_best=0)
    marks = dict(marks)
    description = {**tiny.description(), "dataset": {"name": "folder", "class_names": list(CLASSES)}}
    progress = marks.pop("progress", {})
    checkpoints.save(start[1].replace(opt_state=()), description | marks, progress)
    checkpoints.close()
    before = tiny.digests(tmp_path)
    status, _, error = run_main(*tiny.ARGUMENTS, f"--workdir={tmp_path}")
    assert status == 2
    said = " ".join(error.split())
    assert f"{tmp_path}/checkpoints/0 holds weights alone, {kind}" in said
    assert f"--config.init_from={tmp_path} and another --workdir=DIR" in said
    assert tiny.digests(tmp_path) == before


@pytest.mark.slow
def test_the_command_on_a_folder_of_grey_images(start, folder, run_main, tmp_path):
    """Trains and resumes; the run's own checkpoint is complete."""
    data = f"--config.data.dir={folder}"
    arguments = (*FINETUNE, f"--config.init_from={start[0]}", data, f"--workdir={tmp_path}", "--config.num_epochs=4")
    arguments = (*arguments, "--config.evaluate.batch_size=8", "--config.freeze_backbone=true")
    _, _, said = run_main(*arguments, "--config.num_steps=4")
    assert "65 arrays are taken; new: params/classifier/bias (3,)" in said
    # The rate follows a cosine.
    _, _, said = run_main(*arguments, "--config.num_steps=6", "--config.resume_changed=true")
    assert "resuming" in said
    assert "arrays are taken" not in said
    net = resnext_jax.load(str(tmp_path))
    assert net.class_names == CLASSES
    assert net.config["model"]["name"] == "resnext11_4x2d_tiny"
    # The backbone is still the first run's.
    stem = net.variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(stem, start[1].params["stem_conv"]["kernel"])
