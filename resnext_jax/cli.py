"""The command: reads flags and config, asks once where it runs, and hands both down to one of MODES."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from resnext_jax import sharding, streams
from resnext_jax.api import Net, load
from resnext_jax.checkpoint import locate, read_description
from resnext_jax.config import command_line
from resnext_jax.config.checks import evaluation_problems, network_problems, protocol_problems
from resnext_jax.errors import (
    INTERRUPTED_STATUS,
    PREEMPTED_STATUS,
    Preempted,
    UserError,
    may_miss_a_process,
    print_error,
    raise_all,
    report_error,
    status_of,
    unknown,
)
from resnext_jax.evaluate.loaded import LoadedCheckpoint, load_checkpoint
from resnext_jax.evaluate.predict import new_file, predict_files, readable_images
from resnext_jax.evaluate.recompute import recompute_checkpoint
from resnext_jax.evaluate.report import evaluate_with_report, print_row
from resnext_jax.ops.conv_choice import chip_of
from resnext_jax.progress import end_line
from resnext_jax.runtime import processes
from resnext_jax.runtime.startup import environment, keep_compiled, quiet_logging, source_digest, versions
from resnext_jax.train.classification import open_classification
from resnext_jax.train.finetune import fill_from_checkpoint
from resnext_jax.train.loop import train
from resnext_jax.train.resume import jax_settings
from resnext_jax.types import DETECTION

FLAG_OF_MODE = {"report": "evaluate", "top": "predict", "csv": "predict", "draw": "predict"}
CRASH_STATUS = 1


def main(flag_values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Run the command and exit.

    Status: 0 when it is done, 2 for a mistake of the user, 75 when training was preempted and wants to be run again,
    130 after Ctrl-C, 1 for an unexpected error. JAX aborts with 134 when another process of the run is gone.
    """
    streams.open_streams()
    try:
        try:
            run(flag_values, argv)
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return
    except UserError as error:
        end_line()
        status = report_error(error, argv)
    except Preempted as news:
        streams.write(sys.stderr, f"{news}\n" if str(news) else "")
        sys.exit(PREEMPTED_STATUS)  # as all processes do, for which JAX's own exit waits
    except KeyboardInterrupt:
        note = "\ninterrupted; training resumes from its newest checkpoint when the command is run again\n"
        streams.write(sys.stderr, note)
        status = INTERRUPTED_STATUS
    except Exception as error:
        status = status_of(error) if isinstance(error, OSError) else None
        if status is None:
            status = CRASH_STATUS
            streams.write(sys.stderr, "".join(traceback.format_exception(error)))
            if may_miss_a_process(error) and jax.distributed.is_initialized():
                print_error("another process may be gone: see what it printed, and run all processes again.")
    processes.leave(status)


def run(flag_values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Read the command line, join the other processes, and run one of MODES."""
    arguments = command_line.parse(list(argv), flag_values)
    mode = flag_values.mode
    raise_all([unknown("mode", mode, MODES)] if mode not in MODES else [])
    strays = [name for name, of in FLAG_OF_MODE.items() if flag_values[name].present and of != mode]
    raise_all([f"--{name} is for --mode={FLAG_OF_MODE[name]}: leave it out, or change --mode." for name in strays])
    quiet_logging()
    keep_compiled(flag_values.compilation_cache)
    processes.join(
        flag_values.coordinator_address,
        flag_values.num_processes,
        flag_values.process_id,
        timeout_s=flag_values.join_timeout_s,
        stops=mode == "train",
    )
    sharding.all_devices()
    processes.require_alike(what_must_be_alike(flag_values))
    MODES[mode](flag_values, arguments)


# ------------------------------------------------------------------------------------------------------------ Modes


def run_training(flag_values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """`--mode=train`: trains, or goes on where the newest checkpoint of the workdir was left."""
    refuse_arguments(arguments, flag_values)
    config = flag_values.config
    if config is None:
        raise UserError("training wants a config: python main.py --config=configs/quickstart.py")
    workdir = workdir_of(flag_values)
    if config.get("task") == DETECTION:
        from resnext_jax.detection.run import train_detector

        return train_detector(config, workdir, here(), environment())
    place, config = here(), fill_from_checkpoint(config, workdir)
    train(open_classification(config, place), config, workdir, place, environment())


def run_evaluation(flag_values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """`--mode=evaluate`: exact loss, top-1 and top-5 of a checkpoint on the validation images of its config."""
    refuse_arguments(arguments, flag_values)
    if is_detector(flag_values):
        from resnext_jax.detection.command import evaluate_detector

        if flag_values.report or flag_values.config is not None:
            raise UserError(
                "a detector has no --report, and brings its config along: give --workdir=DIR, and leave --report and "
                "--config=FILE out."
            )
        overrides = partial(command_line.override, overrides=flag_values.override)
        return evaluate_detector(workdir_of(flag_values), here(), overrides, as_json=flag_values.json)
    loaded = opened(flag_values)
    if flag_values.report:
        row, summary = evaluate_with_report(loaded, flag_values.report)
    else:
        row, summary = loaded.evaluate(loaded.variables), None
    options = {"report_dir": flag_values.report or "", "as_json": flag_values.json}
    print_row(loaded, loaded.checkpoint, row, summary, **options)


def run_recomputation(flag_values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """`--mode=recompute_bn`: a checkpoint's weights with batch-norm statistics over many training images, and its row.

    Written to `recomputed_bn` in the workdir, itself a workdir for the other modes.
    """
    refuse_arguments(arguments, flag_values)
    if is_detector(flag_values):
        raise UserError("the batch norm of a detector is frozen: recompute that of the classifier it starts from.")
    loaded = opened(flag_values)
    print_row(loaded, *recompute_checkpoint(loaded), as_json=flag_values.json)


def opened(flag_values: flags.FlagValues) -> LoadedCheckpoint:
    """Load the checkpoint of the workdir, with the config and the overrides of the command line."""
    place = here()

    def prepare(config: ConfigDict) -> None:
        command_line.override(config, flag_values.override)
        raise_all(evaluation_problems(config, place.mesh.size) + protocol_problems(config) + network_problems(config))

    return load_checkpoint(workdir_of(flag_values), flag_values.config, place, prepare=prepare, raw=flag_values.raw)


def run_prediction(flag_values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """`--mode=predict IMAGE|FOLDER|PATTERN...`: names and probabilities of the most probable classes."""
    if not arguments:
        raise UserError("predict wants images: python main.py --mode=predict --workdir=runs/quickstart IMAGE...")
    problems = [f"--top={flag_values.top} must be 1 or more."] if flag_values.top < 1 else []
    if flag_values.config is not None and flag_values.workdir:
        problems.append("predict takes the network and its preprocessing from --workdir: leave --config out.")
    raise_all(problems)
    csv_file = new_file(flag_values.csv) if flag_values.csv else None
    paths = readable_images(arguments)
    net = load(workdir_of(flag_values), raw=flag_values.raw)
    detects = not isinstance(net, Net)
    strays = [f"--{name}" for name in (("top", "csv") if detects else ("draw",)) if flag_values[name].present]
    if strays:
        kind, other = ("a detector", "classifiers") if detects else ("a classifier", "detectors")
        raise UserError(f"{', '.join(strays)}: for {other}, and this is {kind}. Leave it out.")
    if detects:
        from resnext_jax.detection.command import predict_objects

        return predict_objects(net, paths, draw_dir=flag_values.draw, as_json=flag_values.json)
    results = predict_files(partial(net.predict, top=flag_values.top), paths, csv_file)
    if flag_values.json:
        print(json.dumps({"images": results}))


MODES: dict[str, Callable[[flags.FlagValues, Sequence[str]], None]] = {
    "train": run_training,
    "evaluate": run_evaluation,
    "predict": run_prediction,
    "recompute_bn": run_recomputation,
}


def is_detector(flag_values: flags.FlagValues) -> bool:
    """Return whether the checkpoint of the workdir is a detector's."""
    return read_description(locate(workdir_of(flag_values)))["config"].get("task") == DETECTION


def refuse_arguments(arguments: Sequence[str], flag_values: flags.FlagValues) -> None:
    """Only prediction takes arguments; a stray one is most often a flag whose dashes were forgotten."""
    if not arguments:
        return
    problems = [
        f"--mode={flag_values.mode} takes no arguments besides flags, but got {' '.join(arguments)!r}. Remove them."
    ]
    problems += [f"Did you mean --mode={name}?" for name in arguments if name in MODES]
    known = command_line.names(flag_values, flag_values.config)
    problems += [f"Did you mean --{name}?" for name in arguments if f"--{name.split('=')[0]}" in known]
    problems += [f"Did you mean --config.{name}?" for name in arguments if f"--config.{name.split('=')[0]}" in known]
    raise UserError(*problems)


def workdir_of(flag_values: flags.FlagValues) -> str:
    """`--workdir`, or `runs/<config name>`."""
    if flag_values.workdir:
        return os.path.expanduser(flag_values.workdir)  # the shell leaves the ~ of --workdir=~/run alone
    if flag_values.config is None:
        raise UserError("give the run with --workdir=DIR, or its config with --config=configs/NAME.py")
    config_flag: Any = flag_values["config"]
    return str(Path("runs") / Path(config_flag.config_filename).stem)


# -------------------------------------------------------------------------------------------------- Where it runs


def what_must_be_alike(flag_values: flags.FlagValues) -> dict[str, str]:
    """What all processes of one run have in common: code, versions, and what they are asked to do."""
    fields = {}
    if flag_values.config is not None:
        fields = flatten_dict(json.loads(flag_values.config.to_json_best_effort()), sep=".")
    return {
        "--mode": flag_values.mode,
        "--workdir": str(flag_values.workdir),  # as given: ~ may lie elsewhere, but is one file system
        "--override": repr(flag_values.override),
        "--raw": repr(flag_values.raw),
        "--report": repr(flag_values.report),
        **{name: repr(value) for name, value in fields.items()},
        **{name: repr(value) for name, value in jax_settings().items()},
        **{f"version of {package}": version for package, version in versions().items()},
        "source code of resnext_jax": source_digest(),
    }


def here() -> sharding.Place:
    """All devices of all processes, and which process this is: asked once, handed down."""
    # Each process's devices next to each other: the batch is split over them in this order.
    devices = sorted(sharding.all_devices(), key=lambda device: (device.process_index, device.id))
    return sharding.Place(
        mesh=sharding.make_mesh(devices),
        platform=jax.default_backend(),
        chip=chip_of(devices[0].device_kind),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
