"""Both stages as tasks of the loop: the recipe of appendix B, runs that are interrupted, devices, mistakes."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from PIL import Image

from configs import detection_common, detection_small
from resnext_jax import api
from resnext_jax.checkpoint import Checkpoints, read_arrays
from resnext_jax.detection import recipe
from resnext_jax.detection.checks import problems_of
from resnext_jax.detection.run import open_stages, train_detector
from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.types import TrainState

NETWORK = "resnext11_4x2d_tiny"
MEAN, STD = (120.0, 115.0, 100.0), (60.0, 60.0, 60.0)


def save_classifier(directory, network=NETWORK, mean=MEAN):
    """Write a checkpoint of a classifier of color images, with fresh weights."""
    model = tiny.cpu_model(zoo.select(network), 4)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, len(mean))), train=False)
    config = {"model": {"name": network}, "conv_impl": "auto", "compute_dtype": "float32", "bn_group_images": 0}
    config["data"] = {"image_size_px": 64, "resize_px": 64, "crop": "resize", "mean": list(mean), "std": list(STD)}
    checkpoints = Checkpoints(str(directory), keep_newest=1, keep_best=0)
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], {})
    checkpoints.save(state, {"config": config, "dataset": {"name": "four", "class_names": list("abcd")}})
    checkpoints.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A classifier, and eight training and four validation pictures of 64 px with one bright square in each."""
    root = tmp_path_factory.mktemp("detection")
    save_classifier(root / "classifier")
    for split, count, first in (("train", 8, 1), ("validation", 4, 101)):
        rng = np.random.default_rng(first)
        content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]}
        (root / "data" / split).mkdir(parents=True)
        for number in range(first, first + count):
            pixels = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            x, y, side = (int(value) for value in (*rng.integers(2, 30, 2), rng.integers(18, 30)))
            kind = number % 2
            pixels[y : y + side, x : x + side, 2 * kind] = 255
            Image.fromarray(pixels).save(root / "data" / split / f"{number}.png")
            content["images"].append({"id": number, "file_name": f"{split}/{number}.png", "height": 64, "width": 64})
            box = {"id": number, "image_id": number, "category_id": (3, 7)[kind], "bbox": [x, y, side, side]}
            content["annotations"].append(box | {"area": side * side, "iscrowd": 0})
        (root / "data" / "annotations").mkdir(exist_ok=True)
        (root / "data" / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def small(files, steps=4, **fields):
    config = detection_small.get_config()
    config.data.short_side_px = config.data.long_side_px = 64
    config.data.canvases_px = (64, 64)
    config.rpn.num_steps = config.fast_rcnn.num_steps = steps
    config.evaluate.every_steps, config.evaluate.pictures, config.evaluate.min_score = steps, 2, 0.0
    config.checkpoint.every_steps, config.log.every_steps = 2, 2
    config.warmup_steps = 0
    config.init_from, config.data.dir = str(files / "classifier"), str(files / "data")
    config.update_from_flattened_dict(fields)
    return config


def place(devices=1):
    return Place(make_mesh(jax.devices()[:devices]), "cpu")


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train_detector(small(files), str(workdir), place(), {})
    return workdir


def untimed(workdir):
    names = ("step", "loss", "class_loss", "box_loss", "ap", "ar1000", "images", "learning_rate")
    return [{name: row[name] for name in names if name in row} for row in read_metrics(str(workdir))]


ROWS = {"resnet50": 26.5, "resnext50_32x4d": 27.5, "resnet101": 29.8, "resnext101_32x4d": 30.0}  # AP of Table 8


@pytest.mark.parametrize("network", ROWS)
def test_configs_are_appendix_b_to_the_letter(network):
    module = importlib.import_module(f"configs.detection_{network}")
    assert f"AP {ROWS[network]}" in str(module.__doc__)
    config = module.get_config()
    assert config.model.name == network
    stages = [recipe.stage_config(config, stage) for stage in ("rpn", "fast_rcnn")]
    # 8 GPUs: 2 images each for the RPN, 1 each for Fast R-CNN; 120k iterations and 60k more at a tenth.
    assert [(stage.batch_size, stage.learning_rate) for stage in stages] == [(16, 0.02), (8, 0.005)]
    assert (stages[0].sampled_anchors, stages[1].sampled_regions) == (256, 64)
    assert (config.momentum, config.weight_decay, config.frozen_stages) == (0.9, 1e-4, 2)
    assert (config.data.short_side_px, config.data.long_side_px, config.heads.pooling) == (600, 1000, "max")
    for stage in stages:
        assert (stage.num_steps, tuple(stage.boundaries_steps)) == (180_000, (120_000,))
        rates = [float(recipe.schedule_of(stage)(step)) for step in (0, 119_999, 120_000, 179_999)]
        assert rates == pytest.approx([stage.learning_rate] * 2 + [stage.learning_rate / 10] * 2)
        assert recipe.rate_warning(stage) is None


def test_a_rate_far_from_the_papers_is_said():
    config = detection_common.base()
    config.fast_rcnn.batch_size = 1  # one GPU with the rate of eight
    warning = recipe.rate_warning(recipe.stage_config(config, "fast_rcnn"))
    assert warning is not None
    assert "0.000625 for 1" in warning


def test_biases_learn_twice_as_fast_and_do_not_decay():
    """SGD by hand: w -= rate * (g + decay * w); b -= 2 * rate * g; what is frozen stays."""
    config = recipe.stage_config(detection_common.base(), "fast_rcnn")
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "frozen": jnp.ones((2, 2))}
    optimizer = recipe.optimizer_of(
        config, lambda step: jnp.float32(0.5), lambda tree: {k: k == "frozen" for k in tree}
    )
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.5 * (1 + 1e-4))
    assert float(updates["bias"][0]) == -1.0
    assert float(updates["frozen"][0, 0]) == 0.0


@pytest.mark.slow
def test_both_stages_train_from_the_classifier(files, trained):
    paths = files / "classifier/checkpoints/0", trained / "rpn/checkpoints/4", trained / "checkpoints/4"
    classifier, rpn, whole = (read_arrays(epath.Path(path)) for path in paths)
    kernels = [name for name in rpn if name in classifier and name.endswith("kernel")]
    assert len(kernels) == 9  # the stem, and four in each of the two stages of the trunk
    assert all((rpn[name] != classifier[name]).any() for name in kernels)  # frozen_stages=0
    norms = [name for name in rpn if "bn" in name and name in classifier]
    assert all((rpn[name] == classifier[name]).all() for name in norms)
    # The second stage keeps the RPN as it was, and trains a trunk of its own.
    assert all(
        (whole[f"batch_stats/rpn/{name}"] == rpn[name]).all() for name in rpn if name.startswith(("params", "batch"))
    )
    assert all((whole[name] != rpn[name]).any() for name in kernels)


@pytest.mark.slow
def test_rows_pictures_and_results_of_a_run(files, trained):
    stages = [[(row["step"], row["phase"]) for row in read_metrics(str(path))] for path in (trained / "rpn", trained)]
    assert stages == [[(2, "train"), (4, "train"), (4, "evaluate")]] * 2
    assert {"ar100", "ar1000", "recall50_100"} <= read_metrics(str(trained / "rpn"))[-1].keys()
    assert {"ap", "ap50", "ap75", "ap_small", "ar100"} <= read_metrics(str(trained))[-1].keys()
    assert sorted(path.name for path in (trained / "pictures").iterdir()) == ["101.png", "104.png"]
    results = json.loads((trained / "coco_results.json").read_text())
    assert {entry["image_id"] for entry in results} <= {101, 102, 103, 104}
    assert {entry["category_id"] for entry in results} <= {3, 7}


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(2, None), (4, 2)], ids=["in the first stage", "in the second stage"])
def test_an_interrupted_run_ends_with_the_same_bits(files, trained, tmp_path, stops):
    first, second = stops
    config = small(files)
    config.rpn.num_steps = first
    tasks = open_stages(config, str(tmp_path), place())
    from resnext_jax.train.loop import train

    train(tasks[0], tasks[0].config, str(tmp_path / "rpn"), place(), {})
    if second:
        config.fast_rcnn.num_steps = second
        tasks = open_stages(config, str(tmp_path), place())
        train(tasks[1], tasks[1].config, str(tmp_path), place(), {})
    train_detector(small(files), str(tmp_path), place(), {})
    for stage in ("rpn/checkpoints/4", "checkpoints/4"):
        ours, theirs = tiny.arrays(tmp_path / stage), tiny.arrays(trained / stage)
        assert all((ours[name] == theirs[name]).all() for name in theirs.keys() | ours.keys())


@pytest.mark.slow
def test_eight_devices_agree_with_one(files, trained, tmp_path):
    train_detector(small(files, **{"evaluate.batch_size": 8}), str(tmp_path), place(8), {})
    for one, eight in zip(untimed(trained / "rpn"), untimed(tmp_path / "rpn"), strict=True):
        assert one == pytest.approx(eight, rel=1e-4, abs=1e-6)
    for one, eight in zip(untimed(trained)[:2], untimed(tmp_path)[:2], strict=True):
        assert one == pytest.approx(eight, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_detect_in_a_notebook(files, trained):
    net = api.load(str(trained))
    images = [np.asarray(Image.open(files / "data" / "validation" / f"{number}.png")) for number in (101, 102)]
    found = net.detect([*images, np.zeros((40, 64, 3), np.uint8)])
    assert len(found) == 3
    assert {entry["class"] for objects in found for entry in objects} <= {"red", "blue"}
    assert all(objects == sorted(objects, key=lambda entry: -entry["score"]) for objects in found)
    assert net.draw(images[0], found[0]).shape == (64, 64, 3)
    # As the evaluation found them.
    results = json.loads((trained / "coco_results.json").read_text())
    own = sorted((entry["score"] for entry in results if entry["image_id"] == 101), reverse=True)
    assert [entry["score"] for entry in found[0]] == pytest.approx(own, rel=1e-4)
    with pytest.raises(UserError, match="no logits"):
        net(images[0])
    with pytest.raises(UserError, match=r"image 0 is float64 of shape \(64, 64\)"):
        net.detect([np.zeros((64, 64))])
    with pytest.raises(UserError, match="first stage"):
        api.load(str(trained / "rpn"))


@pytest.mark.slow
def test_the_modes_of_the_command(files, trained, run_main, tmp_path):
    status, output, error = run_main(
        "--mode=evaluate", f"--workdir={trained}", "--json", "--config.evaluate.batch_size=8"
    )
    assert status == 0, error
    result = json.loads(output.splitlines()[-1])
    assert (result["images"], result["ap"]) == (4, pytest.approx(read_metrics(str(trained))[-1]["ap"], abs=1e-6))
    image = str(files / "data" / "validation" / "101.png")
    status, output, error = run_main(
        "--mode=predict", f"--workdir={trained}", f"--draw={tmp_path / 'd'}", "--json", image
    )
    assert status == 0, error
    assert json.loads(output.splitlines()[-1])["images"][0]["image"] == image
    with Image.open(tmp_path / "d" / "101.png") as picture:
        assert picture.size == (64, 64)
    for arguments, words in (
        (["--mode=predict", f"--draw={tmp_path / 'd'}", image], "101.png is there already"),
        (["--mode=predict", "--top=3", image], "--top: for classifiers"),
        (["--mode=recompute_bn"], "is frozen"),
    ):
        status, _, error = run_main(f"--workdir={trained}", *arguments)
        assert (status, words in error) == (2, True), error


MISTAKES = [
    ({"init_from": None}, "starts from a classifier"),
    ({"data.dir": None}, "data.dir is not set"),
    ({"heads.pooling": "mean"}, "heads.pooling"),
    ({"rpn.batch_size": 0, "fast_rcnn.learning_rate": -1.0}, "fast_rcnn.learning_rate=-1.0 must be positive"),
    ({"data.canvases_px": (64,)}, "pairs of height and width"),
    ({"model.name": "vgg16"}, "cannot detect objects"),
    ({"model.name": "resnet18"}, "belongs to another model"),
    ({"evaluate.coco": "other"}, "pycocotools"),
]


@pytest.mark.parametrize(("fields", "words"), MISTAKES)
def test_mistakes_are_refused(files, tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        train_detector(small(files, **fields), str(tmp_path), place(), {})
    assert not (tmp_path / "rpn" / "checkpoints").exists() or not any((tmp_path / "rpn" / "checkpoints").iterdir())


def test_all_problems_of_a_config_come_together():
    config = detection_common.base()
    config.rpn.num_steps, config.momentum, config.anchors.scales = 0, 1.0, ()
    lines = problems_of(config, 3)
    for words in ("rpn.num_steps", "momentum", "anchors.scales", "rpn.batch_size=16 does not divide", "data.dir"):
        assert any(words in line for line in lines), words


def test_a_gray_classifier_is_refused(files, tmp_path):
    save_classifier(tmp_path / "gray", mean=(72.9,))
    with pytest.raises(UserError, match=r"1 channel\(s\)"):
        open_stages(small(files, init_from=str(tmp_path / "gray")), str(tmp_path / "run"), place())
