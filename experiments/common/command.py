"""The command of every experiment: makes the runs of a scale, or prints how to on a pod, then collects the table."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from etils import epath

from experiments.common import collect, files, runs
from experiments.common.study import Row, Run, Scale, Study, flags_of, runs_of
from resnext_jax.errors import INTERRUPTED_STATUS, UserError, raise_all, unknown, user_errors_reported
from resnext_jax.files import in_bucket
from resnext_jax.progress import say

FAILED_STATUS = 1


def main(study: Study, description: str | None) -> None:
    """Run the command of an experiment that trains, and exit."""
    end(lambda: execute(study, flags(study, description).parse_args()))


def end(do: Callable[[], int]) -> None:
    """Exit with the status of `do`: 0, or 1 where runs failed.

    It is 2 for a mistake of the user, 130 after Ctrl-C or SIGTERM, and 141 where no one reads the output (`| head`).
    """
    # Like Ctrl-C: if this process ended at once, a run that is saving its step would be killed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    jax.config.update("jax_platforms", "cpu")  # this process computes nothing, and only one process can use a TPU
    try:
        with user_errors_reported():
            status = do()
        sys.exit(status)
    except KeyboardInterrupt:
        again = shlex.join(["python", *sys.argv])
        print(f"\ninterrupted; what is done stays done, and this goes on with the rest: {again}", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)


def parser_of(experiment: str, takes: Mapping[str, str], description: str | None) -> argparse.ArgumentParser:
    """Return the flags that all experiments have; `takes` says in words what each scale is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    scales = "; ".join(f"{name}: {words}" for name, words in takes.items())
    parser.add_argument("--scale", default="tiny", metavar="|".join(takes), help=f"{scales} (default tiny)")
    parser.add_argument("--out", help=f"the results folder, or gs://... (default runs/{experiment}_<scale>)")
    return parser


def flags(study: Study, description: str | None) -> argparse.ArgumentParser:
    """Return the flags of an experiment that trains."""
    parser = parser_of(study.name, {name: scale.takes for name, scale in study.scales.items()}, description)
    rows = ",".join(row.slug for row in next(iter(study.scales.values())).rows[:2])
    parser.add_argument("--data_dir", help="where the images are; by default the usual places of the data set")
    parser.add_argument("--seeds", help="of the runs of each row: 0,1,2")
    parser.add_argument("--rows", help=f"only these are made: {rows}; the table has all")
    parser.add_argument("--run", action="store_true", help="full scale: make the runs here, print no commands")
    parser.add_argument("--collect", action="store_true", help="make nothing, collect what is there")
    return parser


def execute(study: Study, arguments: argparse.Namespace) -> int:
    """Do what the flags ask for, and return the exit status."""
    name, out = arguments.scale, files.folder_of(arguments, study.name, study.scales)
    scale = study.scales[name]
    seeds = list(scale.seeds) if arguments.seeds is None else seeds_of(arguments.seeds)
    all_runs = runs_of(scale, out, seeds)
    rows = list(scale.rows) if arguments.rows is None else chosen(scale, arguments.rows)
    mine = [run for run in all_runs if run.row in rows]
    prints = scale.on_pod and not arguments.run and not arguments.collect
    if prints:
        print_commands(mine, arguments, out)
        if in_bucket(out) or not Path(out).exists():
            return 0
    if arguments.collect and not epath.Path(out).exists():
        raise UserError(f"there is no results folder {out} to collect: give --out=DIR of one that was made.")
    logs, failures = files.claim_folder(out, study.name, name, {row.slug for row in scale.rows}), []
    if not prints and not arguments.collect:
        with files.locked(logs, [run.seed * len(scale.rows) + scale.rows.index(run.row) for run in mine]):
            say(f"{study.title}, --scale={name}: {len(mine)} of {len(all_runs)} runs, {scale.takes}")
            say(f"results in {out}, the output of every run beside it in *.log")
            data_dir = files.absolute(arguments.data_dir) if arguments.data_dir else None
            failures = runs.make(mine, scale.evaluations, data_dir, logs)
    done = [run for run in all_runs if runs.is_done(run)]
    if prints and not done:
        return 0
    if arguments.collect and not done:
        asked = "" if arguments.seeds is None else f" of --seeds={arguments.seeds}"
        raise UserError(
            f"no run{asked} is done in {out}: there is nothing to collect, and nothing was written. Runs lie in "
            f"{all_runs[0].row.slug}_seed{all_runs[0].seed} and so on: let one come to its end, or give the seeds that "
            "are there with --seeds."
        )
    results = collect.rows_of(scale, all_runs, done)
    text, numbers = collect.table(study, name, results, len(seeds)), collect.as_json(study, name, results)
    files.write(out, text, numbers, (lambda figure: study.draw(figure, results)) if done else None)
    if failures:
        say("failed: " + "; ".join(failures) + ". What was said is above; correct it and run the command again.")
    return FAILED_STATUS if failures else 0


def seeds_of(text: str) -> list[int]:
    """Return the numbers of `0,1,2`; raise UserError where they are none."""
    seeds = [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text} must be different whole numbers from 0 on: --seeds=0,1,2")
    return seeds


def chosen(scale: Scale, text: str) -> list[Row]:
    """Return the rows with these names or slugs; raise UserError where there is no such row."""
    names = [name for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--rows={text} names no row: leave it out for all, or --rows=NAME,NAME.")
    known = {key for row in scale.rows for key in (row.name, row.slug)}
    raise_all([unknown("row", name, {row.slug for row in scale.rows}) for name in names if name not in known])
    return [row for row in scale.rows if row.name in names or row.slug in names]


def print_commands(made: Sequence[Run], arguments: argparse.Namespace, out: str) -> None:
    """Print for every row the command that trains its seeds on a pod, one after the other."""
    shared = arguments.out or f"/shared/runs/{Path(out).name}"
    data = flags_of({"data.dir": arguments.data_dir or "/shared/DATA"})
    print("# On all hosts of a slice, with run.sh of docs/pod.md, which also says how tmux keeps a command when the")
    print("# connection is lost. NAME, ZONE and /shared are yours.")
    for row in dict.fromkeys(run.row for run in made):
        published = ", ".join(f"{column} {value} %" for column, value in row.published.items())
        words = shlex.join([f"--config=configs/{row.config}.py", *flags_of(row.fields), *data])
        command = (
            "cd resnext_jax &&\n"
            f"  for seed in {' '.join(str(run.seed) for run in made if run.row is row)}; do\n"
            f"    bash run.sh {words} \\\n"
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
