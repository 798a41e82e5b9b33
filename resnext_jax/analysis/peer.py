"""PyTorch as the peer: torchvision's network in the layout and precision in which PyTorch is fastest."""

import gc
import importlib
import importlib.util
import os
import pathlib
import shutil
import sysconfig
from types import ModuleType
from typing import Any

from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.analysis.timing import Contender
from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.models.arch import Arch
from resnext_jax.types import Batch

DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # JAX's platforms, PyTorch's names


def import_torch(platform: str) -> tuple[ModuleType, ModuleType]:
    """Return PyTorch and torchvision; raise UserError if one is missing or cannot use the device."""
    if platform not in DEVICES:
        raise UserError(f"PyTorch has no {platform.upper()} backend to compare with; leave it out: --peer=none")
    missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the peer needs {' and '.join(missing)}: pip install torch torchvision, or leave the peer out: --peer=none"
        )
    torch: Any = importlib.import_module("torch")
    if platform == "gpu":
        _check_gpu(torch)
    try:
        torchvision = importlib.import_module("torchvision")
    except RuntimeError:
        # A build for another torch lacks its compiled operators. None is used here, but the import looks these up.
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision = importlib.import_module("torchvision")
        torchvision.declared_operators = operators  # pyright: ignore # they vanish with this object
    return torch, torchvision


def _check_gpu(torch: Any) -> None:
    """Raise UserError where PyTorch cannot use the GPU or cannot compile for it."""
    leave_out = "or leave the peer out: --peer=none"
    header = pathlib.Path(sysconfig.get_path("include"), "Python.h")
    if not torch.cuda.is_available():
        raise UserError(
            f"JAX has a GPU, but PyTorch {torch.__version__} cannot use it: install a build for CUDA "
            f"(pip install --force-reinstall torch torchvision), {leave_out}"
        )
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise UserError(f"torch.compile needs a C compiler: sudo apt install gcc, {leave_out}")
    if not header.is_file():
        raise UserError(
            f"torch.compile needs the headers of Python, and {header} does not exist: sudo apt install python3-dev, "
            f"{leave_out}"
        )


def peer_network(arch: zoo.Row, in_channels: int, num_classes: int, platform: str) -> Any:
    """Return the network of a row, built from torchvision's blocks; raise UserError if they cannot make it."""
    torch, torchvision = import_torch(platform)
    if not isinstance(arch, Arch) or arch.preactivation or arch.widen > 1 or arch.dropout:
        raise UserError("the peer is for ResNets and ResNeXts with batch norm after the convolutions: --peer=none")
    if not arch.shortcut:
        raise UserError("torchvision has no blocks without shortcuts (model.shortcut=False): --peer=none")
    nn, basic = torch.nn, arch.block == "basic"
    block: Any = torchvision.models.resnet.BasicBlock if basic else torchvision.models.resnet.Bottleneck
    # torchvision's blocks give the width of a path per 64 channels.
    paths = {} if basic else {"groups": arch.cardinality, "base_width": arch.bottleneck_width * 64 / arch.width}
    stem, channels = arch.stem, arch.width
    layers = [nn.Conv2d(in_channels, channels, stem.kernel_px, stem.stride, stem.kernel_px // 2, bias=False)]
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, 2, 1)] if stem.pool else []
    for index, count in enumerate(arch.blocks):
        planes = arch.width * 2**index
        for number in range(count):
            stride, out_channels = 2 if index and not number else 1, planes * block.expansion
            shortcut = None
            if stride != 1 or channels != out_channels:
                projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
                shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))
            layers.append(block(channels, planes, stride, shortcut, **paths))
            channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, num_classes))


def torch_peer(config: Any, platform: str, batch: Batch) -> tuple[Contender, str]:
    """Return PyTorch's steps for the same batch, and a line about how they run."""
    torch, torchvision = import_torch(platform)
    gpu, bfloat16 = platform == "gpu", config.compute_dtype == "bfloat16"
    device = torch.device(DEVICES[platform])
    num_classes = dataset_info(config.data.name).num_classes
    network = peer_network(zoo.select(**config.model), batch.image.shape[3], num_classes, platform)
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if gpu:
        torch.backends.cudnn.benchmark = True
        # float32 means float32, as for ours (`ops.conv_products.precision`): no TF32.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        network = torch.compile(network)
    images = torch.from_numpy(batch.image).permute(0, 3, 1, 2).to(device, torch.float32) / 255 - 0.5
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(batch.label).long().to(device)
    loss_fn = torch.nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

    def train() -> Any:
        network.train()
        with autocast():
            loss = loss_fn(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def inference() -> Any:
        network.eval()
        with torch.inference_mode(), autocast():
            return network(images)

    how = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, channels-last, "
    how += f"{'bfloat16 autocast' if bfloat16 else 'float32'}{', torch.compile' if gpu else ''}"
    # PyTorch compiles a second time, when gradients exist already.
    contender = Contender(
        {"train": train, "inference": inference},
        wait=lambda _: torch.cuda.synchronize() if gpu else None,
        num_compiles=2,
    )
    return contender, how


def release_torch(platform: str) -> None:
    """Free the memory and drop the compiled programs of networks that no longer exist."""
    torch, _ = import_torch(platform)
    gc.collect()
    torch.compiler.reset()
    if platform == "gpu":
        torch.cuda.empty_cache()
