"""Weights of torchvision and timm, in and out: the same logits, the same bytes, or a refusal that names both sides."""

import dataclasses
import importlib
import json
import re
import shutil
import struct
import time
from collections import OrderedDict

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import resnext_jax
from resnext_jax.checkpoint import Checkpoints
from resnext_jax.convert.__main__ import main
from resnext_jax.convert.layers import layers_of
from resnext_jax.convert.mapping import entries_of, to_variables
from resnext_jax.convert.names import their_names
from resnext_jax.data.imagenet_classes import imagenet_classes
from resnext_jax.models import zoo
from resnext_jax.models.arch import Arch
from resnext_jax.models.densenet import DenseNetArch
from resnext_jax.models.vgg import VggArch
from resnext_jax.runtime.lock import Lock
from resnext_jax.types import TrainState

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
ARCHS = {
    "tiny_resnext": Arch("bottleneck", (1, 2, 1, 1), 4, 2),
    "tiny_vgg": VggArch((1, 1, 2, 2, 2), widths=(4, 4, 8, 8, 8), hidden=16),
    "tiny_vgg_bn": VggArch((1, 1, 2, 2, 2), batch_norm=True, widths=(4, 4, 8, 8, 8), hidden=16),
    "tiny_densenet": DenseNetArch((1, 2, 1, 1), growth=4, width=8),
}


@pytest.fixture(autouse=True)
def archs(monkeypatch):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(zoo.ARCHS, name, arch)


def randomized(network, seed=0):
    """In evaluation, with statistics and scales of all sizes, and counters of all values."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for array, low, high in (
                *((module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2)),
                *((module.weight.data, 0.5, 1.5), (module.bias.data, -0.5, 0.5)),
            ):
                array.uniform_(low, high, generator=generator)
            module.num_batches_tracked.fill_(int(torch.randint(100, (), generator=generator)))
    return network.eval()


def images_of(*sizes):
    return np.random.default_rng(0).integers(0, 256, (*sizes, 3), np.uint8)


def torch_logits(network, images):
    normalized = (images.astype(np.float32) / 255 - MEAN) / STD
    with torch.no_grad():
        return network(torch.from_numpy(normalized).permute(0, 3, 1, 2)).numpy()


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def converted(tmp_path, network, model, *flags, their="torchvision"):
    """The workdir of a network of PyTorch that the command converted from the file net.pth."""
    torch.save(network.state_dict(), tmp_path / "net.pth")
    out = str(tmp_path / model)
    assert main([their, str(tmp_path / "net.pth"), f"--model={model}", f"--out={out}", *flags]) == 0
    return out


def same_files(one, other):
    one, other = torch.load(one, weights_only=True), torch.load(other, weights_only=True)
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.shape == other[name].shape
        assert torch.equal(*(array.reshape(-1).view(torch.uint8) for array in (tensor, other[name]))), name


@pytest.fixture
def tiny_torchvision(torchvision):
    """The classes of torchvision itself, with numbers as small as ours."""
    models = torchvision.models

    def vgg(batch_norm):
        layers = [4, "M", 4, "M", 8, 8, "M", 8, 8, "M", 8, 8, "M"]
        network = models.vgg.VGG(models.vgg.make_layers(layers, batch_norm=batch_norm))
        for place, shape in {0: (8 * 49, 16), 3: (16, 16), 6: (16, 5)}.items():
            network.classifier[place] = torch.nn.Linear(*shape)
        return network

    def build(name):
        torch.manual_seed(1)
        if name == "tiny_resnext":
            bottleneck = models.resnet.Bottleneck
            return randomized(models.ResNet(bottleneck, [1, 2, 1, 1], num_classes=5, groups=4, width_per_group=2))
        if name == "tiny_densenet":
            return randomized(models.DenseNet(4, (1, 2, 1, 1), 8, num_classes=5))
        return randomized(vgg(name.endswith("bn")))

    return build


# ---- Logits, and the way back


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.slow
def test_round_trip_is_byte_identical_and_logits_are_theirs(tmp_path, tiny_torchvision, name, new_format):
    network = tiny_torchvision(name)
    file, out, back = (str(tmp_path / part) for part in ("net.pth", "out", "back.pth"))
    state = network.state_dict()
    if new_format:
        state = OrderedDict(reversed(state.items()))  # the file's order, not ours
        first, second = [key for key, tensor in state.items() if tensor.is_floating_point()][:2]
        state |= {first: state[first].half(), second: state[second].bfloat16()}
    torch.save(state, file, _use_new_zipfile_serialization=new_format)
    network.load_state_dict(state)
    assert main(["torchvision", file, f"--model={name}", f"--out={out}"]) == 0
    assert main(["checkpoint", out, "--to=torchvision", f"--out={back}"]) == 0
    same_files(file, back)
    if not new_format:
        net, images = resnext_jax.load(out), images_of(2, 64, 75)
        assert_close(net(images), torch_logits(network, images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnet18"])
def test_published_networks_of_torchvision(tmp_path, torchvision, name):
    torch.manual_seed(0)
    network = randomized(torchvision.models.get_model(name))
    out = converted(tmp_path, network, name, f"--weights=IMAGENET1K_V{1 if name == 'resnet18' else 2}")
    net, images = resnext_jax.load(out), images_of(2, 64, 64)
    assert_close(net(images), torch_logits(network, images))
    assert net.class_names[:2] == ("tench", "goldfish")
    assert net.config["data"]["resize_px"] == (256 if name == "resnet18" else 232)
    weights = torchvision.models.get_model_weights(name)[f"IMAGENET1K_V{1 if name == 'resnet18' else 2}"]
    same_pixels(net, weights, [(height, width) for height in (300, 375, 401) for width in range(300, 501)])
    if name == "resnet18":
        assert main(["checkpoint", out, "--to=torchvision", f"--out={tmp_path / 'back.pth'}"]) == 0
        same_files(tmp_path / "net.pth", tmp_path / "back.pth")


def same_pixels(net, weights, sizes):
    """Asserts that images of these sizes are prepared as torchvision's transforms of `weights` do."""
    transforms, rng = weights.transforms(mean=(0, 0, 0), std=(1, 1, 1)), np.random.default_rng(0)
    for height, width in sizes:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        want = np.rint(255 * transforms(Image.fromarray(pixels)).permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(net.preprocess(pixels)[0], want, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("their", ["torchvision", "timm"])
def test_images_are_prepared_as_by_torchvision(tmp_path, torchvision, tiny_torchvision, their):
    """Half a pixel of margin is rounded to even; 232 * 341 / 319 is 248."""
    net = resnext_jax.load(converted(tmp_path, tiny_torchvision("tiny_resnext"), "tiny_resnext", their=their))
    weights = torchvision.models.ResNet50_Weights
    for version in (weights.IMAGENET1K_V1, weights.IMAGENET1K_V2):
        net.config["data"].update(resize_px=version.transforms().resize_size[0], interpolation="bilinear")
        same_pixels(net, version, [(375, 500), (500, 333), (319, 341), (300, 301), (224, 225)])


def write_safetensors(path, arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        part = np.asarray(array).tobytes()
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.slow
def test_timm(tmp_path, torchvision):
    """By the classes and names of timm: a ResNeXt as .safetensors, a VGG (hidden layers are convolutions) as .pth."""
    timm = importlib.import_module("timm")
    torch.manual_seed(0)
    bottleneck = timm.models.resnet.Bottleneck
    network = randomized(timm.models.ResNet(bottleneck, [1, 2, 1, 1], 5, cardinality=4, base_width=2))
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    write_safetensors(tmp_path / "model.safetensors", arrays)
    out = str(tmp_path / "resnext")
    assert main(["timm", str(tmp_path / "model.safetensors"), "--model=tiny_resnext", f"--out={out}"]) == 0
    images = images_of(2, 64, 64)
    assert_close(resnext_jax.load(out)(images), torch_logits(network, images))
    # Theirs are torchvision's names: a file for torchvision comes back with all counters.
    assert main(["checkpoint", out, "--to=torchvision", f"--out={tmp_path / 'back.pth'}"]) == 0
    torch.save(network.state_dict(), tmp_path / "net.pth")
    same_files(tmp_path / "net.pth", tmp_path / "back.pth")

    network = timm.models.vgg.VGG([4, "M", 4, "M", 8, 8, "M", 8, 8, "M", 8, 8, "M"], num_classes=5)
    network.pre_logits = timm.models.vgg.ConvMlp(8, 16, 7)
    network.head = timm.layers.ClassifierHead(16, 5)
    out = converted(tmp_path, network.eval(), "tiny_vgg", their="timm")
    images = images_of(1, 224, 224)
    assert_close(resnext_jax.load(out)(images), torch_logits(network, images))


def save_as_ours(workdir, network, step, class_names):
    """The checkpoint of a run: arrays under our names, nothing said of where they came from."""
    layers = layers_of("tiny_resnext", 5)
    entries = entries_of("torchvision", layers, their_names("torchvision", "tiny_resnext", layers))
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items() if "num_batches" not in name}
    variables = to_variables(entries, arrays, file="memory", model="tiny_resnext")
    state = TrainState(np.int32(step), variables["params"], variables["batch_stats"], ())
    checkpoints = Checkpoints(str(workdir), keep_newest=1, keep_best=0)
    sizes = {"image_size_px": 32, "resize_px": 32, "crop": "none", "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]}
    config = {
        "model": {"name": "tiny_resnext"},
        "conv_impl": "auto",
        "compute_dtype": "float32",
        "bn_group_images": 32,
        "data": {"name": "builtin", "dir": None, "num_threads": 0, **sizes},
        "evaluate": {"batch_size": 256},
    }
    dataset = {"name": "folder", "class_names": class_names}
    checkpoints.save(state, {"config": config, "dataset": dataset})
    checkpoints.close()


def test_a_checkpoint_of_ours_becomes_a_file_of_torchvision(tmp_path, tiny_torchvision):
    """Trained by us, the step is the count of batches."""
    network = tiny_torchvision("tiny_resnext")
    save_as_ours(tmp_path / "run", network, 9, list("abcde"))
    assert main(["checkpoint", str(tmp_path / "run"), "--to=torchvision", f"--out={tmp_path / 'x.pth'}"]) == 0
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked.fill_(9)
    torch.save(network.state_dict(), tmp_path / "want.pth")
    same_files(tmp_path / "x.pth", tmp_path / "want.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("densenet121", "densenet161", "densenet169", "densenet201"),
        *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    ],
)
def test_names_and_shapes_of_torchvision(torchvision, name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    layers = layers_of(name, 1000)
    entries = entries_of("torchvision", layers, their_names("torchvision", name, layers))
    theirs = [(key, tuple(tensor.shape)) for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
    assert [(entry.name, entry.their_shape) for entry in entries] == theirs


def test_old_names_of_densenet(tmp_path, tiny_torchvision):
    """The published DenseNets of torchvision say norm.1 where the network says norm1."""
    network = tiny_torchvision("tiny_densenet")
    state = OrderedDict()
    for name, tensor in network.state_dict().items():
        if "num_batches_tracked" not in name:
            for old in ("norm1", "norm2", "conv1", "conv2"):
                name = name.replace(f"denselayer1.{old}.", f"denselayer1.{old[:4]}.{old[4]}.")
            state[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    file, out, back = (str(tmp_path / part) for part in ("net.pth", "out", "back.pth"))
    torch.save(state, file)
    assert main(["torchvision", file, "--model=tiny_densenet", f"--out={out}"]) == 0
    assert main(["checkpoint", out, "--to=torchvision", f"--out={back}"]) == 0
    same_files(file, back)


# ---- Refusals


@pytest.fixture
def refused(tmp_path, capsys):
    def run(*arguments, state=None):
        if state is not None:
            torch.save(state, tmp_path / "net.pth")
        arguments = [argument.replace("FILE", str(tmp_path / "net.pth")) for argument in arguments]
        assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
        assert not (tmp_path / "out").exists()
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        return " ".join(text.split())

    return run


def test_wrong_arrays_are_named_with_both_sides(refused, tiny_torchvision):
    state = tiny_torchvision("tiny_resnext").state_dict()
    del state["layer2.0.bn3.running_var"]
    state["layer9.weight"] = torch.ones(2, 3)
    state["layer1.0.conv2.weight"] = torch.ones(8, 4, 3, 3)
    state["bn1.bias"] = state["bn1.bias"].double()
    state["fc.num_batches_tracked"] = torch.tensor(3)  # of no batch norm
    text = refused("torchvision", "FILE", "--model=tiny_resnext", state=state)
    for line in (
        "layer2.0.bn3.running_var: tiny_resnext wants (512,) (its batch_stats/stage3/block1/bn3/var), the file lacks",
        "layer9.weight: the file has float32(2, 3), tiny_resnext has no such array",
        "layer1.0.conv2.weight: tiny_resnext wants (8, 2, 3, 3) (its params/stage2/block1/conv2/kernel), the file has "
        "float32(8, 4, 3, 3)",
        "bn1.bias: tiny_resnext wants (64,) (its params/stem_bn/bias), the file has float64(64,), which float32 would",
        "fc.num_batches_tracked: the file has int64(), tiny_resnext has no such array",
        "Give the network that the file belongs to with --model=NAME",
    ):
        assert line in text


@pytest.mark.parametrize("kind", ["pth", "safetensors", "checkpoint"])
def test_values_that_no_network_has_are_named(refused, tmp_path, tiny_torchvision, capsys, kind):
    network = tiny_torchvision("tiny_resnext")
    state = network.state_dict()
    state["conv1.weight"][1, 2, 3, 4] = float("nan")
    state["bn1.running_var"][[3, 5]] = -0.1
    state["bn1.running_mean"][3] = -0.1
    state["fc.bias"][4] = 1.47e38
    if kind == "checkpoint":
        save_as_ours(tmp_path / "run", network, 9, list("abcde"))
        assert main(["checkpoint", str(tmp_path / "run"), "--to=torchvision", f"--out={tmp_path / 'x.pth'}"]) == 2
        assert not (tmp_path / "x.pth").exists()
        text = " ".join(capsys.readouterr().err.split())
    else:
        file = "FILE" if kind == "pth" else str(tmp_path / "net.safetensors")
        write_safetensors(tmp_path / "net.safetensors", {name: tensor.numpy() for name, tensor in state.items()})
        text = refused("torchvision", file, "--model=tiny_resnext", state=state)
    for line in (
        "conv1.weight: 1 of 9,408 values, the first nan at [1, 2, 3, 4]",
        "bn1.running_var: 2 of 64 values, the first -0.1 at [3]",
        "fc.bias: 1 of 5 values, the first 1.47e+38 at [4]",
    ):
        assert line in text
    assert "running_mean" not in text


def test_an_array_under_an_old_and_a_new_name(refused, tiny_torchvision):
    state = tiny_torchvision("tiny_densenet").state_dict()
    new = "features.denseblock1.denselayer1.norm1.weight"
    state[new.replace("norm1", "norm.1")] = state[new]
    text = refused("torchvision", "FILE", "--model=tiny_densenet", state=state)
    assert "under its old and its new name" in text


def test_wrong_models(refused, tiny_torchvision):
    state = tiny_torchvision("tiny_resnext").state_dict()
    text = refused("torchvision", "FILE", "--model=resnet18", state=state)
    assert "does not hold the weights of resnet18; nothing was written" in text
    assert "more arrays" in text
    assert "layer1.0.conv1.weight" in text
    text = refused("torchvision", "FILE", "--model=resnext50_32x4", state=state)
    assert "unknown model.name 'resnext50_32x4'. Did you mean 'resnext50_32x4d'" in text
    text = refused("torchvision", "FILE", "--model=preresnet18", state=state)
    assert "preresnet18 is none of torchvision's networks: final_bn has no name there" in text
    text = refused("torch7", "FILE", "--model=vgg11")
    assert "hold ResNets and ResNeXts" in text


def test_a_directory_that_cannot_be_made(tmp_path, tiny_torchvision, capsys):
    torch.save(tiny_torchvision("tiny_resnext").state_dict(), tmp_path / "net.pth")
    out = tmp_path / "net.pth" / "out"
    assert main(["torchvision", str(tmp_path / "net.pth"), "--model=tiny_resnext", f"--out={out}"]) == 2
    text = capsys.readouterr().err
    assert f"{out} cannot be written (Not a directory)" in text
    assert "Give another --out=DIR" in text


@pytest.mark.slow
def test_published_weights_with_other_preprocessing_are_named(tmp_path, tiny_torchvision, monkeypatch, capsys):
    """A file that is none of those published is prepared for as usual, and the command says which others there are."""
    monkeypatch.setitem(zoo.ARCHS, "resnext50_32x4d", ARCHS["tiny_resnext"])
    torch.save(tiny_torchvision("tiny_resnext").state_dict(), tmp_path / "net.pth")
    arguments = ["torchvision", str(tmp_path / "net.pth"), "--model=resnext50_32x4d"]
    assert main([*arguments, f"--out={tmp_path / 'one'}"]) == 0
    said = capsys.readouterr()
    assert "224 px cut out of 256, bilinear\n" in said.out
    assert "  224 px of 232, bilinear: --weights=IMAGENET1K_V2" in said.err
    assert main([*arguments, f"--out={tmp_path / 'two'}", "--weights=IMAGENET1K_V2"]) == 0
    said = capsys.readouterr()
    assert "224 px cut out of 232, bilinear, as for IMAGENET1K_V2" in said.out
    assert said.err == ""
    assert main([*arguments, f"--out={tmp_path / 'three'}", "--weights=IMAGENET_V2"]) == 2
    assert "Did you mean 'IMAGENET1K_V2'" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_class_names(refused, tiny_torchvision, tmp_path, capsys):
    state = tiny_torchvision("tiny_resnext").state_dict()
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\ntwo\n")
    text = refused("torchvision", "FILE", "--model=tiny_resnext", f"--class_names={names}", state=state)
    assert "has 3 names (2 different), and the file 5 classes" in text
    names.write_text("a\nb\nc\nd\ne\n")
    arguments = ["torchvision", str(tmp_path / "net.pth"), "--model=tiny_resnext", f"--out={tmp_path / 'out'}"]
    assert main([*arguments, f"--class_names={names}"]) == 0
    assert resnext_jax.load(str(tmp_path / "out")).class_names == tuple("abcde")
    before = tiny.digests(tmp_path / "out")
    capsys.readouterr()
    assert main(arguments) == 2
    assert "holds checkpoints already (with other --class_names)" in capsys.readouterr().err
    names.write_bytes("\ufeffa \r\nb\r\n\tc\r\nd\r\ne\r\n\r\n".encode())
    assert main([*arguments, f"--class_names={names}"]) == 0
    assert "has been converted from the same file before" in capsys.readouterr().out
    assert tiny.digests(tmp_path / "out") == before


@pytest.mark.parametrize("left", ["nothing", "an empty directory", "half a checkpoint"])
def test_a_conversion_that_was_killed_is_completed(tmp_path, tiny_torchvision, left):
    out = converted(tmp_path, tiny_torchvision("tiny_resnext"), "tiny_resnext")
    arguments = ["torchvision", str(tmp_path / "net.pth"), "--model=tiny_resnext", f"--out={out}"]
    directory, want = tmp_path / "tiny_resnext" / "checkpoints", resnext_jax.load(out)
    if left == "half a checkpoint":
        (directory / "0").rename(directory / "0.orbax-checkpoint-tmp")
        (directory / "0.orbax-checkpoint-tmp" / "checksums.json").unlink()
        dead = Lock(out, print)._own | {"command": "python\0gone\0", "token": "t"}
        (tmp_path / "tiny_resnext" / "run.lock").write_text(json.dumps(dead))
    else:
        shutil.rmtree(directory)
        directory.mkdir() if left == "an empty directory" else None
    assert main(arguments) == 0
    assert [path.name for path in directory.iterdir()] == ["0"]
    assert [path.name for path in directory.parent.iterdir()] == ["checkpoints"]
    images = images_of(1, 32, 32)
    np.testing.assert_array_equal(resnext_jax.load(out)(images), want(images))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("another file", "of another file"),
        ("a run", r"\(9\)"),
        ("an unfinished run", "an unfinished one of a run"),
        ("damage", "is damaged .*Remove"),
    ],
)
def test_other_checkpoints_are_left_as_they_are(tmp_path, tiny_torchvision, capsys, change, problem):
    network, out = tiny_torchvision("tiny_resnext"), tmp_path / "tiny_resnext"
    if change == "a run":
        save_as_ours(out, network, 9, list("abcde"))
    else:
        converted(tmp_path, network, "tiny_resnext")
    if change == "an unfinished run":
        (out / "checkpoints" / "0").rename(out / "checkpoints" / "0.orbax-checkpoint-tmp")
        (out / "config.json").write_text("{}")
    elif change == "damage":
        (out / "checkpoints" / "0" / "variables" / "manifest.ocdbt").unlink()
    elif change == "another file":
        network.fc.bias.data += 1
    torch.save(network.state_dict(), tmp_path / "net.pth")
    before = tiny.digests(out)
    capsys.readouterr()
    assert main(["torchvision", str(tmp_path / "net.pth"), "--model=tiny_resnext", f"--out={out}"]) == 2
    assert re.search(problem, " ".join(capsys.readouterr().err.split()))
    assert tiny.digests(out) == before


@pytest.mark.slow
def test_many_classes_are_converted_in_seconds(tmp_path, tiny_torchvision):
    network = tiny_torchvision("tiny_resnext")
    network.fc = torch.nn.Linear(512 * 4, 100_000)
    (tmp_path / "names").write_text("".join(f"n{number:08}\n" for number in range(100_000)))
    began_s = time.monotonic()
    out = converted(tmp_path, network, "tiny_resnext", f"--class_names={tmp_path / 'names'}")
    assert resnext_jax.load(out).class_names[99_999] == "n00099999"
    assert time.monotonic() - began_s < 60


# ---- Use


@pytest.mark.slow
def test_evaluate_and_predict_as_the_weights_want_it(tmp_path, tiny_torchvision, run_main):
    """Folders named by WordNet ids; what PyTorch says of Pillow's bilinear pixels, counted by hand."""
    network = tiny_torchvision("tiny_resnext")
    wnids = list(imagenet_classes())[:5]
    (tmp_path / "names.txt").write_text("\n".join(wnids))
    out = converted(tmp_path, network, "tiny_resnext", f"--class_names={tmp_path / 'names.txt'}")

    rng, right, logits, paths = np.random.default_rng(3), 0, [], []
    for label, wnid in enumerate(wnids):
        for split in ("train", "validation"):
            (tmp_path / "data" / split / wnid).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
            image = Image.fromarray(pixels).resize((360, 300), Image.Resampling.NEAREST)
            paths.append(tmp_path / "data" / "validation" / wnid / f"{number}.png")
            image.save(paths[-1])
            image.save(tmp_path / "data" / "train" / wnid / f"{number}.png")
            # 256 of 300 and 307 of 360 px; the middle 224: margins of 16 and 41.5.
            crop = image.resize((307, 256), Image.Resampling.BILINEAR).crop((42, 16, 42 + 224, 16 + 224))
            logits.append(torch_logits(network, np.asarray(crop)[None])[0])
            right += int(logits[-1].argmax() == label)
    data = [f"--config.data.dir={tmp_path / 'data'}", "--config.evaluate.batch_size=16"]
    _, said, _ = run_main("--mode=evaluate", f"--workdir={out}", "--json", *data)
    row = json.loads(said.splitlines()[-1])
    assert row["images"] == 10
    assert row["top1"] == pytest.approx(right / 10)
    losses = [np.log(np.exp(one - one.max()).sum()) + one.max() - one[i // 2] for i, one in enumerate(logits)]
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)

    _, said, _ = run_main("--mode=predict", f"--workdir={out}", "--json", str(paths[3]))
    predictions = json.loads(said.splitlines()[-1])["images"][0]["predictions"]
    names = ["tench", "goldfish", "great white shark", "tiger shark", "hammerhead"]
    probabilities = np.exp(logits[3]) / np.exp(logits[3]).sum()
    best = int(probabilities.argmax())
    assert predictions[0]["class"] == names[best]
    assert predictions[0]["probability"] == pytest.approx(probabilities[best], rel=1e-3)


def dense_scores(network, view, window_px=2):
    """PyTorch's classifier as a 1x1 convolution over every window of 2 x 2 positions, and the average of its map."""
    x = (torch.from_numpy(np.ascontiguousarray(view).astype(np.float32) / 255 - MEAN) / torch.from_numpy(STD))[None]
    x = x.permute(0, 3, 1, 2)
    with torch.no_grad():
        if hasattr(network, "features"):
            maps, last = torch.relu(network.features(x)), network.classifier
        else:
            maps = network.maxpool(network.relu(network.bn1(network.conv1(x))))
            maps = network.layer4(network.layer3(network.layer2(network.layer1(maps))))
            last = network.fc
        maps = torch.nn.functional.avg_pool2d(maps, window_px, stride=1)
        maps = torch.nn.functional.conv2d(maps, last.weight[:, :, None, None], last.bias)
        return maps.mean((2, 3)).numpy()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "protocols"),
    [("tiny_resnext", ("center", "center_320", "ten_crop", "multi_scale")), ("tiny_densenet", ("multi_scale",))],
)
def test_protocols_of_converted_weights(tmp_path, tiny_torchvision, run_main, name, protocols):
    """The command on photographs, beside PyTorch on views that Pillow cuts; 64 px of 73, as 224 px of 256."""
    network = tiny_torchvision(name)
    (tmp_path / "names.txt").write_text("\n".join("abcde"))
    out = converted(tmp_path, network, name, f"--class_names={tmp_path / 'names.txt'}")

    expected = {protocol: [] for protocol in ("center", "center_320", "ten_crop", "multi_scale")}
    photos = load_sample_images().images  # 427 x 640
    for label, photo in zip("abcde", [*photos, photos[0][::-1], photos[1][::-1], photos[0][:, ::-1]], strict=True):
        (tmp_path / "data" / "validation" / label).mkdir(parents=True)
        Image.fromarray(photo).save(tmp_path / "data" / "validation" / label / "photo.png")

        def scaled(width, height, photo=photo):
            return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))

        whole = scaled(109, 73)  # 9 and 45 beside a crop; before it 4 and 22, as torchvision rounds 4.5 and 22.5
        places = ((4, 22), (0, 0), (0, 45), (9, 0), (9, 45))
        crops = [side[top : top + 64, left : left + 64] for side in (whole, whole[:, ::-1]) for top, left in places]
        expected["ten_crop"].append(torch_logits(network, np.stack(crops)).mean(0))
        expected["center"].append(torch_logits(network, crops[0][None])[0])
        # 320 of 365 and 547 px: margins of 22.5 and 113.5, which torchvision rounds to 22 and 114.
        expected["center_320"].append(torch_logits(network, scaled(547, 365)[None, 22:342, 114:434])[0])
        scores = []
        # 640 of 427 px are 10 sevenths of the short side and a little more, which is cut off.
        scales = (64, 95, 91, 2), (73, 109, 104, 3), (109, 163, 155, 4), (137, 205, 195, 5), (182, 272, 260, 6)
        for short, width, kept, left in scales:
            view = scaled(width, short)[:, left : left + kept]
            scores += [dense_scores(network, view), dense_scores(network, view[:, ::-1])]
        expected["multi_scale"].append(np.mean(scores, axis=0))

    for protocol in protocols:
        logits = expected[protocol]
        sizes = ["--config.data.image_size_px=64", "--config.data.resize_px=73", "--config.evaluate.batch_size=8"]
        folder = ["--config.data.name=folder", f"--config.data.dir={tmp_path / 'data'}"]
        asked = ("--mode=evaluate", f"--workdir={out}", "--json", f"--config.protocol={protocol}")
        _, said, _ = run_main(*asked, *sizes, *folder)
        row = json.loads(said.splitlines()[-1])
        losses = [np.log(np.exp(one - one.max()).sum()) + one.max() - one[i] for i, one in enumerate(logits)]
        assert (row["protocol"], row["images"]) == (protocol, 5)
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert row["top1"] == np.mean([one.argmax() == i for i, one in enumerate(logits)])


def test_wrong_overrides_of_a_checkpoints_config(tmp_path, tiny_torchvision, run_main):
    save_as_ours(tmp_path, tiny_torchvision("tiny_resnext"), 1, list("abcde"))
    overrides = ("--config.data.maen=1,1,1", "--config.evaluate.batch_size=many", "--config.data.mean=grey")
    status, _, text = run_main("--mode=evaluate", f"--workdir={tmp_path}", *overrides)
    assert status == 2
    assert "unknown config field 'data.maen'. Did you mean 'data.mean'" in text
    assert "evaluate.batch_size='many' must be a whole number" in text
    assert "data.mean='grey' must be numbers" in text


@pytest.mark.slow
def test_checkpoints_that_torchvision_cannot_have(tmp_path, tiny_torchvision, capsys, monkeypatch):
    save_as_ours(tmp_path, tiny_torchvision("tiny_resnext"), 1, list("abcde"))
    arguments = ["checkpoint", str(tmp_path), "--to=torchvision", f"--out={tmp_path / 'x.pth'}"]
    for arch, problem in (
        (dataclasses.replace(ARCHS["tiny_resnext"], shortcut=False), "one without shortcuts"),
        (dataclasses.replace(ARCHS["tiny_resnext"], preactivation=True), "final_bn has no name there"),
        (dataclasses.replace(ARCHS["tiny_resnext"], bottleneck_width=4), "belongs to another model"),
    ):
        monkeypatch.setitem(zoo.ARCHS, "tiny_resnext", arch)
        assert main(arguments) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()
