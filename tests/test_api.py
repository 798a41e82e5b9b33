"""Networks for notebooks: loaded or built, they predict as the model does; exported, without this package."""

import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from flax.traverse_util import flatten_dict
from PIL import Image

from resnext_jax import api as net_module
from resnext_jax.data.one_image import USUAL, prepare
from resnext_jax.errors import UserError
from resnext_jax.evaluate.describe import origin_of
from resnext_jax.models import zoo
from resnext_jax.models.arch import CIFAR_STEM, IMAGENET_STEM, SMALL_STEM, Arch


@pytest.fixture(scope="module")
def state_and_net(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    state = tiny.save_fresh(workdir)
    return state, net_module.load(str(workdir / "checkpoints"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)


@pytest.mark.slow
def test_load_predicts_what_the_model_does(state_and_net, images):
    state, net = state_and_net
    model = tiny.cpu_model(zoo.select("resnext11_4x2d_tiny"), 10, conv_impl="native", bn_group_images=8)
    normalized = (images.astype(np.float32) - np.float32(72.94)) / np.float32(90.02)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    expected = np.asarray(model.apply(variables, jnp.asarray(normalized), train=False))
    logits = net(images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net(images.astype(np.float32)), expected, rtol=1e-4, atol=1e-5)
    # Running statistics: an image's logits do not depend on its neighbours.
    np.testing.assert_allclose(net(images[1:2]), expected[1:2], rtol=1e-4, atol=1e-5)
    assert net.class_names == tiny.INFO.class_names
    assert net.config["model"]["name"] == "resnext11_4x2d_tiny"
    assert jax.tree.all(jax.tree.map(np.array_equal, net.variables, variables))


def test_programs_of_few_shapes_are_kept(state_and_net, monkeypatch):
    _, net = state_and_net
    monkeypatch.setattr(net_module, "KEPT_SHAPES", 2)
    net = net_module.Net(net.model, net.variables, net.config, net.class_names)
    for number in (1, 2, 3):
        assert net(np.zeros((number, 28, 28, 1), np.uint8)).shape == (number, 10)
    assert net._step.cache_info().currsize == 2


@pytest.mark.slow
def test_features(state_and_net, images):
    """28 px, a stem of stride 2, two halvings; stages put out 4, 8 and 16 times the 4 channels of the stem."""
    features = state_and_net[1].features(images)
    assert {name: value.shape for name, value in features.items()} == {
        "stage1": (3, 14, 14, 4),
        "stage2": (3, 14, 14, 16),
        "stage3": (3, 7, 7, 32),
        "stage4": (3, 4, 4, 64),
        "pooled": (3, 64),
        "logits": (3, 10),
    }
    assert list(features) == ["stage1", "stage2", "stage3", "stage4", "pooled", "logits"]
    np.testing.assert_allclose(features["pooled"], features["stage4"].mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(features["logits"], state_and_net[1](images), rtol=1e-4, atol=1e-5)


def test_wrong_shapes(state_and_net):
    _, net = state_and_net
    for shape in ((28, 28, 1), (1, 28, 28, 3), (1, 1, 28, 28)):
        with pytest.raises(UserError, match=r"takes \(batch, height, width, 1\)"):
            net(np.zeros(shape, np.uint8))
        with pytest.raises(UserError, match=r"scale 0\.\.255"):
            net.features(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"shape \(0, 28, 28, 1\): there is nothing in them"):
        net(np.zeros((0, 28, 28, 1), np.uint8))


def test_preprocess_colour_for_a_grey_network(state_and_net):
    """Grey by the usual weights: (255, 0, 0) is 76, (0, 255, 0) 150, (0, 0, 255) 29."""
    _, net = state_and_net
    for channel, grey in enumerate((76, 150, 29)):
        image = np.zeros((56, 28, 3), np.uint8)
        image[..., channel] = 255
        batch = net.preprocess(image)
        assert (batch.shape, batch.dtype) == ((1, 28, 28, 1), np.uint8)
        assert (batch == grey).all()


@pytest.mark.parametrize(
    ("stem", "shape", "mean", "num_classes"),
    [
        (IMAGENET_STEM, (1, 224, 224, 3), 255 * np.array([0.485, 0.456, 0.406]), 1000),
        (CIFAR_STEM, (1, 32, 32, 3), [125.3, 123.0, 113.9], 10),
        (SMALL_STEM, (1, 28, 28, 1), [72.94], 10),
    ],
)
@pytest.mark.slow
def test_build_prepares_images_as_the_network_was_made_for(monkeypatch, stem, shape, mean, num_classes):
    monkeypatch.setitem(zoo.ARCHS, "row", Arch("basic", (1,), stem=stem, width=4))
    net = net_module.build("row", seed=1)
    images = net.preprocess(np.full((300, 400, 3), 200, np.uint8))
    assert images.shape == shape
    assert net(images).shape == (1, num_classes)
    assert len(net.class_names) == num_classes
    np.testing.assert_allclose(net.config["data"]["mean"], mean)
    assert len(net.config["data"]["std"]) == shape[-1]


@pytest.mark.slow
def test_build():
    net = net_module.build("resnext11_4x2d_tiny", num_classes=7, seed=1)
    assert net(np.zeros((1, 28, 28, 1), np.uint8)).shape == (1, 7)
    assert net.class_names[-1] == "class 6"
    with pytest.raises(UserError, match="num_classes=0 must be 1 or more"):
        net_module.build("resnext11_4x2d_tiny", num_classes=0)
    assert "resnext101_64x4d" in net_module.list_models()
    with pytest.raises(UserError, match=r"'resnext11_4x2d_tny'.*'resnext11_4x2d_tiny'"):
        net_module.build("resnext11_4x2d_tny")


def test_grey_images_for_a_network_of_three_channels():
    image = np.arange(32 * 32, dtype=np.uint32).reshape(32, 32).astype(np.uint8)
    for grey in (image, image[..., None]):
        np.testing.assert_array_equal(prepare(grey, USUAL[32]), np.stack([image] * 3, axis=-1)[None])


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((1, 9, 9, 3), np.uint8), np.zeros((0, 9), np.uint8)],
)
def test_images_that_cannot_be_prepared(state_and_net, image):
    with pytest.raises(UserError, match=r"an image of shape .* and dtype .* as uint8 in 0\.\.255"):
        state_and_net[1].preprocess(image)


def test_any_size_from_the_stride_of_the_last_stage_on(state_and_net):
    """The small networks have stride 8; 9 px are halved to 5, 3 and 2, and float images are taken as they are."""
    _, net = state_and_net
    features = net.features(np.zeros((1, 9, 40, 1), np.float32))
    assert features["stage4"].shape == (1, 2, 5, 64)
    with pytest.raises(UserError, match=r"images of 7x40 px are too small for this network: it takes 8 px or more"):
        net(np.zeros((1, 7, 40, 1), np.uint8))


@pytest.mark.slow
def test_a_new_head_on_the_same_backbone(state_and_net, images):
    _, net = state_and_net
    other = net.with_head(3, seed=1)
    assert other.class_names == ("class 0", "class 1", "class 2")
    params = other.variables["params"]
    assert {name: array.shape for name, array in params["classifier"].items()} == {"kernel": (64, 3), "bias": (3,)}
    assert (params["classifier"]["bias"] == 0).all()
    kernel = np.asarray(params["classifier"]["kernel"])
    assert 0.1 < np.abs(kernel).max() <= 1 / 8  # uniform within 1 / sqrt(64)
    before, after = net.features(images), other.features(images)
    np.testing.assert_array_equal(before["pooled"], after["pooled"])
    np.testing.assert_allclose(after["logits"], np.asarray(after["pooled"]) @ kernel, rtol=1e-4, atol=1e-5)
    assert net(images).shape == (3, 10)  # the net itself is as it was
    assert net.with_head(["cat", "dog"]).class_names == ("cat", "dog")
    for wrong in (0, [], "cat", ["cat", "cat"]):
        with pytest.raises(UserError, match="the number of classes, 1 or more, or a list of their names"):
            net.with_head(wrong)


@pytest.mark.slow
def test_predict_takes_paths_and_arrays(state_and_net, images, tmp_path):
    """All but the last of 35 are of another size; files have the same prediction as the array in them."""
    _, net = state_and_net
    logits = np.asarray(net(images), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = net.predict(images, top=20)
    assert [len(one) for one in found] == [10] * 3
    for one, row in zip(found, probabilities, strict=True):
        assert [prediction.name for prediction in one] == [net.class_names[label] for label in np.argsort(-row)]
        np.testing.assert_allclose([prediction.probability for prediction in one], np.sort(row)[::-1], rtol=1e-4)
    Image.fromarray(images[2, :, :, 0]).save(tmp_path / "2.png")
    (single,) = net.predict(tmp_path / "2.png", top=1)
    many = net.predict([np.zeros((40, 60, 3), np.uint8)] * 34 + [str(tmp_path / "2.png")], top=1)
    assert len(many) == 35
    for other in (single, many[34], net.predict(images[2], top=1)[0]):
        assert other[0].name == found[2][0].name
        assert other[0].probability == pytest.approx(found[2][0].probability, rel=1e-4)
    assert net.predict([]) == []
    for wrong, words in ((images[0].astype(np.float32), "as uint8"), ("none.png", "could not be read")):
        with pytest.raises(UserError, match=words):
            net.predict(wrong)
    with pytest.raises(UserError, match="top=0 must be 1 or more"):
        net.predict(images, top=0)


def test_what_a_net_says_of_itself(state_and_net, capsys):
    _, net = state_and_net
    for words in ("resnext11_4x2d_tiny", "10 (T-shirt/top", "28 px", "gray", "mean (72.94)", "step 0 of /"):
        assert words in repr(net)
    assert "checkpoints/0; a classifier of fresh weights" in repr(net.with_head(["cat", "dog"]))
    assert "classes:  2 (cat, dog)" in repr(net.with_head(["cat", "dog"]))
    net.summary()
    table = capsys.readouterr().out
    arrays: Any = flatten_dict(net.variables["params"], sep="/")
    sizes = {name: array.size for name, array in arrays.items()}
    assert all(f"| {name} " in table for name in sizes)
    assert f"Total: {sum(sizes.values()):,}" in table


def test_the_origin_of_weights():
    step = pathlib.Path("/run/checkpoints/1200")
    for description, raw, words in (
        (
            {"config": {"ema_decay": 0.99}},
            False,
            "step 1,200 of /run/checkpoints/1200, moving averages (ema_decay=0.99)",
        ),
        ({"config": {"ema_decay": 0.99}}, True, "step 1,200 of /run/checkpoints/1200, the last weights"),
        ({"config": {"ema_decay": 0.0}}, False, "step 1,200 of /run/checkpoints/1200"),
        (
            {"source": {"format": "timm", "file": "model.safetensors", "weights": "a1h_in1k"}},
            *(False, "/run/checkpoints/1200, converted from timm: model.safetensors (a1h_in1k)"),
        ),
    ):
        assert origin_of(epath.Path(step), description, raw) == words


SERVE = """
import sys
import numpy as np
from jax import export
served = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
assert not any(name.startswith("resnext_jax") or name.startswith("flax") for name in sys.modules)
np.savez(sys.argv[3], platforms=served.platforms, three=served.call(images), one=served.call(images[:1]))
"""


@pytest.mark.slow
def test_an_exported_file_serves_without_this_package(state_and_net, images, tmp_path):
    """In a process of its own, away from the sources; any number of images."""
    _, net = state_and_net
    net.export(str(tmp_path / "net.jax"), platforms=("cpu", "tpu"))
    np.save(tmp_path / "images.npy", images)
    arguments = [str(tmp_path / name) for name in ("net.jax", "images.npy", "logits.npz")]
    process = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    with np.load(tmp_path / "logits.npz") as file:
        served = dict(file)
    want = np.asarray(net(images))
    assert list(served["platforms"]) == ["cpu", "tpu"]
    assert served["three"].dtype == np.float32
    np.testing.assert_allclose(served["three"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(served["one"], want[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_export_for_others_and_mistakes(state_and_net, tmp_path):
    _, net = state_and_net
    net.export(str(tmp_path / "net.jax"), platforms=["tpu"], batch_size=5, image_size_px=32)
    exported = jax.export.deserialize(bytearray((tmp_path / "net.jax").read_bytes()))
    assert exported.platforms == ("tpu",)
    assert [(image.shape, image.dtype) for image in exported.in_avals] == [((5, 32, 32, 1), np.uint8)]
    assert [(logits.shape, logits.dtype) for logits in exported.out_avals] == [((5, 10), np.float32)]
    with pytest.raises(UserError, match=r"unknown platform 'gpu'.*Known: cpu, cuda, rocm, tpu"):
        net.export(str(tmp_path / "x"), platforms=["gpu"])
    with pytest.raises(UserError, match=r"batch_size=0 must be 1 or more\.\nimage_size_px=-1 must be 1 or more"):
        net.export(str(tmp_path / "x"), platforms="cpu", batch_size=0, image_size_px=-1)
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        net.export(str(tmp_path / "none" / "x"))
