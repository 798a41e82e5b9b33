"""The training step compiled ahead of time for a TPU that need not exist: cycles, memory, collectives.

python -m resnext_jax.analysis.aot --config=configs/resnext50_32x4d.py --topology=v5e:2x4 [--compare=native] [--json]

Every figure is the compiler's estimate or is counted from its program (`analysis.report` says how); nothing is run.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from absl import flags

from resnext_jax.analysis import command, report
from resnext_jax.analysis.chips import GIB, Chip, open_topology
from resnext_jax.analysis.compiling import compile_for, lower_training_step, task_of, with_impl
from resnext_jax.errors import raise_all
from resnext_jax.models import zoo

TOO_LARGE_ADVICE = "Lower --config.batch_size, split the batch with --config.accumulation_steps, or take more chips"


def compile_step(config: Any, chip: Chip, devices: Sequence[Any], conv_impl: str) -> tuple[dict[str, Any], str]:
    """Compile the training step that `train.loop` runs, with this `conv_impl`, for all devices of a topology.

    Returns:
      The report for programs and for people, numbers per device. The first has `conv_impl`, the fields of
      `compiling.Program` and of `report.Costs`, and `flops`: what the program executes, multiplications by the zeros
      of merged groups included. Of a refused program `flops` and the costs are None.

    Raises:
      UserError: an unknown algorithm, or a config that cannot work on so many devices.
    """
    program, executable = compile_for(chip, lower_training_step(with_impl(config, conv_impl), devices))
    fields = {"conv_impl": conv_impl, **dataclasses.asdict(program), "flops": None}
    if executable is None or program.peak_hbm_bytes is None:
        text = f"\nconv_impl={conv_impl} DOES NOT FIT: {program.refusal} {TOO_LARGE_ADVICE}."
        return fields | dict.fromkeys(field.name for field in dataclasses.fields(report.Costs)), text
    costs = report.account(executable.as_text(), chip, zoo.select(**config.model))
    # XLA counts the body of a loop once. Nearly everything is in the loop over microbatches; only the update, some ten
    # flops for each parameter, is not.
    flops = executable.cost_analysis()["flops"] * config.accumulation_steps
    verdict = "fits" if program.fits else f"DOES NOT FIT. {TOO_LARGE_ADVICE}"
    used_gib, hbm_gib = program.peak_hbm_bytes / GIB, chip.hbm_bytes / GIB
    text = f"\nconv_impl={conv_impl}: {report.table(costs, chip)}\n"
    text += f"  HBM: {used_gib:.2f} of {hbm_gib:.2f} GiB per {chip.device}: {verdict}\n"
    text += f"  {flops / 1e12:.3f} T flops per {chip.device}; compiled in {program.compile_s:.0f} s"
    return fields | {"flops": flops} | dataclasses.asdict(costs), text


def define_flags(to: flags.FlagValues) -> None:
    """Add the command's flags."""
    command.define_config(to)
    command.define_topology(to, "v5e:2x4")
    command.define_conv_impls(to, "Compiles a second time, with this conv_impl")
    command.define_json(to)


def run(flag_values: flags.FlagValues, _: Sequence[str]) -> bool:
    """Compile what the flags ask for, print it, and return whether it fits (what it is compared with may not)."""
    config, topology = flag_values.config, flag_values.topology
    impls, problems = command.conv_impls(flag_values)
    raise_all(problems)
    chip, devices = open_topology(topology)
    for name in impls:  # a mistake in the second should not come up after minutes for the first
        task_of(with_impl(config, name), devices)
    about = {"config": command.config_name(flag_values), "topology": topology, "num_devices": len(devices)}
    about |= {"batch_size": config.batch_size, "device": chip.device, "hbm_bytes": chip.hbm_bytes, "note": report.NOTE}
    size = f"{len(devices)} {chip.device}{'s' if len(devices) > 1 else ''}, batch {config.batch_size}"
    print(f"{about['config']} for {topology}: {size}   ({report.NOTE})")
    compiles = []
    for name in impls:
        fields, text = compile_step(config, chip, devices, name)
        compiles.append(fields)
        print(text, flush=True)
    result = about | compiles[0]
    if len(compiles) == 2:
        sums = [c["estimated_cycles"] and c["estimated_cycles"] + c["floor_cycles"] for c in compiles]
        times = sums[1] / sums[0] if all(sums) else None
        shown = "unknown, because one does not fit" if times is None else f"{times:.2f}"
        print(f"\n{impls[1]} / {impls[0]}: {shown}   ({report.NOTE}; with the lower bounds of what has no figure)")
        result |= {"ratio": times, "compare": compiles[1]}
    command.print_json(flag_values, result)
    return result["fits"]


main = partial(command.main, define_flags, run)

if __name__ == "__main__":
    main()
