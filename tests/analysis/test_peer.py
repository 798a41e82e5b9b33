"""The peer is torchvision's network."""

import sys
import sysconfig

import jax
import pytest
import tiny

from resnext_jax.analysis import peer, timing
from resnext_jax.errors import UserError
from resnext_jax.models import zoo


def test_no_peer_on_a_tpu():
    with pytest.raises(UserError, match="--peer=none"):
        peer.import_torch("tpu")


@pytest.fixture
def gpu(torchvision, monkeypatch):
    """A CPU stands in for the GPU; returns PyTorch."""
    torch = sys.modules["torch"]
    monkeypatch.setattr(peer, "import_torch", lambda platform: (torch, torchvision))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setitem(peer.DEVICES, "gpu", "cpu")
    for name in ("benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))  # undone afterwards
    yield torch
    torch.set_float32_matmul_precision("highest")


def test_float32_on_a_gpu_is_no_tf32_for_either(gpu, monkeypatch):
    """Ours multiplies float32 as float32 (`ops.conv_products.precision`); PyTorch's convolutions by default do not."""
    monkeypatch.setattr(gpu, "compile", lambda network: network)
    gpu.set_float32_matmul_precision("high")
    peer.torch_peer(tiny.config("--config.batch_size=4"), "gpu", timing.synthetic_batch(4, (28, 28, 1), 10))
    assert gpu.get_float32_matmul_precision() == "highest"
    assert not gpu.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_on_a_gpu_all_is_compiled_in_bfloat16_channels_last(gpu, monkeypatch):
    """The graph is captured as for a GPU, but no code is generated."""
    torch = gpu
    compile_, compiled = torch.compile, []

    def compile_whole(network):
        compiled.append(network)
        return compile_(network, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compile_whole)
    config = tiny.config("--config.batch_size=4")
    config.compute_dtype = "bfloat16"
    contender, how = peer.torch_peer(config, "gpu", timing.synthetic_batch(4, (28, 28, 1), 10))
    assert "bfloat16 autocast, torch.compile" in how
    weights = [weight.detach().clone() for weight in compiled[0].parameters()]
    loss = contender.steps["train"]()
    contender.wait(loss)
    assert torch.isfinite(loss)
    assert not any(torch.equal(*pair) for pair in zip(weights, compiled[0].parameters(), strict=True))
    logits = contender.steps["inference"]()
    assert (logits.dtype, tuple(logits.shape)) == (torch.bfloat16, (4, 10))
    conv = next(m for m in compiled[0].modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.compiler.reset()


def test_a_gpu_without_a_c_compiler(torchvision, monkeypatch):
    monkeypatch.setattr(sys.modules["torch"].cuda, "is_available", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"torch\.compile needs a C compiler"):
        peer.import_torch("gpu")


def test_a_gpu_without_the_headers_of_python(torchvision, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["torch"].cuda, "is_available", lambda: True)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"Python\.h.*python3-dev"):
        peer.import_torch("gpu")
    (tmp_path / "Python.h").touch()
    assert peer.import_torch("gpu")[1] is torchvision


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "resnext101_64x4d"])
def test_the_peer_is_torchvisions_network(name, torchvision):
    torch = sys.modules["torch"]
    with torch.device("meta"):
        ours = peer.peer_network(zoo.ARCHS[name], 3, 1000, "cpu")
        true = torchvision.models.get_model(name)
    shapes = [[tuple(array.shape) for array in network.state_dict().values()] for network in (ours, true)]
    assert shapes[0] == shapes[1]
    convs = [[m for m in network.modules() if isinstance(m, torch.nn.Conv2d)] for network in (ours, true)]
    assert [(c.stride, c.padding, c.groups) for c in convs[0]] == [(c.stride, c.padding, c.groups) for c in convs[1]]


@pytest.mark.parametrize("name", ["resnet200", "wrn28_10", "vgg11", "densenet121", "plain34"])
def test_networks_without_a_peer_are_refused(name):
    with pytest.raises(UserError, match="--peer=none"):
        peer.peer_network(zoo.ARCHS[name], 3, 10, "cpu")


@pytest.mark.parametrize("name", ["resnext20_8x4d_small", "resnext29_8x64d", "resnext101_8x14d"])
@pytest.mark.slow
def test_the_peer_of_other_networks_has_as_many_parameters(name, torchvision):
    model = tiny.cpu_model(zoo.ARCHS[name], 10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
    with sys.modules["torch"].device("meta"):
        network = peer.peer_network(zoo.ARCHS[name], 3, 10, "cpu")
    assert sum(p.numel() for p in network.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
