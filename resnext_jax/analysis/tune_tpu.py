"""Writes the rows of a TPU that is not there into the table that `conv_impl=auto` looks up.

python -m resnext_jax.analysis.tune_tpu --config=configs/resnext50_32x4d.py --topology=v5e:2x4

On a TPU an algorithm cannot be judged alone: layouts and fusions reach over its neighbours. So the very training step
of the config is compiled, its network cut to two blocks in each stage, which have all its convolutions. One convolution
after another, every algorithm takes its place there, and the one with the fewest cycles stays. An estimate of the TPU
compiler; nothing is run. Half a minute or more for each compile, some thirty compiles for a network. A convolution that
has a row is left as it is, so that a stopped command goes on; `--anew` tries all.
"""

import contextlib
import copy
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from resnext_jax.analysis import command, report
from resnext_jax.analysis.chips import Chip, open_topology
from resnext_jax.analysis.compiling import assemble_for, compile_for, lower
from resnext_jax.analysis.tune import Row, define_out, shapes_of, text
from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.ops import conv_table
from resnext_jax.ops.conv_choice import ConvShape, chip_of, choose, key_of, section

TRIAL = "trial"  # the row of the zoo that lives while this command runs
WORTH = 0.999  # of the cycles of a step: less than that is not worth a row against the rule
GROUPED = ("native", "merged128", "merged256", "blocked128", "dense")


def candidates(shape: ConvShape) -> tuple[str, ...]:
    """The algorithms that differ for a convolution on a TPU."""
    if shape.groups > 1:
        return GROUPED
    if shape.kernel_px == 1:
        return ("native", "moments") if shape.stride == 1 else ("native", "subsampled")
    return ("native", "space_to_depth") if shape.kernel_px == 7 else ("native",)


@contextlib.contextmanager
def trial_of(config: Any, arch: zoo.Arch) -> Iterator[Any]:
    """The config with its network cut to two blocks in each stage."""
    zoo.ARCHS[TRIAL] = dataclasses.replace(arch, blocks=(2,) * len(arch.blocks))
    trial = copy.deepcopy(config)
    trial.conv_impl, trial.model.name = "auto", TRIAL
    try:
        yield trial
    finally:
        del zoo.ARCHS[TRIAL]


def cycles(config: Any, chip: Chip, devices: Sequence[Any], known: dict[str, float]) -> float:
    """Of the step, with the lower bound for what has no figure; infinite where it does not fit the memory.

    Args:
      config: see `compiling.lower`.
      chip: what the devices are.
      devices: see `compiling.lower`.
      known: of the programs so far, to which this one is added; different algorithms may make the same one.
    """
    run, lowered = lower(config, devices)
    program_id = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    if program_id not in known:
        program = compile_for(chip, lowered)
        costs = program.executable and report.account(program.executable.as_text(), chip, run.model.arch)
        known[program_id] = costs.estimated_cycles + costs.floor_cycles if costs else float("inf")
    jax.clear_caches()
    return known[program_id]


def tune(config: Any, chip: Chip, devices: Sequence[Any], *, anew: bool) -> Iterator[tuple[ConvShape, Row]]:
    """One row after another; each is in the table, for all compiles that follow, when it is yielded."""
    kind = chip_of(devices[0].device_kind)
    rows = conv_table.TABLE.setdefault(section("tpu", kind), {})
    known: dict[str, float] = {}
    for shape in shapes_of(config.model.name):
        names = candidates(shape)
        if len(names) == 1 or (key_of(shape) in rows and not anew):
            continue
        chosen, costs = choose("tpu", kind, shape), {}
        for name in dict.fromkeys((chosen, *names)):
            rows[key_of(shape)] = (name, "")
            costs[name] = cycles(config, chip, devices, known)
        best = min(costs, key=lambda name: costs[name])
        winner = best if costs[best] < WORTH * costs[chosen] else chosen
        ranked = sorted((cost, name) for name, cost in costs.items())
        rows[key_of(shape)] = winner, ", ".join(f"{name} {cost / 1e6:.2f}" for cost, name in ranked)
        yield shape, rows[key_of(shape)]


def run(flag_values: flags.FlagValues) -> None:
    """Compiles what the flags ask for and writes the table."""
    config = flag_values.config
    if config is None:
        raise UserError("give the network with its config: --config=configs/resnext50_32x4d.py")
    chip, devices = open_topology(flag_values.topology)
    arch = assemble_for(config, devices).model.arch  # the mistakes of the config, before a long time is spent
    if not isinstance(arch, zoo.Arch):
        raise UserError("the trial is a ResNet or ResNeXt cut to two blocks in each stage: take a config of one.")
    print(f"{flag_values.topology}   ({report.NOTE})")
    with trial_of(config, arch) as trial:
        for shape, row in tune(trial, chip, devices, anew=flag_values.anew):
            print(f"{key_of(shape)}: {row[0]}   {row[1]}", flush=True)
            # Every row: what is known stays when the command is stopped.
            Path(flag_values.out).write_text(text(conv_table.TABLE))


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    command.define_config(to)
    command.define_topology(to, "v5e:2x4")
    flags.DEFINE_bool("anew", False, "Also the convolutions that have a row.", flag_values=to)
    define_out(to)
    return to


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when the table is written, and with 2 for a mistake that the user can mend."""
    jax.config.update("jax_platforms", "cpu")  # leave the accelerators of this machine alone
    with command.mistakes_reported():
        run(command.parse(argv, define_flags(flags.FLAGS)))


if __name__ == "__main__":
    app.define_help_flags()
    main()
