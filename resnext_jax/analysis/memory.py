"""Whether the training steps of configs fit a TPU that need not exist: peak memory per chip, one row for each config.

python -m resnext_jax.analysis.memory [CONFIG ...] --topology=v5e:2x2 [--images_per_chip=32] [--json]

Compiles the training step that `train.loop` runs, by default of every ImageNet and ImageNet-5K config in configs/, with
a batch of so many images for every chip. Every figure is the compiler's estimate; nothing is run. The exit status is 1
when a step does not fit.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from absl import flags

from resnext_jax.analysis import command, report
from resnext_jax.analysis.chips import GIB, Chip, open_topology
from resnext_jax.analysis.compiling import Program, compile_for, lower_training_step, task_of
from resnext_jax.config import command_line
from resnext_jax.errors import UserError, raise_all

IMAGENET = ("imagenet2012", "imagenet5k")


def open_configs(paths: Sequence[str]) -> dict[str, Any]:
    """Return the configs by file, by default the ImageNet ones of configs/; raise the problems of all together."""
    configs, problems = {}, []
    for path in paths or command_line.config_paths("configs"):
        try:
            config = command_line.load(path)
        except UserError as error:
            problems += error.problems
            continue
        if paths or config.data.name in IMAGENET:
            configs[path] = config
    raise_all(problems)
    if not configs:
        raise UserError(
            "there are no ImageNet configs in configs/: run the command from the folder of the repository, or name "
            "them: python -m resnext_jax.analysis.memory PATH/TO/CONFIG.py"
        )
    return configs


def set_batch(configs: dict[str, Any], devices: Sequence[Any], batch_size: int) -> None:
    """Give every config this batch; raise the problems of all configs together, before the first is compiled."""
    found = collections.defaultdict(list)
    for path, config in configs.items():
        config.batch_size, config.evaluate.batch_size = batch_size, len(devices)
        config.data.repeats = 1  # which images come is the host's task, and copies need a batch of several groups
        try:
            task_of(config, devices)
        except UserError as error:
            for problem in error.problems:
                found[problem].append(path)
    raise_all(
        [
            f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}, with a batch_size of "
            f"--images_per_chip times the chips: {problem}"
            for problem, paths in found.items()
        ]
    )


def network_of(config: Any) -> str:
    """Return the network of a config in few words."""
    model = config.model
    numbers = f"{model.family} {model.depth}, {model.cardinality}x{model.bottleneck_width}d"
    return (model.name or numbers) + ("" if model.shortcut else ", no shortcuts")


def rows(configs: dict[str, Any], chip: Chip, devices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Compile the steps one after another; one that is lowered to the same program as another is compiled once."""
    compiled: dict[str, tuple[str, Program]] = {}
    for path, config in configs.items():
        lowered = lower_training_step(config, devices)
        program_id = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        same_as = compiled[program_id][0] if program_id in compiled else None
        if same_as is None:
            compiled[program_id] = path, compile_for(chip, lowered)[0]
        row = {"config": path, "network": network_of(config), **dataclasses.asdict(compiled[program_id][1])}
        yield row | {"same_as": same_as} | ({"compile_s": None} if same_as else {})


def show(row: dict[str, Any], width: int, chip: Chip) -> str:
    """Return one line of the table."""
    peak = "unknown" if row["peak_hbm_bytes"] is None else f"{row['peak_hbm_bytes'] / GIB:.2f}"
    fits = "fits" if row["fits"] else "DOES NOT FIT"
    compile_s = f"as {row['same_as']}" if row["same_as"] else f"{row['compile_s']:9.0f}"
    return f"{row['config']:{width}}  {row['network']:28}{peak:>14}{chip.hbm_bytes / GIB:8.2f}  {fits:14}{compile_s}"


def define_flags(to: flags.FlagValues) -> None:
    """Add the command's flags."""
    command.define_topology(to, "v5e:2x2")
    flags.DEFINE_integer("images_per_chip", 32, "Of a batch; 1 or more.", flag_values=to)
    command.define_json(to)


def run(flag_values: flags.FlagValues, arguments: Sequence[str]) -> bool:
    """Compile what the command line asks for, print it, and return whether all of it fits."""
    images_per_chip, topology = flag_values.images_per_chip, flag_values.topology
    if images_per_chip < 1:
        raise UserError(f"--images_per_chip={images_per_chip} must be 1 or more; the paper's is 32.")
    configs = open_configs(arguments)
    chip, devices = open_topology(topology)
    num_chips = len(devices) // chip.devices_per_chip
    batch_size = images_per_chip * num_chips
    set_batch(configs, devices, batch_size)
    batch = f"batch {batch_size}, {images_per_chip} images per chip"
    steps = "training step of 1 config" if len(configs) == 1 else f"training steps of {len(configs)} configs"
    print(f"{steps} for {topology}, {batch}   ({report.NOTE})")
    width = max(len(path) for path in configs)
    print(f"{'config':{width}}  {'network':28}{f'GiB per {chip.device}':>14}{'of':>8}  {'':14}{'compile_s':>9}")
    results = []
    for row in rows(configs, chip, devices):
        results.append(row)
        print(show(row, width, chip), flush=True)
    too_large = [row["config"] for row in results if not row["fits"]]
    if too_large:
        print(
            f"{len(too_large)} of {len(results)} do not fit: lower --images_per_chip (a run's --config.batch_size), "
            "split the batch with --config.accumulation_steps, or take chips with more memory"
        )
    about = {"topology": topology, "num_chips": num_chips, "num_devices": len(devices), "device": chip.device}
    about |= {"images_per_chip": images_per_chip, "batch_size": batch_size, "hbm_bytes": chip.hbm_bytes}
    command.print_json(flag_values, about | {"note": report.NOTE, "fits": not too_large, "configs": results})
    return not too_large


main = partial(command.main, define_flags, run, takes_arguments=True)

if __name__ == "__main__":
    main()
