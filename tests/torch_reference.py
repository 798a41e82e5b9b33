"""The networks and the training recipe once more, in plain PyTorch: written from the paper, not from resnext_jax.

Parameters bear torchvision's names, so that one map of names serves this reference and torchvision's networks.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional


class GroupedBatchNorm(nn.BatchNorm2d):
    """Batch norm over `group_images` consecutive images (0: all); running statistics average those of the groups."""

    group_images = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        outputs, means, variances = [], [], []
        for images in x.split(self.group_images or len(x)):
            # With momentum 1 Torch leaves the group's own mean and unbiased variance in the running buffers.
            mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            outputs.append(functional.batch_norm(images, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            means.append(mean)
            variances.append(variance)
        with torch.no_grad():
            self.running_mean.lerp_(torch.stack(means).mean(0), 0.1)
            self.running_var.lerp_(torch.stack(variances).mean(0), 0.1)
        return torch.cat(outputs)


class Block(nn.Module):
    """conv-BN-ReLU as often as `convs` says, the last ReLU after the shortcut is added."""

    def __init__(self, convs: Sequence[nn.Conv2d], stride: int, shortcut: bool):
        super().__init__()
        self.depth, self.shortcut = len(convs), shortcut
        for number, conv in enumerate(convs, start=1):
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", GroupedBatchNorm(conv.out_channels))
        in_channels, out_channels = convs[0].in_channels, convs[-1].out_channels
        self.downsample = None
        if shortcut and (stride != 1 or in_channels != out_channels):
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), GroupedBatchNorm(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for number in range(1, self.depth + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.depth:
                y = functional.relu(y)
        if self.shortcut:
            y = y + (x if self.downsample is None else self.downsample(x))
        return functional.relu(y)


class Network(nn.Module):
    """A ResNet or ResNeXt from its numbers.

    Args:
      block: "basic" or "bottleneck".
      blocks: of each stage.
      cardinality, bottleneck_width: C and d, of a bottleneck.
      stem: (kernel_px, stride, whether a max-pool follows).
      width: channels of the stem.
      shortcut: False for the paper's ablation.
      in_channels, num_classes: of the data.
      group_images: per batch-norm group.
    """

    def __init__(
        self,
        *,
        block: str,
        blocks: Sequence[int],
        cardinality: int = 1,
        bottleneck_width: int = 64,
        stem: tuple[int, int, bool] = (7, 2, True),
        width: int = 64,
        shortcut: bool = True,
        in_channels: int = 3,
        num_classes: int = 1000,
        group_images: int = 0,
    ):
        super().__init__()
        kernel_px, stride, self.pool = stem
        self.conv1 = nn.Conv2d(in_channels, width, kernel_px, stride, kernel_px // 2, bias=False)
        self.bn1 = GroupedBatchNorm(width)
        channels, inner, stages = width, cardinality * bottleneck_width, []
        for stage, count in enumerate(blocks):
            layer = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                if block == "basic":
                    out = width * 2**stage
                    convs = [
                        nn.Conv2d(channels, out, 3, stride, 1, bias=False),
                        nn.Conv2d(out, out, 3, 1, 1, bias=False),
                    ]
                else:
                    out, d = 4 * width * 2**stage, inner * 2**stage
                    convs = [
                        nn.Conv2d(channels, d, 1, bias=False),
                        nn.Conv2d(d, d, 3, stride, 1, groups=cardinality, bias=False),
                        nn.Conv2d(d, out, 1, bias=False),
                    ]
                layer.append(Block(convs, stride, shortcut))
                channels = out
            stages.append(f"layer{stage + 1}")
            self.add_module(stages[-1], nn.Sequential(*layer))
        self.stages = stages
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, GroupedBatchNorm):
                module.group_images = group_images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        if self.pool:
            x = functional.max_pool2d(x, 3, 2, 1)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))


def train(
    network: Network,
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    learning_rate: float,
    milestones_steps: Sequence[int],
    momentum: float,
    weight_decay: float,
    label_smoothing: float,
    after_step: Callable[[int, torch.Tensor, torch.optim.Optimizer], None],
) -> None:
    """Torch's own SGD, schedule and loss over normalised NHWC images; `after_step(steps made, logits, optimizer)`."""
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum, 0, weight_decay, nesterov=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones_steps), 0.1)
    network.train()
    for step, (images, labels) in enumerate(batches, start=1):
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        loss = functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        after_step(step, logits.detach(), optimizer)


MODULES = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
    "classifier": "fc",
    "final_bn": "final_bn",
    **{name: name for name in ("conv1", "conv2", "conv3", "bn1", "bn2", "bn3")},
}
ARRAYS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple) -> str:
    """stage3/block2/conv2/kernel -> layer2.1.conv2.weight; a name that is in no table is an error."""
    *modules, array = (entry.key for entry in path)
    names = []
    for module in modules:
        numbered = re.fullmatch(r"(stage|block)(\d+)", module)
        if not numbered:
            names.append(MODULES[module])
        elif numbered[1] == "stage":
            names.append(f"layer{int(numbered[2]) - 1}")
        else:
            names.append(str(int(numbered[2]) - 1))
    return ".".join((*names, ARRAYS[array]))


def to_torch(*trees: dict) -> dict[str, np.ndarray]:
    """Every array of these trees under Torch's name and in its layout (OIHW, out x in), float64."""
    arrays = {}
    for path, leaf in (item for tree in trees for item in jax.tree_util.tree_leaves_with_path(tree)):
        name, array = torch_name(path), np.asarray(leaf, np.float64)
        assert name not in arrays, f"{name} stands for two arrays"
        arrays[name] = array.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])
    return arrays


def load(network: nn.Module, variables: Mapping[str, dict]) -> None:
    """Our variables into a network of Torch; both must have the same arrays, none more, none less."""
    arrays = to_torch(variables["params"], variables["batch_stats"])
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=True)


def from_torch(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, dict], name_of: Callable[[tuple], str] = torch_name
) -> dict:
    """A network's state as our variables of these shapes; every array must be used, and fit."""
    rest = {name: array.numpy() for name, array in state.items() if not name.endswith("num_batches_tracked")}

    def take(path, leaf):
        array = rest.pop(name_of(path))
        array = array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim])
        assert array.shape == leaf.shape, (path, array.shape, leaf.shape)
        return np.ascontiguousarray(array, leaf.dtype)

    variables = {key: jax.tree_util.tree_map_with_path(take, shapes[key]) for key in shapes}
    assert not rest, f"Torch has arrays that we have not: {sorted(rest)}"
    return variables
