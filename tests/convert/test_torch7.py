"""Files of Torch7: every kind of value; networks to the last logit; and nothing but instructions for broken ones."""

import numpy as np
import pytest
import torch
import torch7_writer
from torch7_writer import Builder, Func, Obj, Writer

import resnext_jax
from resnext_jax.convert.__main__ import main
from resnext_jax.convert.take import convert
from resnext_jax.convert.torch7 import Function, Module, read_torch7
from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.models.arch import Arch

ARCHS = {
    "tiny_resnext": Arch("bottleneck", (1, 2), 4, 2, width=8),
    "tiny_preresnet": Arch("bottleneck", (2, 2), 1, 6, width=8, preactivation=True),
}


@pytest.fixture(autouse=True)
def archs(monkeypatch):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(zoo.ARCHS, name, arch)


def write(path, value, **options):
    path.write_bytes(Writer(**options).write(value).out)
    return str(path)


def resnext(**options):
    return Builder(**options).network((1, 2), width=8, inner=8, groups=4, num_classes=5)


def test_every_kind_of_value(tmp_path):
    flat = np.arange(24, dtype=np.float32)
    shared = {"x": 1}
    value = {
        "nothing": None,
        "yes": True,
        "no": False,
        "half": 0.5,
        1: "one",
        2: "zwölf",
        "first": shared,
        "again": shared,
        "function": Func(b"\x1bLJ\x01os.execute", [shared, "upvalue"]),
        "view": flat[6:18].reshape(3, 4),
        "turned": flat[:6].reshape(2, 3).T,
        "double": np.array([[1.5]]),
        "long": np.array([2**40], np.int64),
        "object": Obj("tds.AnyClass", field="value"),
    }
    value["itself"] = value
    for options in ({}, {"tensor_class": "Cuda"}, {"versions": False}):
        found = read_torch7(write(tmp_path / "x.t7", value, **options))
        assert found["itself"] is found
        assert found["first"] is found["again"]
        assert found["first"] == {"x": 1.0}
        plain = {key: found[key] for key in ("nothing", "yes", "no", "half", 1, 2)}
        assert plain == {"nothing": None, "yes": True, "no": False, "half": 0.5, 1: "one", 2: "zwölf"}
        assert found["function"] == Function()
        np.testing.assert_array_equal(found["view"], [[6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16, 17]])
        np.testing.assert_array_equal(found["turned"], [[0, 3], [1, 4], [2, 5]])
        assert found["view"].dtype == np.float32
        np.testing.assert_array_equal(found["double"], np.array([[1.5]]))
        np.testing.assert_array_equal(found["long"], np.array([2**40]))
        assert found["object"] == Module("tds.AnyClass", {"field": "value"})


def test_bytes_by_hand(tmp_path):
    """{"a": FloatTensor{1, 2}}, as Torch7 writes it."""
    text = b"\x01\0\0\0a"
    tensor = b"\x04\0\0\0\x02\0\0\0" + b"\x03\0\0\0V 1" + b"\x11\0\0\0torch.FloatTensor"
    tensor += b"\x01\0\0\0" + b"\x02\0\0\0\0\0\0\0" + b"\x01\0\0\0\0\0\0\0" + b"\x01\0\0\0\0\0\0\0"
    storage = b"\x04\0\0\0\x03\0\0\0" + b"\x03\0\0\0V 1" + b"\x12\0\0\0torch.FloatStorage"
    storage += b"\x02\0\0\0\0\0\0\0" + b"\0\0\x80?" + b"\0\0\0@"
    path = tmp_path / "x.t7"
    path.write_bytes(b"\x03\0\0\0\x01\0\0\0\x01\0\0\0" + b"\x02\0\0\0" + text + tensor + storage)
    np.testing.assert_array_equal(read_torch7(str(path))["a"], np.array([1, 2], np.float32))


def test_cut_short_anywhere(tmp_path):
    content = bytes(Writer().write({"a": np.ones((2, 3), np.float32), "f": Func(b"code", None), "s": "text"}).out)
    path = tmp_path / "x.t7"
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"x\.t7 is no whole Torch7 file"):
            read_torch7(str(path))
    path.write_bytes(content + b"\0")
    with pytest.raises(UserError, match="1 bytes follow"):
        read_torch7(str(path))


def broken_tensor(**changes):
    fields = {"dims": 1, "sizes": [4], "strides": [1], "offset": 1, "count": 4} | changes
    writer = Writer().int32(4).int32(1).class_name("torch.FloatTensor").int32(fields["dims"])
    for number in (*fields["sizes"], *fields["strides"], fields["offset"]):
        writer.int64(number)
    writer.int32(4).int32(2).class_name("torch.FloatStorage").int64(fields["count"])
    writer.out += bytes(16)
    return bytes(writer.out)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return bytes(Writer().write(value).out)


def test_numbers_of_a_tensor_that_do_not_matter(tmp_path):
    """The stride of one element, and sizes beside a zero."""
    for changes, shape in (
        ({"sizes": [1], "strides": [2**62]}, (1,)),
        ({"sizes": [0, 2**62], "strides": [1, 1]}, (0,)),
    ):
        (tmp_path / "x.t7").write_bytes(broken_tensor(dims=len(changes["sizes"]), **changes))
        assert read_torch7(str(tmp_path / "x.t7")).shape == shape


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"4\n1\n3\nV 1\n", "type 170986036, which does not exist"),  # the ascii format
        (b"PK\x03\x04 a zip archive", "which does not exist"),
        (b"\x02\0\0\0\xff\xff\xff\xff", "the length -1"),
        (b"\x02\0\0\0\xff\xff\xff\x7f", "it ends at byte 8"),
        (b"\x03\0\0\0\x01\0\0\0\xff\xff\xff\x7f", "it ends at byte 12"),
        (nested(200), "more than 150 objects"),
        (broken_tensor(sizes=[5]), "does not lie within its storage"),
        (broken_tensor(offset=2), "does not lie within its storage"),
        (broken_tensor(offset=0), "does not lie within its storage"),
        (broken_tensor(strides=[-1]), "does not lie within its storage"),
        (broken_tensor(sizes=[2**62], strides=[0]), "does not lie within its storage"),
        (broken_tensor(dims=-1), "has -1 dimensions"),
        (broken_tensor(dims=99), "has 99 dimensions"),
        (broken_tensor(sizes=[2**62], count=0), "does not lie within its storage"),
        (broken_tensor(dims=2, sizes=[2**62, 4], strides=[2**62, 1]), "does not lie within its storage"),
        (broken_tensor(count=2**62), "it ends at byte"),
        (broken_tensor(count=-1), "the sizes"),
        (bytes(Writer().int32(4).int32(1).class_name("torch.QuantumTensor").out), "class torch.QuantumTensor"),
        (bytes(Writer().int32(4).int32(1).class_name("nn.Linear").write("no table").out), "has no table of fields"),
    ],
)
def test_broken_files(tmp_path, content, problem):
    path = tmp_path / "x.t7"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_torch7(str(path))


@pytest.mark.parametrize(
    ("model", "library", "tensor_class"), [("tiny_resnext", "cudnn", "Cuda"), ("tiny_preresnet", "nn", "Float")]
)
@pytest.mark.slow
def test_logits_are_torch7s(tmp_path, model, library, tensor_class):
    builder, arch = Builder(library=library), zoo.ARCHS[model]
    assert isinstance(arch, zoo.Arch)
    inner = arch.cardinality * arch.bottleneck_width
    network = builder.network(arch.blocks, 8, inner, arch.cardinality, 5, arch.preactivation)
    if library == "nn":  # keeps kernels as matrices, where it is old
        stem = network.fields["modules"][0].fields
        stem["weight"] = stem["weight"].reshape(8, -1)
    file, out = write(tmp_path / "net.t7", network, tensor_class=tensor_class), str(tmp_path / "out")
    assert main(["torch7", file, f"--model={model}", f"--out={out}"]) == 0
    net = resnext_jax.load(out)
    images = np.random.default_rng(1).integers(0, 256, (2, 33, 48, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    normalized = (images.astype(np.float32) / 255 - mean) / std
    want = torch7_writer.compute(network, torch.from_numpy(normalized).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(net(images), want, atol=1e-4 * np.abs(want).max())
    data = net.config["data"]
    assert (data["image_size_px"], data["resize_px"], data["interpolation"]) == (224, 256, "bicubic")
    assert net.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")


def changed(change):
    network = resnext()
    change(network.fields["modules"])
    return network


def block_of(modules):
    """The first block of the second stage: [ConcatTable{Sequential, shortcut}, CAddTable, ReLU]."""
    return modules[5].fields["modules"][0].fields["modules"]


def branch_of(modules):
    return block_of(modules)[0].fields["modules"][0].fields["modules"]


def stride_in_the_1x1(modules):
    branch = branch_of(modules)
    branch[0].fields |= {"dW": 2, "dH": 2}
    branch[3].fields |= {"dW": 1, "dH": 1}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (stride_in_the_1x1, r"step 21 is 'conv 1x1 stride 2 of 32 channels .* 'conv 1x1 stride 1 of 32 channels"),
        (lambda modules: branch_of(modules)[3].fields.update(groups=2), "of 8 channels per group'.*of 4 channels"),
        (lambda modules: branch_of(modules)[1].fields.update(eps=1e-3), "batch norm with epsilon 0.001"),
        (lambda modules: branch_of(modules)[3].fields.update(padW=0, padH=0), "padding 0"),
        (lambda modules: modules[3].fields.update(ceil_mode=True), "rounding up"),
        (lambda modules: modules.pop(2), "step 3 is 'max pool 3x3 stride 2' .* and 'relu' in tiny_resnext"),
        (lambda modules: block_of(modules).pop(), "'relu' in tiny_resnext"),
        (lambda modules: modules.append(Obj("nn.LogSoftMax")), "has a LogSoftMax"),
        (lambda modules: modules.append(Obj("nn.ReLU")), "'relu' .*and 'nothing more' in tiny_resnext"),
        (lambda modules: modules.pop(), "is nothing more there, and 'linear'"),
        (lambda modules: modules[0].fields.update(bias=np.ones(8, np.float32)), "1.bias: the file has float32"),
        (lambda modules: modules[1].fields.pop("running_var"), r"2.running_var: tiny_resnext wants \(8,\).*lacks it"),
        (lambda modules: modules[0].fields.update(weight=np.zeros((8, 3, 7, 7))), "float64.*would round"),
        (lambda modules: modules.insert(4, Obj("nn.Sequential", modules=[None])), "holds NoneType at module 5.1"),
    ],
)
def test_another_network_is_refused(tmp_path, capsys, change, problem):
    file, out = write(tmp_path / "net.t7", changed(change)), tmp_path / "out"
    assert main(["torch7", file, "--model=tiny_resnext", f"--out={out}"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("error: ")
    with pytest.raises(UserError, match=problem):
        raise UserError(message)
    assert not out.exists()


def test_a_bias_of_zeros_is_none(tmp_path):
    network = changed(lambda modules: modules[0].fields.update(bias=np.zeros(8, np.float32)))
    file = write(tmp_path / "net.t7", network)
    assert main(["torch7", file, "--model=tiny_resnext", f"--out={tmp_path / 'out'}"]) == 0


def shared(levels, fanout=2):
    """An empty module that a network holds fanout ** levels times, in a few bytes."""
    module = Obj("nn.Identity")
    for _ in range(levels):
        module = Obj("nn.Sequential", modules=[module] * fanout)
    return module


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (shared(40), "more than 100,000 modules"),
        (shared(2, 1000), "more than 100,000 modules"),
        (Obj("nn.Sequential", modules="text"), "is nothing more there"),
        (Obj("nn.Sequential", modules=np.ones(3, np.float32)), "is nothing more there"),
        (Obj("nn.SpatialConvolution", kW=shared(40), kH=shared(40), nInputPlane="3"), r"\(Module, Module\)"),
        (Obj("nn.SpatialBatchNormalization", eps=np.ones(2)), "epsilon ndarray"),
        (Obj("nn.SpatialMaxPooling", ceil_mode=np.ones(2)), "max pool"),
        (Obj("nn.SpatialConvolution", kW=float("nan"), kH=float("inf"), weight=np.ones((2, 2))), "conv"),
        (Obj("nn." + 10_000 * "x"), "has a x+ .module"),
    ],
)
def test_hostile_networks(tmp_path, network, problem):
    with pytest.raises(UserError, match=problem) as error:
        convert("torch7", write(tmp_path / "net.t7", network), "tiny_resnext", str(tmp_path / "out"))
    assert len(str(error.value)) < 1000


def test_a_network_that_holds_itself(tmp_path):
    network = Obj("nn.Sequential", modules=[])
    network.fields["modules"] += [network, network]
    with pytest.raises(UserError, match="lie more than 100 within one another"):
        convert("torch7", write(tmp_path / "net.t7", network), "tiny_resnext", str(tmp_path / "out"))


@pytest.mark.parametrize("value", [{"model": 1}, "text", None])
def test_no_network_at_all(tmp_path, capsys, value):
    file = write(tmp_path / "x.t7", value)
    assert main(["torch7", file, "--model=tiny_resnext", f"--out={tmp_path / 'out'}"]) == 2
    assert "where a network of Torch7 (nn.Sequential) is due" in capsys.readouterr().err
