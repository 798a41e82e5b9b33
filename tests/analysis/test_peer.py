"""The peer is torchvision's network."""

import sys

import jax
import pytest

from resnext_jax.analysis import peer
from resnext_jax.errors import UserError
from resnext_jax.models import zoo


def test_no_peer_on_a_tpu():
    with pytest.raises(UserError, match="--peer=none"):
        peer.import_torch("tpu")


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


@pytest.mark.parametrize("name", ["resnext20_8x4d_small", "resnext29_8x64d", "resnext101_8x14d"])
def test_the_peer_of_other_networks_has_as_many_parameters(name, torchvision):
    model = zoo.build_model(
        zoo.ARCHS[name], 10, platform="cpu", conv_impl="auto", compute_dtype="float32", bn_group_images=0
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
    with sys.modules["torch"].device("meta"):
        network = peer.peer_network(zoo.ARCHS[name], 3, 10, "cpu")
    assert sum(p.numel() for p in network.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
