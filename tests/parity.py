"""Our networks beside PyTorch's with the same weights: logits, every stage's features, gradients, running statistics.

    PYTHONPATH=. python tests/parity.py [NAME ...] [--image_size_px=224] [--batch=2] [--forward]

prints the largest errors of rows of the zoo that torchvision has too, by default of all of them, and beside them those
of PyTorch's own float32; with --forward without gradients, whose programs take minutes to compile.
"""

import argparse
import contextlib
import copy
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from unittest import mock

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_reference
from torch import nn
from torch.nn import functional

from resnext_jax.models import zoo
from resnext_jax.models.densenet import DenseNetArch
from resnext_jax.models.vgg import VggArch
from resnext_jax.ops.conv_choice import resolver

Tree = dict[str, Any]


@contextlib.contextmanager
def smooth_relu() -> Iterator[None]:
    """Softplus in the place of every ReLU, ours and Torch's.

    Where rounding takes the input of a ReLU to the other side of 0, a whole term drops out of a gradient's sum, in any
    float32 program. Without the corner, what is left of a difference is a mistake.
    """
    with (
        mock.patch.object(flax.linen, "relu", lambda x: jnp.logaddexp(x, jnp.zeros((), x.dtype))),
        mock.patch.object(functional, "relu", lambda x, inplace=False: functional.softplus(x)),
    ):
        yield


@dataclasses.dataclass(frozen=True)
class Theirs:
    """A network of PyTorch, and how it names what is ours.

    Attributes:
      network: in float32.
      name_of: the path of our array -> its name.
      stages: our stage -> the module that puts it out.
      classifier: the module.
    """

    network: nn.Module
    name_of: Callable[[tuple], str]
    stages: Mapping[str, str]
    classifier: str

    def variables(self, model: zoo.Network, images: np.ndarray) -> Tree:
        """Its arrays as variables of ours."""
        shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.asarray(images))
        return torch_reference.from_torch(self.network.state_dict(), shapes, self.name_of)

    def run(self, variables: Tree, images: np.ndarray, weights: np.ndarray, train: bool, dtype: torch.dtype) -> Tree:
        """Logits, features, gradients of sum(logits * weights), and running statistics after, in our layout."""
        network = copy.deepcopy(self.network).to(dtype).train(train)
        features: dict[str, torch.Tensor] = {}

        def keep(module: nn.Module, args: tuple, out: torch.Tensor, ours: str) -> None:
            features[ours] = out.detach().clone()

        for ours, module in self.stages.items():
            network.get_submodule(module).register_forward_hook(partial(keep, ours=ours))
        network.get_submodule(self.classifier).register_forward_pre_hook(
            lambda module, args: features.update(pooled=args[0].detach())
        )
        logits = network(torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2))
        (logits * torch.from_numpy(weights)).sum().backward()
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), variables)
        arrays = {name: array.grad for name, array in network.named_parameters() if array.grad is not None}
        arrays |= {name: array for name, array in network.named_buffers() if "running" in name}
        return {
            "logits": logits.detach().numpy(),
            "features": {name: feature.movedim(1, -1).numpy() for name, feature in features.items()},
            "arrays": torch_reference.from_torch(arrays, shapes, self.name_of),
        }


def ours_run(model: zoo.Network, variables: Tree, images: np.ndarray, weights: np.ndarray, train: bool) -> Tree:
    """The same of ours: gradients stand in the place of parameters, statistics in their own."""

    def loss_fn(params: Tree, rest: Tree, images: jax.Array) -> tuple:
        (logits, features), updated = model.apply(
            {"params": params, **rest}, images, train=train, features=True, mutable=["batch_stats"]
        )
        return (logits * weights).sum(), (logits, features, updated)

    rest = {key: variables[key] for key in variables if key != "params"}
    differentiate = jax.jit(jax.grad(loss_fn, has_aux=True))
    gradients, (logits, features, updated) = differentiate(variables["params"], rest, images)
    return {"logits": logits, "features": features, "arrays": {"params": gradients, **updated}}


def ours_forward(model: zoo.Network, variables: Tree, images: np.ndarray, train: bool) -> Tree:
    """Ours without gradients."""
    apply = jax.jit(partial(model.apply, train=train, features=True, mutable=["batch_stats"]))
    (logits, features), updated = apply(variables, images)
    return {"logits": logits, "features": features, "arrays": updated}


def relative(got: Any, want: np.ndarray, scale: float = 0.0) -> float:
    """The largest error in units of the largest value, or of `scale` where that is larger."""
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), scale))


def differences(got: Tree, want: Tree) -> dict[str, float]:
    """The largest relative errors of logits and features, and of the worst gradient and running statistic."""
    result = {"logits": relative(got["logits"], want["logits"])}
    assert want["features"].keys() >= got["features"].keys() - {"stage1"}  # which not every network has by itself
    result |= {name: relative(got["features"][name], feature) for name, feature in want["features"].items()}
    for kind, tree in got["arrays"].items():
        found, modules = {}, {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(want["arrays"][kind]):
            modules.setdefault(path[:-1], {})[path[-1].key] = leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            wanted = modules[path[:-1]]
            # In units of its module: a batch norm takes away what a bias or a scale before it does, and its gradient is
            # noise beside that of the kernel or the other one.
            scale = max(float(np.abs(array).max()) for array in wanted.values()) if kind == "params" else 0.0
            found[jax.tree_util.keystr(path)] = relative(leaf, wanted[path[-1].key], scale)
        worst = max(found, key=found.__getitem__)
        result[f"{ {'params': 'gradients', 'batch_stats': 'statistics'}[kind] } {worst}"] = found[worst]
    return result


def errors(theirs: Theirs, model: zoo.Network, images: np.ndarray, *, train: bool) -> dict[str, float]:
    """Ours against PyTorch in float64."""
    variables, weights = theirs.variables(model, images), weights_of(model, images)
    want = theirs.run(variables, images, weights, train, torch.float64)
    return differences(ours_run(model, variables, images, weights, train), want)


def weights_of(model: zoo.Network, images: np.ndarray) -> np.ndarray:
    """Of the sum of logits that is differentiated."""
    return np.random.default_rng(2).normal(size=(len(images), model.num_classes)).astype(np.float32)


def randomize(network: nn.Module) -> nn.Module:
    """Weights stay as they were drawn; batch norms and biases become such that none can hide."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
        if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
            bias.data.uniform_(-0.5, 0.5, generator=generator)
    return network


def of_torchvision(arch: zoo.Row, network: nn.Module) -> Theirs:
    """A network of torchvision, its dropout off."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if isinstance(arch, VggArch):
        pools = [
            i
            for i, module in enumerate(network.get_submodule("features").children())
            if isinstance(module, nn.MaxPool2d)
        ]
        return Theirs(
            network, vgg_name(arch), {f"stage{n}": f"features.{i}" for n, i in enumerate(pools, 1)}, "classifier.6"
        )
    if isinstance(arch, DenseNetArch):
        stages = {f"stage{n + 1}": f"features.denseblock{n}" for n in range(1, len(arch.layers) + 1)}
        return Theirs(network, densenet_name, {"stage1": "features.relu0"} | stages, "classifier")
    stages = {f"stage{n + 1}": f"layer{n}" for n in range(1, len(arch.blocks) + 1)}
    return Theirs(network, torch_reference.torch_name, {"stage1": "relu"} | stages, "fc")


def vgg_name(arch: VggArch) -> Callable[[tuple], str]:
    """stage2/conv1/kernel -> features.3.weight: convolutions, batch norms, ReLUs and pools are numbered through."""
    places, index = {"hidden1": "classifier.0", "hidden2": "classifier.3", "classifier": "classifier.6"}, 0
    for stage, convs in enumerate(arch.convs, start=1):
        for number in range(1, convs + 1):
            places[f"stage{stage}/conv{number}"] = f"features.{index}"
            places[f"stage{stage}/bn{number}"] = f"features.{index + 1}"
            index += 3 if arch.batch_norm else 2
        index += 1

    def name_of(path: tuple) -> str:
        *modules, array = (entry.key for entry in path)
        return f"{places['/'.join(modules)]}.{torch_reference.ARRAYS[array]}"

    return name_of


DENSENET_PLACES = {
    r"stem_conv": "features.conv0",
    r"stem_bn": "features.norm0",
    r"final_bn": "features.norm5",
    r"classifier": "classifier",
    r"stage(\d+)/transition/bn1": "features.transition{}.norm",
    r"stage(\d+)/transition/conv1": "features.transition{}.conv",
    r"stage(\d+)/layer(\d+)/bn(\d)": "features.denseblock{}.denselayer{}.norm{}",
    r"stage(\d+)/layer(\d+)/conv(\d)": "features.denseblock{}.denselayer{}.conv{}",
}


def densenet_name(path: tuple) -> str:
    """stage3/layer2/bn1/scale -> features.denseblock2.denselayer2.norm1.weight."""
    *modules, array = (entry.key for entry in path)
    for pattern, place in DENSENET_PLACES.items():
        if found := re.fullmatch(pattern, "/".join(modules)):
            numbers = list(map(int, found.groups()))
            before = (
                2 if "transition" in pattern else 1
            )  # ours is the first of its stage, theirs the last of the one before
            place = place.format(*(numbers[:1] and [numbers[0] - before]), *numbers[1:])
            return f"{place}.{torch_reference.ARRAYS[array]}"
    raise KeyError(modules)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--image_size_px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--forward", action="store_true")
    arguments = parser.parse_args()
    operators = torch.library.Library("torchvision", "FRAGMENT")  # as in conftest
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    size = (arguments.batch, arguments.image_size_px, arguments.image_size_px, 3)
    images = np.random.default_rng(1).normal(size=size).astype(np.float32)
    for name in arguments.names or [name for name in torchvision.models.list_models() if name in zoo.ARCHS]:
        start = time.monotonic()
        arch = zoo.select(name, dropout=0.0) if isinstance(zoo.ARCHS[name], VggArch) else zoo.ARCHS[name]
        model = zoo.NETWORKS[type(arch)](arch, 1000, resolver("auto", "cpu"), 0)
        torch.manual_seed(0)
        theirs = of_torchvision(arch, randomize(torchvision.models.get_model(name, weights=None)))
        variables, weights = theirs.variables(model, images), weights_of(model, images)
        modes = [("evaluate", False, False), ("train", True, False)]
        for label, train, smooth in modes + ([] if arguments.forward else [("train, smooth", True, True)]):
            with smooth_relu() if smooth else contextlib.nullcontext():
                want = theirs.run(variables, images, weights, train, torch.float64)
                own = theirs.run(variables, images, weights, train, torch.float32)
                compute = ours_forward if arguments.forward else partial(ours_run, weights=weights)
                found = differences(compute(model, variables, images, train=train), want)
                torch_found = differences(own, want)
            print(
                f"{name} {arguments.image_size_px} px, {label}: {summary(found)} (PyTorch: {summary(torch_found)})",
                flush=True,
            )
        print(f"  {time.monotonic() - start:.0f} s", flush=True)


def summary(found: dict[str, float]) -> str:
    """One line."""
    features = max(error for key, error in found.items() if re.fullmatch(r"stage\d|pooled", key))
    gradients = [f", gradients {error:.1e}" for key, error in found.items() if key.startswith("gradients")]
    return f"logits {found['logits']:.1e}, features {features:.1e}{''.join(gradients)}"


if __name__ == "__main__":
    main()
