"""Real timings on the device at hand: the training step and inference, beside PyTorch's in the same run.

python -m resnext_jax.analysis.bench --config=configs/resnext50_32x4d.py [--config.batch_size=N] [--peer=torch] [--json]

Ours is the very step that `train.loop` runs, from uint8 images, augmentation included. The peer is the network of
torchvision and starts from normalised images in its own layout. Neither has an input pipeline. One device.
"""

import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import app, flags

from resnext_jax import config_file, sharding
from resnext_jax.analysis.aot import CONV_IMPLS, dataset_info
from resnext_jax.errors import UserError, raise_all, report_error, unknown
from resnext_jax.models import zoo
from resnext_jax.models.template import Arch
from resnext_jax.train.assemble import assemble
from resnext_jax.types import Batch

PEERS = ("torch", "none")
TASKS = ("train", "inference")
REPEAT_S = 0.5  # a repeat has as many steps as fit into this, and one at least
CPU_PIXELS = 16 * 224 * 224  # a config's batch of 256 ImageNet images would take a CPU minutes and 40 GiB
BUSY = 1.0  # load average of the last minute
Step = Callable[[], Any]  # starts one step and returns what `Timed.wait` waits for

# ----------------------------------------------------------------------------------------------------------- Timing


def images_per_s(steps: dict[str, Step], wait: dict[str, Callable], batch_size: int, repeats: int) -> dict[str, list]:
    """Times the steps in turns, so that whatever else the machine does hits all of them alike.

    Args:
      steps: by name; each starts one step and returns its result.
      wait: by the same names; returns once a result of the step is there.
      batch_size: images of one step.
      repeats: turns.

    Returns:
      By name the images per second of every repeat.
    """
    num_steps = {}
    for name, step in steps.items():
        wait[name](step())  # compiles
        wait[name](step())  # torch compiles once more, for gradients that are there already
        start = time.perf_counter()
        wait[name](step())
        num_steps[name] = max(1, round(REPEAT_S / (time.perf_counter() - start)))
    rates: dict[str, list] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(num_steps[name] - 1):
                step()
            wait[name](step())
            rates[name].append(num_steps[name] * batch_size / (time.perf_counter() - start))
    return rates


def compare(rates: dict[str, list]) -> dict[str, Any]:
    """Medians, their ratio, and the slowest and the fastest repeat."""
    ours, peer = (statistics.median(rates[name]) if name in rates else None for name in ("ours", "peer"))
    ratio = None if ours is None or peer is None else ours / peer
    return {"ours": ours, "peer": peer, "ratio": ratio, "range": {name: [min(r), max(r)] for name, r in rates.items()}}


# ------------------------------------------------------------------------------------------------------------- Ours


def our_steps(config: Any, device: Any, batch: Batch) -> dict[str, Step]:
    """The steps of `train.assemble` on one device; training goes on from state to state."""
    place = sharding.Place(sharding.make_mesh([device]), device.platform)
    run = assemble(config, dataset_info(config.data.name), place)
    on_device = sharding.to_global(place.mesh, batch)
    state = run.create_state()

    def train() -> Any:
        nonlocal state
        state, metrics = run.train_step(state, on_device)
        return metrics

    def inference() -> Any:
        return run.evaluation_step({"params": state.params, "batch_stats": state.batch_stats}, on_device)

    return {"train": train, "inference": inference}


def synthetic_batch(batch_size: int, image_shape: tuple[int, int, int], num_classes: int) -> Batch:
    """Noise: what an image shows costs nothing."""
    rng = np.random.default_rng(0)
    return Batch(
        image=rng.integers(0, 256, (batch_size, *image_shape), np.uint8),
        label=rng.integers(0, num_classes, batch_size, np.int32),
        mask=np.ones(batch_size, np.float32),
    )


# --------------------------------------------------------------------------------------------------------- The peer


def import_torch(platform: str) -> tuple[ModuleType, ModuleType]:
    """PyTorch and torchvision, for this platform.

    Raises:
      UserError: one is missing, or cannot use the device.
    """
    if platform not in ("cpu", "gpu"):
        raise UserError(f"PyTorch has no {platform.upper()} backend to compare with; leave it out: --peer=none")
    missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the peer needs {' and '.join(missing)}: pip install torch torchvision, or leave the peer out: --peer=none"
        )
    torch: Any = importlib.import_module("torch")
    if platform == "gpu" and not torch.cuda.is_available():
        raise UserError(
            f"JAX has a GPU, but PyTorch {torch.__version__} cannot use it: install a build for CUDA "
            "(pip install --force-reinstall torch torchvision), or leave the peer out: --peer=none"
        )
    try:
        torchvision = importlib.import_module("torchvision")
    except RuntimeError:
        # Built for another torch it lacks its compiled operators: none is used, but importing it looks these up.
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision = importlib.import_module("torchvision")
        torchvision.declared_operators = operators  # pyright: ignore # they vanish with this object
    return torch, torchvision


def peer_network(arch: Arch, in_channels: int, num_classes: int, platform: str) -> Any:
    """The network of torchvision for an `Arch`, or for one that it has not, the same template of its blocks.

    Raises:
      UserError: an `Arch` that its blocks cannot make.
    """
    torch, torchvision = import_torch(platform)
    if not arch.shortcut:
        raise UserError("torchvision has no blocks without shortcuts (model.shortcut=False): --peer=none")
    nn, basic = torch.nn, arch.block == "basic"
    block: Any = torchvision.models.resnet.BasicBlock if basic else torchvision.models.resnet.Bottleneck
    # Its blocks count the width of a path for 64 channels.
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


def peer_steps(config: Any, platform: str, batch: Batch) -> tuple[dict[str, Step], Callable, str]:
    """PyTorch's steps for the same batch, what waits for them, and a line about how they run."""
    torch, torchvision = import_torch(platform)
    gpu, bfloat16 = platform == "gpu", config.compute_dtype == "bfloat16"
    device = torch.device("cuda" if gpu else "cpu")
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
        torch.set_float32_matmul_precision("high")  # TF32, as JAX multiplies by default
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
    return {"train": train, "inference": inference}, lambda _: torch.cuda.synchronize() if gpu else None, how


# ------------------------------------------------------------------------------------------------------ The command


def fit(config: Any, platform: str, peer: str, given: set[str]) -> list[str]:
    """Changes what cannot be compared on this device as the config has it, and says so.

    Args:
      config: changed in place.
      platform: of the device.
      peer: one of `PEERS`.
      given: the fields that the command line sets; they are never changed.

    Raises:
      UserError: one that is given stands in the way.
    """
    notes = []
    if platform == "cpu" and peer != "none" and config.compute_dtype != "float32":
        if "compute_dtype" in given:
            raise UserError(
                f"compute_dtype={config.compute_dtype}: on a CPU the peer computes in float32. Take "
                "--config.compute_dtype=float32 to compare, or leave the peer out: --peer=none"
            )
        notes.append(f"float32, as the peer, and not the config's {config.compute_dtype}")
        config.compute_dtype = "float32"
    fitting = max(1, CPU_PIXELS // config.data.image_size_px**2)
    if platform == "cpu" and config.batch_size > fitting and "batch_size" not in given:
        notes.append(f"batch {fitting}, not the config's {config.batch_size}: this is a CPU (--config.batch_size=N)")
        config.batch_size = fitting
    if config.batch_size < config.bn_group_images and "bn_group_images" not in given:
        notes.append("batch-norm statistics over the whole batch, which is smaller than the config's groups")
        config.bn_group_images = 0
    config.evaluate.batch_size = config.batch_size
    busy = os.getloadavg()[0]
    if platform == "cpu" and busy > BUSY:
        notes.append(f"this machine is busy, load {busy:.1f}: other work slows PyTorch's threads more than ours")
    return notes


def show(task: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [f"  {task:10}"]
    for name, (low, high) in result["range"].items():
        cells.append(f"{result[name]:9.1f} {f'({low:.1f} to {high:.1f})':20}")
    return "".join(cells) + ("" if result["ratio"] is None else f"{result['ratio']:8.3f}")


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    config_file.define_config(to)
    flags.declare_key_flag("config", flag_values=to)  # --help shows the flags of this module
    flags.DEFINE_string("peer", "torch", f"Whom to compare with: {', '.join(PEERS)}.", flag_values=to)
    allowed = ", ".join(CONV_IMPLS)
    flags.DEFINE_string("conv_impl", None, f"Takes the place of the config's: {allowed}.", flag_values=to)
    flags.DEFINE_integer("repeats", 7, "Timings of each; the median counts.", lower_bound=1, flag_values=to)
    flags.DEFINE_bool("json", False, "Print one JSON object as the last line.", flag_values=to)
    return to


def run(flag_values: flags.FlagValues, given: set[str]) -> None:
    """Times what the flags ask for and prints it."""
    config, peer = flag_values.config, flag_values.peer
    if config is None:
        raise UserError("timing wants a config: python -m resnext_jax.analysis.bench --config=configs/NAME.py")
    config.conv_impl = flag_values.conv_impl or config.conv_impl
    problems = [unknown("conv_impl", config.conv_impl, CONV_IMPLS)] if config.conv_impl not in CONV_IMPLS else []
    raise_all(problems + ([unknown("peer", peer, PEERS)] if peer not in PEERS else []))
    device = jax.devices()[0]
    notes = fit(config, device.platform, peer, given)
    if peer == "torch":
        import_torch(device.platform)  # what it lacks should not come up after our compile
    size_px = config.data.image_size_px
    num_classes = dataset_info(config.data.name).num_classes
    batch = synthetic_batch(config.batch_size, (size_px, size_px, len(config.data.mean)), num_classes)

    steps, wait, how = {"ours": our_steps(config, device, batch)}, {"ours": jax.block_until_ready}, "none"
    if peer == "torch":
        steps["peer"], wait["peer"], how = peer_steps(config, device.platform, batch)
    kind = f"CPU, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    config_flag: Any = flag_values["config"]
    print(f"{config_flag.config_filename} on {kind}: batch {config.batch_size}, {size_px} px")
    print("".join(f"  ({note})\n" for note in notes), end="")
    print(f"  ours: JAX {jax.__version__}, {config.compute_dtype}, conv_impl={config.conv_impl}\n  peer: {how}")
    print("  images per second, median of the repeats (slowest to fastest)")
    print(f"  {'':10}{'ours':>9} {'':20}" + (f"{'peer':>9} {'':20}{'ours / peer':>8}" if peer != "none" else ""))
    about = {"config": config_flag.config_filename, "batch_size": config.batch_size, "image_size_px": size_px}
    about |= {"compute_dtype": config.compute_dtype, "conv_impl": config.conv_impl, "peer": how}
    result: dict[str, Any] = {"device": kind, **about}
    for task in TASKS:
        of_task = {name: by_task[task] for name, by_task in steps.items()}
        result[task] = compare(images_per_s(of_task, wait, config.batch_size, flag_values.repeats))
        print(show(task, result[task]), flush=True)
    if flag_values.json:
        print(json.dumps(result))


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when the timings are taken, and with 2 for a mistake that the user can mend."""
    # Two frameworks share one GPU: JAX must not take most of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flag_values = define_flags(flags.FLAGS)
    given = {arg.split("=")[0].lstrip("-").removeprefix("config.") for arg in argv if "config." in arg.split("=")[0]}
    try:
        arguments = config_file.parse(list(argv), flag_values)
        raise_all([f"there are no arguments besides flags; remove {' '.join(arguments)!r}."] if arguments else [])
        run(flag_values, given)
    except UserError as error:
        sys.exit(report_error(error))


if __name__ == "__main__":
    app.define_help_flags()
    main()
