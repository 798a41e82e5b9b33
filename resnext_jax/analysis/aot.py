"""The training step compiled ahead of time for a TPU that is not there: cycles, memory, collectives.

python -m resnext_jax.analysis.aot --config=configs/resnext50_32x4d.py --topology=v5e:2x4 [--compare=native] [--json]

Every figure is the compiler's estimate or is counted from its program (`analysis.report` says how); nothing is run.
"""

import copy
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags

from resnext_jax.analysis import command, report
from resnext_jax.analysis.chips import Chip, open_topology
from resnext_jax.analysis.compiling import assemble_for, compile_for, lower
from resnext_jax.errors import UserError, raise_all


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compile of the step; the numbers are per device.

    Attributes:
      conv_impl: the algorithm of its convolutions.
      compile_s: on this machine.
      fits: whether the program fits the device's memory; the compiler refuses one that is far from it.
      peak_hbm_bytes: arguments, results, temporaries and the program; of one that was refused what the compiler says.
      flops: that the program executes, multiplications by the zeros of merged groups included; of what loops repeat,
        those of convolutions and matrix products.
      costs: see `report.Costs`.
      refusal: the compiler's words.
    """

    conv_impl: str
    compile_s: float
    fits: bool
    peak_hbm_bytes: int | None = None
    flops: float | None = None
    costs: report.Costs | None = None
    refusal: str | None = None


def compile_step(config: Any, chip: Chip, devices: Sequence[Any], conv_impl: str) -> Compiled:
    """Compiles the very step that `train.loop` runs, for all devices of a topology (`chips.open_topology`).

    Args:
      config: see configs/common.py.
      chip: what the devices are.
      devices: they need not exist.
      conv_impl: takes the place of the config's.

    Raises:
      UserError: an unknown algorithm, or a config that cannot work on so many devices.
    """
    step, lowered = lower(with_impl(config, conv_impl), devices)
    program = compile_for(chip, lowered)
    what = Compiled(conv_impl, program.compile_s, program.fits, program.peak_hbm_bytes, refusal=program.refusal)
    if program.executable is None:
        return what
    costs = report.account(program.executable.as_text(), chip, step.model.arch)
    # XLA counts the body of a loop once.
    flops = program.executable.cost_analysis()["flops"] + costs.repeated_flops
    return dataclasses.replace(what, flops=flops, costs=costs)


def with_impl(config: Any, conv_impl: str) -> Any:
    """A copy of the config with this `conv_impl`."""
    config = copy.deepcopy(config)
    config.conv_impl = conv_impl
    return config


def as_json(compiled: Compiled) -> dict[str, Any]:
    """Flat: the fields of the costs beside those of the compile; None where the compiler refused."""
    fields = dataclasses.asdict(compiled)
    costs = fields.pop("costs") or dict.fromkeys(field.name for field in dataclasses.fields(report.Costs))
    return fields | costs


def show(compiled: Compiled, chip: Chip) -> str:
    """One compile for people."""
    if compiled.costs is None or compiled.peak_hbm_bytes is None:
        return f"\nconv_impl={compiled.conv_impl} DOES NOT FIT: {compiled.refusal} {report.TOO_LARGE_ADVICE}."
    lines = [f"\nconv_impl={compiled.conv_impl}: {report.table(compiled.costs, chip)}"]
    lines += [report.memory_line(compiled.peak_hbm_bytes, chip)]
    lines += [f"  {(compiled.flops or 0) / 1e12:.3f} T flops per {chip.device}; compiled in {compiled.compile_s:.0f} s"]
    return "\n".join(lines)


def ratio(ours: Compiled, other: Compiled) -> float | None:
    """How many times as long the other takes, each with the lower bound of what has no figure."""
    if ours.costs is None or other.costs is None:
        return None
    sums = [costs.estimated_cycles + costs.floor_cycles for costs in (ours.costs, other.costs)]
    return sums[1] / sums[0]


# ------------------------------------------------------------------------------------------------------ The command


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    command.define_config(to)
    command.define_topology(to, "v5e:2x4")
    command.define_conv_impl(to, "conv_impl", "Takes the place of the config's")
    command.define_conv_impl(to, "compare", "Compiles a second time, with this conv_impl")
    command.define_json(to)
    return to


def run(flag_values: flags.FlagValues) -> bool:
    """Compiles what the flags ask for, prints it, and returns whether it fits (what it is compared with may not)."""
    config, topology = flag_values.config, flag_values.topology
    if config is None:
        raise UserError("the report wants a config: python -m resnext_jax.analysis.aot --config=configs/NAME.py")
    impls = [flag_values.conv_impl or config.conv_impl, *([flag_values.compare] if flag_values.compare else [])]
    raise_all(command.conv_impl_problems(impls))
    chip, devices = open_topology(topology)
    for name in impls:  # a mistake in the second should not come up after minutes for the first
        assemble_for(with_impl(config, name), devices)
    about = {"config": command.config_name(flag_values), "topology": topology, "num_devices": len(devices)}
    about |= {"batch_size": config.batch_size, "device": chip.device, "hbm_bytes": chip.hbm_bytes, "note": report.NOTE}
    size = f"{len(devices)} {chip.device}{'s' if len(devices) > 1 else ''}, batch {config.batch_size}"
    print(f"{about['config']} for {topology}: {size}   ({report.NOTE})")

    compiles = []
    for name in impls:
        compiles.append(compile_step(config, chip, devices, name))
        print(show(compiles[-1], chip), flush=True)
    result = about | as_json(compiles[0])
    if len(compiles) == 2:
        times = ratio(*compiles)
        shown = "unknown, for one does not fit" if times is None else f"{times:.2f}"
        print(f"\n{impls[1]} / {impls[0]}: {shown}   ({report.NOTE}; with the lower bounds of what has no figure)")
        result |= {"ratio": times, "compare": as_json(compiles[1])}
    command.print_json(flag_values, result)
    return compiles[0].fits


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when the step fits, 1 when it does not, and 2 for a mistake that the user can mend."""
    jax.config.update("jax_platforms", "cpu")  # leave the accelerators of this machine alone
    with command.mistakes_reported():
        fits = run(command.parse(argv, define_flags(flags.FLAGS)))
    if not fits:
        sys.exit(1)


if __name__ == "__main__":
    app.define_help_flags()
    main()
