"""The command of every experiment: makes the runs of a scale, or prints how to on a pod, then collects the table."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax

from experiments.common import collect, files, runs
from experiments.common.study import Evaluation, Run, Study, chosen, flags_of, runs_of
from resnext_jax.errors import INTERRUPTED_STATUS, READER_GONE_STATUS, UserError, reader_is_gone, report_error
from resnext_jax.files import in_bucket
from resnext_jax.progress import say

FAILED_STATUS = 1


def main(study: Study, description: str | None) -> None:
    """Runs the command of an experiment and exits.

    Status: 0 when the table is complete or the commands are printed, 1 where runs failed, 2 for a mistake that the user
    can mend, 130 after Ctrl-C or SIGTERM, 141 where nobody reads the table (`| head`).
    """
    parser = parser_of(study.name, {name: scale.takes for name, scale in study.scales.items()}, description)
    add_flags(parser, study)
    end(partial(execute, study, parser.parse_args()))


def end(do: Callable[[], int]) -> None:
    """Does it, and exits with its status: without a traceback for a mistake of the user, Ctrl-C or `| head`."""
    # As Ctrl-C: were we gone at once, a run that is saving its step would be killed in the middle.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed in this process, and a TPU has room for one alone
    try:
        status = do()
        sys.stdout.flush()
    except UserError as error:
        status = report_error(error)
    except KeyboardInterrupt:
        again = shlex.join(["python", *sys.argv])
        print(f"\ninterrupted; what is done stays done, and this goes on with the rest: {again}", file=sys.stderr)
        status = INTERRUPTED_STATUS
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        status = READER_GONE_STATUS
    sys.exit(status)


def parser_of(experiment: str, takes: Mapping[str, str], description: str | None) -> argparse.ArgumentParser:
    """The flags that all experiments have.

    Args:
      experiment: its name.
      takes: what each scale is, in words.
      description: the docstring of the command.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    scales = "; ".join(f"{name}: {words}" for name, words in takes.items())
    parser.add_argument("--scale", default="tiny", metavar="|".join(takes), help=f"{scales} (default tiny)")
    parser.add_argument("--out", help=f"the results folder, or gs://... (default runs/{experiment}_<scale>)")
    return parser


def add_flags(parser: argparse.ArgumentParser, study: Study) -> None:
    """The flags of experiments that train; the rows of an example are of the first scale."""
    rows = ",".join(row.slug for row in next(iter(study.scales.values())).rows[:2])
    parser.add_argument("--data_dir", help="where the images lie; by default the data set's usual places")
    parser.add_argument("--seeds", help="of the runs of each row: 0,1,2")
    parser.add_argument("--rows", help=f"only these are made: {rows}; the table has all")
    parser.add_argument("--run", action="store_true", help="full scale: make the runs here, print no commands")
    parser.add_argument("--collect", action="store_true", help="make nothing, collect what is there")


def execute(study: Study, arguments: argparse.Namespace) -> int:
    """What the flags ask for; returns the exit status."""
    if arguments.rows is not None and not arguments.rows.strip(", "):
        raise UserError(f"--rows={arguments.rows} names no row: leave it out for all, or --rows=NAME,NAME.")
    wanted = chosen(study, arguments.scale, [name for name in (arguments.rows or "").split(",") if name])
    scale = study.scales[arguments.scale]
    seeds = list(scale.seeds) if arguments.seeds is None else seeds_of(arguments.seeds)
    out = files.folder_of(arguments.out, study.name, arguments.scale)
    data_dir = files.absolute(arguments.data_dir) if arguments.data_dir else None
    all_runs = runs_of(scale, out, seeds)
    made_here = [run for run in all_runs if run.row in wanted]
    prints = scale.on_pod and not arguments.run and not arguments.collect
    if prints:
        print_commands(made_here, arguments, out)
        if in_bucket(out) or not Path(out).exists():
            return 0
    elif not arguments.collect:
        say(f"{study.title}, --scale={arguments.scale}: {len(made_here)} of {len(all_runs)} runs, {scale.takes}")
        say(f"results in {out}, the output of every run beside it in *.log")
    elif arguments.out and not files.epath.Path(out).exists():
        raise UserError(f"there is no results folder {out} to collect: give --out=DIR of one that was made.")
    files.claim_folder(out, study.name, arguments.scale, {row.slug for row in scale.rows})
    logs = files.logs_of(out, study.name, arguments.scale)
    failures = {} if prints or arguments.collect else runs.make(made_here, data_dir, logs, say)

    done = [run for run in all_runs if runs.is_done(run)]
    if prints and not done:
        return 0
    if arguments.collect and not done:
        asked = "" if arguments.seeds is None else f" of --seeds={arguments.seeds}"
        raise UserError(
            f"no run{asked} is done in {out}: there is nothing to collect, and nothing was written. Runs lie in "
            f"{all_runs[0].row.slug}_seed{all_runs[0].seed} and so on: let one come to its end, or "
            "give the seeds that are there with --seeds."
        )
    others, wrong = other_evaluations(scale.evaluations, done, data_dir, logs, makes=not (prints or arguments.collect))
    failures |= wrong
    results = [
        collect.result_of(
            row,
            [run for run in all_runs if run.row is row],
            [run for run in done if run.row is row],
            others,
            scale.evaluations,
        )
        for row in scale.rows
    ]
    text = collect.table(study, arguments.scale, results, seeds)
    draw = partial(study.draw, results=results) if done else None
    written = files.write(out, text, collect.as_json(study, arguments.scale, results), draw)
    print(f"\n{text}\n" + "\n".join(map(str, written)))
    if failures:
        say("failed: " + "; ".join(failures) + ". What was said is above; run the command again when it is mended.")
    return FAILED_STATUS if failures else 0


def seeds_of(text: str) -> list[int]:
    """`0,1,2`."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = [-1]
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text} must be different whole numbers from 0 on: --seeds=0,1,2")
    return seeds


def other_evaluations(
    evaluations: Sequence[Evaluation], done: Sequence[Run], data_dir: str | None, logs: Path, *, makes: bool
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The other evaluations of the runs that are done, those on file or made now: errors by workdir, and failures."""
    errors: dict[str, dict[str, float]] = {}
    failures: dict[str, str] = {}
    for evaluation in evaluations:
        for run in done:
            log = logs / f"{Path(run.workdir).name}.{evaluation.column.replace(' ', '_')}.log"
            found = runs.evaluate(run, evaluation, data_dir, log, makes=makes)
            if isinstance(found, str):
                failures[f"{run.name} {evaluation.column}"] = found
                say(f"{run.name} {evaluation.column}: {found}")
            elif found is not None:
                columns = {f"{evaluation.column} top-{k}": 100 * (1 - found[f"top{k}"]) for k in (1, 5)}
                errors.setdefault(run.workdir, {}).update(columns)
    return errors, failures


def print_commands(made: Sequence[Run], arguments: argparse.Namespace, out: str) -> None:
    """For every row the command that trains its seeds on a pod, one after the other."""
    shared = arguments.out or f"/shared/runs/{Path(out).name}"
    data = flags_of({"data.dir": arguments.data_dir or "/shared/DATA"})
    print("# On all hosts of a slice, with run.sh of docs/pod.md, which also says how tmux keeps a command when the")
    print("# connection is lost. NAME, ZONE and /shared are yours.")
    for row in dict.fromkeys(run.row for run in made):
        mine = [run for run in made if run.row is row]
        published = ", ".join(f"{column} {collect.digits(value)} %" for column, value in row.published.items())
        flags = shlex.join([*(flag for flag in mine[0].flags if not flag.startswith("--config.seed=")), *data])
        command = (
            "cd resnext_jax &&\n"
            f"  for seed in {' '.join(str(run.seed) for run in mine)}; do\n"
            f"    bash run.sh {flags} \\\n"
            f"      --config.seed=$seed --workdir={shlex.quote(f'{shared}/{row.slug}')}_seed$seed || exit\n"
            "  done"
        )
        print(f"\n# {row.name}; published errors: {published}" if published else f"\n# {row.name}")
        print(f"gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command={shlex.quote(command)}")
    asked = {name: getattr(arguments, name) for name in ("data_dir", "seeds", "rows")}
    same = [f"--{name}={value}" for name, value in asked.items() if value]
    tell = "python " + shlex.join([sys.argv[0], f"--scale={arguments.scale}", f"--out={shared}", *same])
    print(f"\n# What is there by then, as a table:\n{tell} --collect")
    print(f"# Or on this machine alone, one run after the other, also what is then left to evaluate:\n{tell} --run")
