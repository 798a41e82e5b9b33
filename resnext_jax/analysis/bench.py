"""Real timings on the device at hand: the training step and inference, beside PyTorch's in the same run.

python -m resnext_jax.analysis.bench --config=configs/resnext50_32x4d.py [--config.batch_size=N] [--peer=torch] [--json]

Ours is the very step that `train.loop` runs, from uint8 images, augmentation included. The peer is the network of
torchvision and starts from normalised images in its own layout. Neither has an input pipeline. One device.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags

from resnext_jax.analysis import command
from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.analysis.peer import import_torch, peer_steps
from resnext_jax.analysis.timing import compare, images_per_s, our_steps, synthetic_batch
from resnext_jax.errors import UserError, raise_all, unknown

PEERS = ("torch", "none")
TASKS = ("train", "inference")
CPU_PIXELS = 16 * 224 * 224  # a config's batch of 256 ImageNet images would take a CPU minutes and 40 GiB
BUSY = 1.0  # load average of the last minute


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


# ------------------------------------------------------------------------------------------------------ The command


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    command.define_config(to)
    flags.DEFINE_string("peer", "torch", f"Whom to compare with: {', '.join(PEERS)}.", flag_values=to)
    command.define_conv_impl(to, "conv_impl", "Takes the place of the config's")
    flags.DEFINE_integer("repeats", 7, "Timings of each; the median counts.", lower_bound=1, flag_values=to)
    command.define_json(to)
    return to


def run(flag_values: flags.FlagValues, given: set[str]) -> None:
    """Times what the flags ask for and prints it."""
    config, peer = flag_values.config, flag_values.peer
    if config is None:
        raise UserError("timing wants a config: python -m resnext_jax.analysis.bench --config=configs/NAME.py")
    config.conv_impl = flag_values.conv_impl or config.conv_impl
    problems = command.conv_impl_problems([config.conv_impl])
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
    name = command.config_name(flag_values)
    print(f"{name} on {kind}: batch {config.batch_size}, {size_px} px")
    print("".join(f"  ({note})\n" for note in notes), end="")
    print(f"  ours: JAX {jax.__version__}, {config.compute_dtype}, conv_impl={config.conv_impl}\n  peer: {how}")
    print("  images per second, median of the repeats (slowest to fastest)")
    print(f"  {'':10}{'ours':>9} {'':20}" + (f"{'peer':>9} {'':20}{'ours / peer':>8}" if peer != "none" else ""))
    about = {"config": name, "batch_size": config.batch_size, "image_size_px": size_px}
    about |= {"compute_dtype": config.compute_dtype, "conv_impl": config.conv_impl, "peer": how}
    result: dict[str, Any] = {"device": kind, **about}
    for task in TASKS:
        of_task = {name: by_task[task] for name, by_task in steps.items()}
        result[task] = compare(images_per_s(of_task, wait, config.batch_size, flag_values.repeats))
        print(show(task, result[task]), flush=True)
    command.print_json(flag_values, result)


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when the timings are taken, and with 2 for a mistake that the user can mend."""
    # Two frameworks share one GPU: JAX must not take most of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    given = {arg.split("=")[0].lstrip("-").removeprefix("config.") for arg in argv if "config." in arg.split("=")[0]}
    with command.mistakes_reported():
        run(command.parse(argv, define_flags(flags.FLAGS)), given)


if __name__ == "__main__":
    app.define_help_flags()
    main()
