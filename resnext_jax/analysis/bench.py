"""Timings on this machine's device: the training step and inference, beside PyTorch's in the same run.

    python -m resnext_jax.analysis.bench --config=configs/resnext50_32x4d.py [--config.batch_size=N]
      [--networks=resnext50_32x4d,resnext101_32x4d] [--peer=torch] [--compare=native] [--json]

Ours is the step that `train.loop` runs, from uint8 images, augmentation included. The peer is the network of
torchvision and starts from normalised images in its own layout. Neither has an input pipeline. One device.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from resnext_jax.analysis import command
from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.analysis.peer import import_torch, release_torch, torch_peer
from resnext_jax.analysis.timing import SLOW_REPEATS, SLOW_S, images_per_s, ours, summary, synthetic_batch
from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.models import zoo
from resnext_jax.sharding import all_devices

PEERS = ("torch", "none")
TASKS = ("train", "inference")
CPU_PIXELS = 16 * 224 * 224  # a config's batch of 256 ImageNet images would take a CPU minutes and 40 GiB
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")  # of JAX, of PyTorch
BUSY = 1.0  # load average of the last minute


def fit(config: Any, platform: str, peer: str, given: set[str]) -> list[str]:
    """Change, in place, the fields of a config that prevent a comparison on this platform, and return notes about it.

    The fields that the command line sets (`given`) are never changed; raise UserError if such a field prevents it.
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


def time_network(config: Any, device: Any, peer: str, impls: Sequence[str], repeats: int) -> dict[str, Any]:
    """Time one network, print the result, and return it: how it was timed, and `timing.summary` by task.

    `impls` are our algorithm, and possibly another one to compare with. Raise UserError if the device has too little
    memory.
    """
    size_px, batch_size = config.data.image_size_px, config.batch_size
    num_classes = dataset_info(config.data.name).num_classes
    batch = synthetic_batch(batch_size, (size_px, size_px, len(config.data.mean)), num_classes)
    result: dict[str, Any] = {"batch_size": batch_size, "image_size_px": size_px}
    result |= {"compute_dtype": config.compute_dtype, "conv_impl": impls[0], "peer": "none"}
    try:
        contenders = {"ours": ours(config, device, batch, impls[0])}
        if peer == "torch":
            contenders["peer"], result["peer"] = torch_peer(config, device.platform, batch)
        if len(impls) > 1:
            contenders["compare"] = ours(config, device, batch, impls[1])
            result["compare"] = impls[1]
        print(f"  ours: JAX {jax.__version__}, {config.compute_dtype}, conv_impl={impls[0]}\n  peer: {result['peer']}")
        few = f"in {SLOW_REPEATS} repeats where a step takes more than {SLOW_S:g} s"
        print(f"  compare: ours, conv_impl={impls[1]}, {few}\n" if len(impls) > 1 else "", end="")
        print("  images per second, median of the repeats (slowest to fastest)")
        cells = "".join(f"{name:>9} {'':20}" for name in contenders)
        ratios = "".join(f"{f'ours / {name}':>16}" for name in contenders if name != "ours")
        print(f"  {'':10}{cells}{ratios}", flush=True)
        for task in TASKS:
            result[task] = summary(images_per_s(contenders, task, batch_size, repeats))
            print(show(task, result[task]), flush=True)
    except RuntimeError as error:  # the kind of both frameworks
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise UserError(
            f"batch_size={batch_size} is too large for the memory of this device, which all that are timed share: "
            f"--config.batch_size={max(1, batch_size // 2)}"
        ) from error
    return result


def show(task: str, result: dict[str, Any]) -> str:
    """Return one line of the table."""
    cells = [f"  {task:10}"]
    for name, (low, high) in result["range"].items():
        cells.append(f"{_rate(result[name]):>9} {f'({_rate(low)} to {_rate(high)})':20}")
    ratios = (result["ours"] / result[name] for name in result["range"] if name != "ours")
    return "".join(cells) + "".join(f"{ratio:16.3f}" for ratio in ratios)


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:.1f}" if images_per_s >= 1 else f"{images_per_s:.3g}"


def define_flags(to: flags.FlagValues) -> None:
    """Add the command's flags."""
    command.define_config(to)
    rows = "Rows of models.zoo that replace the config's network; one after another."
    flags.DEFINE_list("networks", [], rows, flag_values=to)
    flags.DEFINE_string("peer", "torch", f"What to compare with: {', '.join(PEERS)}.", flag_values=to)
    command.define_conv_impls(to, "Times our own step with this conv_impl as well")
    flags.DEFINE_integer("repeats", 7, "Timings of each; the median counts.", lower_bound=1, flag_values=to)
    command.define_json(to)


def run(flag_values: flags.FlagValues, given: set[str]) -> None:
    """Time what the flags ask for and print it; `given` are the fields of the config that the command line sets."""
    config, peer, networks = flag_values.config, flag_values.peer, flag_values.networks
    impls, problems = command.conv_impls(flag_values)
    problems += [unknown("peer", peer, PEERS)] if peer not in PEERS else []
    raise_all(problems + [unknown("network", name, zoo.ARCHS) for name in networks if name not in zoo.ARCHS])
    device = all_devices()[0]
    notes = fit(config, device.platform, peer, given)
    if peer == "torch":
        import_torch(device.platform)  # report what it lacks before the long compile
    kind = f"CPU, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    result: dict[str, Any] = {"device": kind, "config": command.config_name(flag_values), "notes": notes}
    print(f"{result['config']} on {kind}: batch {config.batch_size}, {config.data.image_size_px} px")
    print("".join(f"  ({note})\n" for note in notes), end="")
    if networks:
        result["networks"] = {}
        for name in networks:
            print(f"{name}:")
            config.model.name = name
            result["networks"][name] = time_network(config, device, peer, impls, flag_values.repeats)
            jax.clear_caches()
            if peer == "torch":
                release_torch(device.platform)
    else:
        result |= time_network(config, device, peer, impls, flag_values.repeats)
    command.print_json(flag_values, result)


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exit with 0 when the timings are taken, and with 2 for a mistake of the user."""
    # Two frameworks share one GPU: JAX must not take most of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    given = {arg.split("=")[0].lstrip("-").removeprefix("config.") for arg in argv if "config." in arg.split("=")[0]}
    command.main(define_flags, lambda flag_values, _: run(flag_values, given), argv, uses_devices=True)


if __name__ == "__main__":
    main()
