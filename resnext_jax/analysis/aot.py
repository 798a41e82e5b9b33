"""The training step compiled ahead of time for a TPU that is not there: cycles, memory, collectives.

python -m resnext_jax.analysis.aot --config=configs/resnext50_32x4d.py --topology=v5e:2x4 [--compare=native] [--json]

Every figure is the compiler's estimate or is counted from its program (`analysis.report` says how); nothing is run.
"""

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags

from resnext_jax import config_file, sharding
from resnext_jax.analysis import report
from resnext_jax.analysis.chips import KNOWN, Chip, open_topology
from resnext_jax.errors import UserError, raise_all, report_error, unknown
from resnext_jax.ops.grouped_conv import IMPLS
from resnext_jax.train.assemble import assemble
from resnext_jax.types import DatasetInfo

# Images of the training set (they set the length of an epoch) and classes: no data is needed.
DATASETS = {
    "builtin": (15_000, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "fashion_mnist": (60_000, 10),
    "imagenet2012": (1_281_167, 1000),
    "imagenet5k": (6_800_000, 5000),
    "synthetic": (10_000, 1000),
}
CONV_IMPLS = ("auto", *IMPLS)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compile of the step; the numbers are per device.

    Attributes:
      conv_impl: the algorithm of its convolutions.
      compile_s: on this machine.
      fits: whether the program fits the device's memory; the compiler refuses one that is far from it.
      peak_hbm_bytes: arguments, results, temporaries and the program; None for one that was refused.
      flops: that the program executes, multiplications by the zeros of merged groups included.
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


def dataset_info(name: str) -> DatasetInfo:
    """The facts of a training set without the set.

    Raises:
      UserError: they are only known from the files.
    """
    if name not in DATASETS:
        raise UserError(
            f"the number of classes of data.name={name!r} is only known from its files; compile for a set of about its "
            f"size, one of {', '.join(DATASETS)}: --config.data.name=imagenet2012"
        )
    num_images, num_classes = DATASETS[name]
    return DatasetInfo(name, num_images, tuple(map(str, range(num_classes))), None)


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
    config = copy.deepcopy(config)
    config.conv_impl = conv_impl
    mesh = sharding.make_mesh(devices)
    run = assemble(config, dataset_info(config.data.name), sharding.Place(mesh, "tpu"))
    lowered = run.train_step.lower(run.state_shapes(mesh), run.batch_shapes(mesh, config.batch_size))
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "Ran out of memory" not in str(error):
            raise
        return Compiled(conv_impl, time.perf_counter() - start, fits=False, refusal=str(error).splitlines()[0])
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak_bytes += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    costs = report.account(compiled.as_text(), chip, run.model.arch)
    flops = compiled.cost_analysis()["flops"]
    return Compiled(conv_impl, compile_s, peak_bytes <= chip.hbm_bytes, peak_bytes, flops, costs)


def as_json(compiled: Compiled) -> dict[str, Any]:
    """Flat: the fields of the costs beside those of the compile; None where the compiler refused."""
    fields = dataclasses.asdict(compiled)
    costs = fields.pop("costs") or dict.fromkeys(field.name for field in dataclasses.fields(report.Costs))
    return fields | costs


def show(compiled: Compiled, chip: Chip) -> str:
    """One compile for people."""
    if compiled.costs is None or compiled.peak_hbm_bytes is None:
        advice = "Lower --config.batch_size or take more chips."
        return f"\nconv_impl={compiled.conv_impl} DOES NOT FIT: {compiled.refusal} {advice}"
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
    config_file.define_config(to)
    flags.declare_key_flag("config", flag_values=to)  # --help shows the flags of this module
    flags.DEFINE_string("topology", "v5e:2x4", f"What to compile for: {', '.join(KNOWN)}, or alike.", flag_values=to)
    allowed = ", ".join(CONV_IMPLS)
    flags.DEFINE_string("conv_impl", None, f"Takes the place of the config's: {allowed}.", flag_values=to)
    flags.DEFINE_string("compare", None, f"Compiles a second time, with this conv_impl: {allowed}.", flag_values=to)
    flags.DEFINE_bool("json", False, "Print one JSON object as the last line.", flag_values=to)
    return to


def run(flag_values: flags.FlagValues) -> None:
    """Compiles what the flags ask for and prints it."""
    config, topology = flag_values.config, flag_values.topology
    if config is None:
        raise UserError("the report wants a config: python -m resnext_jax.analysis.aot --config=configs/NAME.py")
    impls = [flag_values.conv_impl or config.conv_impl, *([flag_values.compare] if flag_values.compare else [])]
    raise_all([unknown("conv_impl", name, CONV_IMPLS) for name in impls if name not in CONV_IMPLS])
    chip, devices = open_topology(topology)
    config_flag: Any = flag_values["config"]
    about = {"config": config_flag.config_filename, "topology": topology, "num_devices": len(devices)}
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
    if flag_values.json:
        print(json.dumps(result))


def main(argv: Sequence[str] = tuple(sys.argv)) -> None:
    """Exits with 0 when the report is made, fitting or not, and with 2 for a mistake that the user can mend."""
    flag_values = define_flags(flags.FLAGS)
    jax.config.update("jax_platforms", "cpu")  # leave the accelerators of this machine alone
    try:
        arguments = config_file.parse(list(argv), flag_values)
        raise_all([f"there are no arguments besides flags; remove {' '.join(arguments)!r}."] if arguments else [])
        run(flag_values)
    except UserError as error:
        sys.exit(report_error(error))


if __name__ == "__main__":
    app.define_help_flags()
    main()
