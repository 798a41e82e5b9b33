"""Pre-activated ResNets, Wide ResNets and DenseNet-BC in plain PyTorch, from their papers, not from resnext_jax.

Parameters bear torchvision's names where torchvision has such a network.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional


def conv(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_px, stride, kernel_px // 2, groups=groups, bias=False)


class PreactivatedBlock(nn.Module):
    """Batch norm, ReLU, convolution, as often as there are convolutions; then the addition, and nothing more.

    `kind` says what the shortcut reads: "plain" the input, "shared" the first ReLU, through a 1x1 convolution; "none"
    is a block without a first batch norm and ReLU, with a 1x1 convolution where the channels change.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], stride: int, kind: str, shortcut: bool = True):
        super().__init__()
        self.kind, self.depth, self.shortcut = kind, len(convs), shortcut
        self.drop: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
        for number, module in enumerate(convs, start=1):
            if number > 1 or kind != "none":
                self.add_module(f"bn{number}", nn.BatchNorm2d(module.in_channels))
            self.add_module(f"conv{number}", module)
        first, last = convs[0].in_channels, convs[-1].out_channels
        self.downsample = None
        if shortcut and (kind == "shared" or first != last):
            self.downsample = nn.Sequential(conv(first, last, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        opened = x if self.kind == "none" else functional.relu(self.get_submodule("bn1")(x))
        y = self.get_submodule("conv1")(opened)
        for number in range(2, self.depth + 1):
            y = functional.relu(getattr(self, f"bn{number}")(y))
            y = getattr(self, f"conv{number}")(self.drop(y) if number == 2 else y)
        if not self.shortcut:
            return y
        return y + (x if self.downsample is None else self.downsample(opened))


class PreactivatedResNet(nn.Module):
    """For ImageNet: 7x7, batch norm, ReLU, max-pool; the very first block has no pre-activation of its own."""

    def __init__(self, block: str, blocks: Sequence[int], width: int, groups: int = 1, group_width: int = 0):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU()
        channels, self.stages = width, [f"layer{number}" for number in range(1, len(blocks) + 1)]
        for stage, count in enumerate(blocks):
            layer = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                kind = "plain" if number else "shared" if stage else "none"
                if block == "basic":
                    out = width * 2**stage
                    convs = [conv(channels, out, 3, stride), conv(out, out, 3)]
                else:
                    out, inner = 4 * width * 2**stage, groups * group_width * 2**stage
                    convs = [conv(channels, inner, 1), conv(inner, inner, 3, stride, groups), conv(inner, out, 1)]
                layer.append(PreactivatedBlock(convs, stride, kind))
                channels = out
            self.add_module(self.stages[stage], nn.Sequential(*layer))
        self.final_bn, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(functional.relu(self.final_bn(x)).mean((2, 3)))


class WideResNet(nn.Module):
    """WRN-d-k: a 3x3 without anything, then blocks that all begin with a batch norm."""

    def __init__(self, depth: int, widen: int, width: int = 16, num_classes: int = 10):
        super().__init__()
        self.conv1, channels = conv(3, width, 3), width
        for stage in range(3):
            layer = []
            for number in range((depth - 4) // 6):
                stride, out = 2 if stage and not number else 1, width * widen * 2**stage
                kind = "plain" if channels == out else "shared"
                layer.append(PreactivatedBlock([conv(channels, out, 3, stride), conv(out, out, 3)], stride, kind))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.final_bn, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(functional.relu(self.final_bn(x)).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), conv(4 * growth, growth, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


class Transition(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), conv(channels, channels // 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(x))), 2)


class DenseNetBC(nn.Module):
    """L layers and growth k: three blocks of (L - 4) / 6 bottleneck layers, compression 1/2, a stem of 2k channels."""

    def __init__(self, depth: int, growth: int, num_classes: int = 10):
        super().__init__()
        channels, self.features = 2 * growth, nn.Sequential()
        self.features.add_module("conv0", conv(3, channels, 3))
        for block in (1, 2, 3):
            layers = nn.Sequential()
            for number in range(1, (depth - 4) // 6 + 1):
                layers.add_module(f"denselayer{number}", DenseLayer(channels, growth))
                channels += growth
            self.features.add_module(f"denseblock{block}", layers)
            if block < 3:
                self.features.add_module(f"transition{block}", Transition(channels))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(functional.relu(self.features(x)).mean((2, 3)))
