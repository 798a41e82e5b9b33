"""Whether the training steps of configs fit a TPU that is not there: peak memory per chip, one row for each config.

python -m resnext_jax.analysis.memory [CONFIG ...] --topology=v5e:2x2 [--images_per_chip=32] [--json]

Compiles the very step that `train.loop` runs, by default of every ImageNet and ImageNet-5K config in configs/, with a
batch of so many images for every chip. Every figure is the compiler's estimate; nothing is run. The exit status is 1
when a step does not fit.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags

from resnext_jax.analysis import command, report
from resnext_jax.analysis.chips import GIB, Chip, open_topology
from resnext_jax.analysis.compiling import Program, assemble_for, compile_for, lower
from resnext_jax.config import command_line
from resnext_jax.errors import UserError, raise_all

IMAGENET = ("imagenet2012", "imagenet5k")
Row = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------- Configs


def imagenet_configs() -> list[str]:
    """The files of configs/ whose data are ImageNet's.

    Raises:
      UserError: there are none.
    """
    paths = [path for path in command_line.config_paths("configs") if command_line.load(path).data.name in IMAGENET]
    if not paths:
        raise UserError(
            "there are no ImageNet configs in configs/: run the command from the folder of the repository, or name "
            "them: python -m resnext_jax.analysis.memory PATH/TO/CONFIG.py"
        )
    return paths


def open_configs(paths: Sequence[str]) -> dict[str, Any]:
    """The configs by file.

    Raises:
      UserError: with the problems of all of them.
    """
    configs, problems = {}, []
    for path in paths:
        try:
            configs[path] = command_line.load(path)
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return configs


def set_batch(configs: dict[str, Any], devices: Sequence[Any], batch_size: int) -> None:
    """Gives every config this batch.

    Raises:
      UserError: with the problems of all configs with it, before the first is compiled.
    """
    found: dict[str, list[str]] = {}
    for path, config in configs.items():
        config.batch_size, config.evaluate.batch_size = batch_size, len(devices)
        config.data.repeats = 1  # which images come is the host's affair, and copies want a batch of several groups
        try:
            assemble_for(config, devices)
        except UserError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(path)
    raise_all(
        [
            f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}, with a batch_size of "
            f"--images_per_chip times the chips: {problem}"
            for problem, paths in found.items()
        ]
    )


def network_of(config: Any) -> str:
    """The network of a config in few words."""
    model = config.model
    numbers = f"{model.family} {model.depth}, {model.cardinality}x{model.bottleneck_width}d"
    return (model.name or numbers) + ("" if model.shortcut else ", no shortcuts")


# ------------------------------------------------------------------------------------------------------------- Rows


def rows(configs: dict[str, Any], chip: Chip, devices: Sequence[Any]) -> Iterator[Row]:
    """Compiles the steps one after another; one that is lowered to the same program as another is compiled once."""
    compiled: dict[str, tuple[str, Program]] = {}
    for path, config in configs.items():
        _, lowered = lower(config, devices)
        program_id = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        same_as = compiled[program_id][0] if program_id in compiled else None
        if same_as is None:
            compiled[program_id] = path, dataclasses.replace(compile_for(chip, lowered), executable=None)
        program = compiled[program_id][1]
        row = {"config": path, "network": network_of(config), "fits": program.fits}
        row |= {"peak_hbm_bytes": program.peak_hbm_bytes, "compile_s": None if same_as else program.compile_s}
        yield row | {"same_as": same_as, "refusal": program.refusal}


def header(width: int, chip: Chip) -> str:
    """The first line of the table."""
    return f"{'config':{width}}  {'network':28}{f'GiB per {chip.device}':>14}{'of':>8}  {'':14}{'compile_s':>9}"


def show(row: Row, width: int, chip: Chip) -> str:
    """One line of the table."""
    peak = "unknown" if row["peak_hbm_bytes"] is None else f"{row['peak_hbm_bytes'] / GIB:.2f}"
    fits = "fits" if row["fits"] else "DOES NOT FIT"
    compile_s = f"as {row['same_as']}" if row["same_as"] else f"{row['compile_s']:9.0f}"
    return f"{row['config']:{width}}  {row['network']:28}{peak:>14}{chip.hbm_bytes / GIB:8.2f}  {fits:14}{compile_s}"


# ------------------------------------------------------------------------------------------------------ The command


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    command.define_topology(to, "v5e:2x2")
    flags.DEFINE_integer("images_per_chip", 32, "Of a batch; 1 or more.", flag_values=to)
    command.define_json(to)
    return to


def run(flag_values: flags.FlagValues, arguments: Sequence[str]) -> bool:
    """Compiles what the command line asks for, prints it, and returns whether all of it fits."""
    images_per_chip, topology = flag_values.images_per_chip, flag_values.topology
    if images_per_chip < 1:
        raise UserError(f"--images_per_chip={images_per_chip} must be 1 or more; the paper's is 32.")
    configs = open_configs(arguments or imagenet_configs())
    chip, devices = open_topology(topology)
    num_chips = len(devices) // chip.devices_per_chip
    batch_size = images_per_chip * num_chips
    set_batch(configs, devices, batch_size)
    batch = f"batch {batch_size}, {images_per_chip} images per chip"
    steps = "training step of 1 config" if len(configs) == 1 else f"training steps of {len(configs)} configs"
    print(f"{steps} for {topology}, {batch}   ({report.NOTE})")
    width = max(len(path) for path in configs)
    print(header(width, chip), flush=True)
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


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when every step fits, 1 when one does not, and 2 for a mistake that the user can mend."""
    jax.config.update("jax_platforms", "cpu")  # leave the accelerators of this machine alone
    with command.mistakes_reported():
        flag_values = define_flags(flags.FLAGS)
        all_fit = run(flag_values, command.parse_arguments(argv, flag_values))
    sys.exit(None if all_fit else 1)


if __name__ == "__main__":
    app.define_help_flags()
    main()
