"""Every config builds and its training step traces; the recipes are the paper's."""

import functools
import importlib
import re
from pathlib import Path

import jax
import pytest
from flax.traverse_util import flatten_dict

from configs import common
from resnext_jax.config.checks import evaluation_problems
from resnext_jax.config.command_line import field_names
from resnext_jax.models.arch import Arch
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train.cadence import cadence_of
from resnext_jax.train.classification import Classification
from resnext_jax.types import DatasetInfo

NAMES = sorted(path.stem for path in Path("configs").glob("*.py") if not path.stem.endswith(("__init__", "common")))
# The network of finetune.py comes with a checkpoint: tests/train/test_finetune.py
# Detectors: tests/detection/test_task.py
WITH_NETWORK = [name for name in NAMES if name != "finetune" and not name.startswith("detection")]
# Images and classes of the training sets; ImageNet-5K is 6.8 M images in the paper.
DATASETS = {
    "imagenet2012": (1_281_167, 1000),
    "imagenet5k": (6_800_000, 5000),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "fashion_mnist": (60_000, 10),
    "builtin": (15_000, 10),
}


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def assembled(config):
    num_images, num_classes = DATASETS[config.data.name]
    info = DatasetInfo(config.data.name, num_images, tuple(map(str, range(num_classes))), None)
    place = Place(make_mesh(jax.devices()), "tpu")
    return Classification(config, place, info), place


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_NETWORK)
def test_step_traces(name):
    config = config_of(name)
    run, _ = assembled(config)
    shapes = run.state_shapes()
    state, metrics = jax.eval_shape(run.train_step, shapes, run.batch_shapes())
    same = jax.tree.map(lambda before, after: (before.shape, before.dtype) == (after.shape, after.dtype), shapes, state)
    assert all(jax.tree.leaves(same))
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(state.params))
    assert metrics.loss.shape == ()


@pytest.mark.slow
def test_activations_are_bfloat16_and_the_rest_float32():
    run, _ = assembled(config_of("resnext50_32x4d"))
    state = run.state_shapes()
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    apply = functools.partial(run.model.apply, train=False, features=True)
    logits, features = jax.eval_shape(apply, {"params": state.params, "batch_stats": state.batch_stats}, images)
    assert logits.dtype == "float32"
    assert {features[f"stage{number}"].dtype.name for number in range(1, 6)} == {"bfloat16"}
    for arrays in (state.params, state.batch_stats):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(arrays)} == {"float32"}


@pytest.mark.parametrize("name", NAMES)
def test_docstring_gives_the_command(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"python main.py --config=configs/{name}.py" in str(module.__doc__)


def test_the_rows_of_the_tables_are_there():
    table_3 = [f"{net}_{form}" for net in ("resnext50", "resnext101") for form in ("2x40d", "4x24d", "8x14d", "32x4d")]
    table_4 = ["resnet101", "resnext101_32x4d", "resnet101_1x100d", "resnext101_2x64d", "resnext101_64x4d", "resnet200"]
    residual = ["resnet50", "resnet50_no_shortcut", "resnext50_32x4d_no_shortcut"]
    table_6 = [f"{net}_imagenet5k" for net in ("resnet50", "resnext50_32x4d", "resnet101", "resnext101_32x4d")]
    networks = ("resnext29_8x64d", "resnext29_16x64d", "wrn28_10")
    table_7 = [f"{network}_cifar{k}" for network in networks for k in (10, 100)]
    assert set(table_3 + table_4 + residual + table_6 + table_7) <= set(NAMES)


def test_imagenet_recipe_to_the_letter():
    config = config_of("resnext101_64x4d")
    run, _ = assembled(config)
    assert (config.batch_size, config.bn_group_images, config.momentum, config.weight_decay) == (256, 32, 0.9, 1e-4)
    assert (config.label_smoothing, config.data.crop, config.augment.flip) == (0.0, "random_sized", True)
    assert (config.augment.color_jitter, config.augment.lighting_std, config.augment.pad_px) == (0.4, 0.1, 0)
    assert (config.data.image_size_px, config.data.resize_px) == (224, 256)
    assert (config.optimizer, config.weight_decay_of, config.loss) == ("sgd_nesterov", "all", "softmax")
    assert (config.data.interpolation, config.data.train_size_px, config.data.repeats) == ("bicubic", None, 1)
    # 255 times 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225
    assert tuple(config.data.mean) == pytest.approx((123.675, 116.28, 103.53), rel=1e-6)
    assert tuple(config.data.std) == pytest.approx((58.395, 57.12, 57.375), rel=1e-6)
    # Nothing that came after the paper.
    assert (config.augment.policy, config.ema_decay, config.recompute_bn_images) == ("none", 0.0, 0)
    later = ("erase_probability", "mixup_alpha", "cutmix_alpha")
    assert [config.augment[name] for name in later] + [config.model.stochastic_depth] == [0.0] * 4
    # 0.1, divided by 10 after 30, 60 and 90 of 100 epochs of 1,281,167 / 256 = 5004.56 steps; no warm-up.
    rates = {0: 0.1, 150_136: 0.1, 150_137: 0.01, 300_273: 0.01, 300_274: 1e-3, 450_409: 1e-3, 450_410: 1e-4}
    for step, rate in rates.items():
        assert float(run.schedule(step)) == pytest.approx(rate, rel=1e-6), step
    assert run.total_steps == 500_456


@pytest.mark.parametrize("network", ["resnet50", "resnext50_32x4d", "resnet101", "resnext101_32x4d"])
def test_imagenet5k_makes_as_many_minibatches_as_imagenet(network):
    """The rates of the 1K run at every step, whatever an epoch of 6.8 M images is."""
    config = config_of(f"{network}_imagenet5k")
    run, _ = assembled(config)
    assert (config.batch_size, run.model.num_classes) == (256, 5000)
    assert run.total_steps == 500_456
    rates = {0: 0.1, 150_136: 0.1, 150_137: 0.01, 300_273: 0.01, 300_274: 1e-3, 450_409: 1e-3, 450_410: 1e-4}
    for step, rate in rates.items():
        assert float(run.schedule(step)) == pytest.approx(rate, rel=1e-6), step


def test_an_evaluation_ends_every_epoch():
    config = config_of("quickstart")
    run, _ = assembled(config)
    cadence = cadence_of(config, run.total_steps, run.steps_per_epoch)
    # 15,000 / 128 = 117.1875 steps an epoch: 117.19, 234.38, 351.56, 468.75, ... to the nearest.
    due = [step for step in range(1, run.total_steps + 1) if cadence.evaluates(step)]
    assert due == [117, 234, 352, 469, 586, 703, 820, 938, 1055, 1172]


def test_cifar_recipe():
    config = config_of("resnext29_8x64d_cifar10")
    run, _ = assembled(config)
    assert (config.batch_size, config.bn_group_images, config.weight_decay) == (128, 16, 5e-4)
    assert (config.augment.pad_px, config.augment.color_jitter, config.augment.lighting_std) == (4, 0.0, 0.0)
    assert (config.augment.flip, config.data.crop, config.data.image_size_px) == (True, "none", 32)
    assert (config.optimizer, config.momentum, config.weight_decay_of) == ("sgd_nesterov", 0.9, "all")
    assert (tuple(config.data.mean), tuple(config.data.std)) == ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    hundred = config_of("resnext29_16x64d_cifar100").data
    assert (tuple(hundred.mean), tuple(hundred.std)) == ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4))
    assert run.total_steps == 117_188  # 300 * 50,000 / 128 = 117,187.5, to even
    assert [round(float(run.schedule(step)), 6) for step in (58_593, 58_594, 87_890, 87_891)] == [0.1, 0.01, 0.01, 1e-3]


def test_wide_resnet_recipe():
    config = config_of("wrn28_10_cifar100")
    run, _ = assembled(config)
    assert (config.batch_size, config.bn_group_images, config.weight_decay) == (128, 128, 5e-4)
    assert run.total_steps == 78_125  # 200 * 50,000 / 128; the rate falls after 60, 120 and 160 epochs of 390.625 steps
    rates = [float(run.schedule(step)) for step in (23_437, 23_438, 46_875, 62_500)]
    assert rates == pytest.approx([0.1, 0.02, 0.004, 0.0008])
    assert isinstance(run.model.arch, Arch)
    assert not run.model.arch.dropout


# By hand, from torchvision's published command and from mmpretrain's resnet50_8xb256-rsb-a*: docs/recipes.md.
V2 = {
    "batch_size": 1024, "num_epochs": 600.0, "optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.9,
    "weight_decay": 2e-5, "weight_decay_of": "but_norms", "loss": "softmax", "label_smoothing": 0.1,
    "augment.policy": "trivial_augment", "augment.erase_probability": 0.1, "data.repeats": 1,
    "augment.mixup_alpha": 0.2, "augment.cutmix_alpha": 1.0, "model.stochastic_depth": 0.0,
    "data.train_size_px": 176, "data.image_size_px": 224, "data.resize_px": 232, "data.interpolation": "bilinear",
}  # fmt: skip
A2 = {
    "batch_size": 2048, "num_epochs": 300.0, "optimizer": "lamb", "learning_rate": 0.005, "weight_decay": 0.02,
    "weight_decay_of": "kernels", "loss": "sigmoid", "label_smoothing": 0.0, "target_threshold": 0.2,
    "augment.policy": "rand_augment", "augment.magnitude": 7, "augment.erase_probability": 0.0,
    "augment.mixup_alpha": 0.1, "augment.cutmix_alpha": 1.0, "data.repeats": 3, "model.stochastic_depth": 0.05,
    "data.train_size_px": None, "data.image_size_px": 224, "data.resize_px": 235, "data.interpolation": "bicubic",
    "ema_decay": 0.0,
}  # fmt: skip
A1 = A2 | {
    "num_epochs": 600.0, "weight_decay": 0.01, "augment.mixup_alpha": 0.2,
    "label_smoothing": 0.1, "target_threshold": None,
}  # fmt: skip
A3 = A2 | {
    "num_epochs": 100.0, "learning_rate": 0.008, "augment.magnitude": 6, "data.train_size_px": 160,
    "data.repeats": 1, "model.stochastic_depth": 0.0,
}  # fmt: skip
BOTH = {
    "schedule.name": "cosine", "schedule.warmup_epochs": 5.0, "bn_group_images": 128, "augment.flip": True,
    "augment.color_jitter": 0.0, "augment.lighting_std": 0.0, "data.crop": "random_sized",
}  # fmt: skip


@pytest.mark.parametrize(("name", "recipe"), [("v2", V2), ("a1", A1), ("a2", A2), ("a3", A3)])
def test_newer_recipes_field_by_field(name, recipe):
    found = flat(config_of(f"resnext50_32x4d_{name}"))
    assert {field: found[field] for field in BOTH | recipe} == BOTH | recipe


@pytest.mark.slow
def test_recipes_beyond_the_paper():
    v2, large = config_of("resnext50_32x4d_v2"), config_of("resnext50_32x4d_large_batch")
    # torchvision's train.py: alpha = (1 - 0.99998) * GPUs * batch per GPU * 32 / epochs, every 32 steps.
    assert v2.ema_decay**32 == pytest.approx(1 - 2e-5 * 8 * 128 * 32 / 600, abs=1e-9)
    run, _ = assembled(v2)
    assert run.total_steps == 750_684  # 600 * 1,281,167 / 1024 = 750,683.8
    # Five epochs of warm-up, 6255.7 steps; half of the rest is at 378,470.
    rates = [float(run.schedule(step)) for step in (0, 3128, 6256, 378_470, 750_684)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.25, 0.0], abs=1e-6)
    assert run.image_shape == (176, 176, 3)
    assert (large.learning_rate, assembled(large)[0].total_steps) == (12.5, 15_639)
    # The other procedures of "ResNet strikes back": 600, 300 and 100 epochs of 1,281,167 / 2048 steps.
    totals = [assembled(config_of(f"resnext50_32x4d_a{number}"))[0].total_steps for number in (1, 2, 3)]
    assert totals == [375_342, 187_671, 62_557]
    # All else of the large batch is the paper's.
    paper = config_of("resnext50_32x4d")
    changed = {name for name in field_names(paper) if flat(large)[name] != flat(paper)[name]}
    assert changed == {
        *("batch_size", "optimizer", "learning_rate", "weight_decay_of"),
        *("schedule.name", "schedule.warmup_epochs", "checkpoint.every_steps"),
    }


def flat(config) -> dict:
    return flatten_dict(config.to_dict(), sep=".")


def test_every_config_has_the_same_fields():
    fields = field_names(common.base())
    assert all(field_names(config_of(name)) == fields for name in NAMES if not name.startswith("detection"))
    fixed = """seed batch_size num_epochs num_steps learning_rate weight_decay momentum label_smoothing bn_group_images
        accumulation_steps conv_impl compute_dtype model.name model.depth model.cardinality model.bottleneck_width
        data.name data.dir data.image_size_px checkpoint.every_steps evaluate.every_steps"""
    assert set(fixed.split()) <= set(fields)


@pytest.mark.parametrize(
    ("mean", "std", "problem"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "multiply both by 255"),  # torchvision's
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "multiply both by 255"),
        ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375), "multiply both by 255"),
        ((123.675, 116.28, 103.53), (0.229, 0.224, 0.225), "multiply both by 255"),
        ((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0), r"in \[0, 255\]"),
        ((300.0, 0.0, 0.0), (1.0, 1.0, 1.0), r"in \[0, 255\]"),
        ((float("nan"),) * 3, (1.0, 1.0, 1.0), r"finite"),
        ((100.0,) * 3, (float("inf"),) * 3, r"finite"),
        ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0), None),  # Caffe's
        ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), None),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None),
    ],
)
def test_normalization_is_in_levels_of_255(mean, std, problem):
    config = config_of("resnext50_32x4d")
    config.data.mean, config.data.std = mean, std
    found = [text for text in evaluation_problems(config, 1) if "data.mean" in text or "data.std" in text]
    assert len(found) == (problem is not None)
    assert problem is None or re.search(problem, found[0])
