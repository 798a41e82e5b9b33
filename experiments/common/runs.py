"""The runs of a results folder: which are done, and those that are not, one after the other through `main.py`."""

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from experiments.common.study import ROOT, Evaluation, Run, flags_of
from resnext_jax.checkpoint import DIRECTORY, finished_steps
from resnext_jax.errors import PREEMPTED_STATUS, UserError
from resnext_jax.files import write_whole
from resnext_jax.json_files import parse_json, read_json
from resnext_jax.progress import duration, say
from resnext_jax.runtime.writer import read_metrics

# Fields that may differ between the runs of one table: none of them changes a number in it, except where images cannot
# be read. `evaluate.every_steps` is not among them: the best of more evaluations is a better one.
FREE = (
    *("log.", "checkpoint.", "watch.", "data.dir", "data.num_threads", "data.on_bad_image"),
    *("protocol", "evaluate.batch_size", "evaluate.ensemble", "evaluate.classes", "evaluate.class_map"),
    *("evaluate.real_labels", "conv_impl", "accumulation_steps", "debug_nans", "resume_changed"),
)
ROW = {"fields": dict, "top1": float, "top5": float}  # form of another evaluation; see `json_files.check_form`
SAVE_S = 60.0  # for a run to save its step when it is told to end
# Runs a script or module that ends when its standard input closes: the process that started it is gone.
CHILD = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os.kill(os.getpid(), 9)), daemon=True).start()
is_module = sys.argv[1] == "-m"
sys.argv = sys.argv[2 if is_module else 1:]
run, more = (runpy.run_module, {"alter_sys": True}) if is_module else (runpy.run_path, {})
run(sys.argv[0], run_name="__main__", **more)
"""


class Failed(Exception):
    """A process that ended with an error; the message says what to read."""


def is_done(run: Run) -> bool:
    """Return whether the run has its last evaluation; raise UserError where it was made with another recipe."""
    same_recipe(run)
    config, rows = run.config(), evaluations(run)
    if not rows or config.num_steps is not None:
        return bool(rows) and rows[-1]["step"] == config.num_steps
    # The last step is the one whose epoch is nearest to the end; a step is epoch / step of an epoch.
    step, epoch = rows[-1]["step"], rows[-1]["epoch"]
    return abs(epoch - config.num_epochs) <= 0.51 * epoch / step


def is_saved(run: Run) -> bool:
    """Return whether no checkpoint is older than the last evaluation, as after a kill in the middle of a save."""
    steps = finished_steps(epath.Path(run.workdir) / DIRECTORY)
    return not steps or steps[0] >= evaluations(run)[-1]["step"]


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Return the rows of its evaluations so far."""
    rows = [row for row in read_metrics(run.workdir) if row["phase"] == "evaluate"]
    for row in rows:
        top1, top5 = row.get("top1"), row.get("top5")
        if not all(isinstance(value, float | int) and 0 <= value <= 1 for value in (top1, top5)):
            raise UserError(
                f"{run.workdir}/metrics.jsonl has an evaluation at step {row['step']} with top1={top1!r} and "
                f"top5={top5!r}: both must be accuracies in [0, 1]. Correct that line, or remove the run."
            )
    return rows


def same_recipe(run: Run) -> None:
    """Raise UserError where the run of this name was made with fields that change its numbers."""
    path = epath.Path(run.workdir) / "config.json"
    if not path.exists():
        return
    theirs = flatten_dict(read_json(path, dict, f"Remove {run.workdir}, and the run is made again."), sep=".")
    ours = flatten_dict(json.loads(run.config().to_json_best_effort()), sep=".")
    changed = [name for name in sorted(ours.keys() & theirs.keys()) if ours[name] != theirs[name]]
    if changed := [name for name in changed if not name.startswith(FREE)]:
        raise UserError(
            f"{run.workdir} was trained with another recipe than {run.name!r} has now:",
            *(f"  {name} was {theirs[name]!r}, is {ours[name]!r}" for name in changed),
            "Keep those results and take another folder (--out=DIR), or remove that run.",
        )


def make(runs: Sequence[Run], others: Sequence[Evaluation], data_dir: str | None, logs: Path) -> list[str]:
    """Train and evaluate what is missing; return the names of what failed, which does not stop the rest."""
    images, failures, begin_s = flags_of({"data.dir": data_dir} if data_dir else {}), [], time.monotonic()
    left = [run for run in runs if not (is_done(run) and is_saved(run))]
    if len(left) < len(runs):
        say(f"{len(runs) - len(left)} of {len(runs)} runs are done")
    for number, run in enumerate(left, start=1):
        print(f"[{number}/{len(left)}] {run.name} ... ", end="", file=sys.stderr, flush=True)
        start_s, log = time.monotonic(), logs / f"{Path(run.workdir).name}.log"
        try:
            call(["main.py", *run.flags, f"--workdir={run.workdir}", *images], log)
            if not is_done(run):
                raise Failed(end_of(log, "ended without its last evaluation"))
            now_s, error = time.monotonic(), 100 * (1 - evaluations(run)[-1]["top1"])
            eta = f", ETA {duration((now_s - begin_s) / number * (len(left) - number))}" if number < len(left) else ""
            say(f"{duration(now_s - start_s)}, top-1 error {error:.2f} %{eta}")
        except Failed as failure:
            failures.append(run.name)
            say(str(failure))
    for other, run in itertools.product(others, runs):
        if run.name not in failures and not evaluated(run, other):
            words = [
                "main.py",
                "--mode=evaluate",
                f"--workdir={run.workdir}",
                "--json",
                *flags_of(other.fields),
                *images,
            ]
            try:
                row = call_json(words, logs / f"{Path(run.workdir).name}.{run.file(other).stem}.log")
                write_whole(run.file(other), json.dumps({"fields": dict(other.fields), **row}) + "\n")
            except Failed as failure:
                failures.append(f"{run.name} {other.column}")
                say(f"{failures[-1]}: {failure}")
    return failures


def evaluated(run: Run, evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the row of another evaluation of a run; None where there is none, or a damaged one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = parse_json(run.file(evaluation).read_bytes(), ROW)
        sound = all(0 <= found[name] <= 1 for name in ("top1", "top5"))
        return found if sound and found["fields"] == dict(evaluation.fields) else None


def call(words: Sequence[str], log: Path) -> None:
    """Run `python WORDS` and append its output to `log`; raise Failed with the end of the log where it fails."""
    if status := start(words, log):
        if status == PREEMPTED_STATUS:
            raise Failed(f"preempted; run the command again. Its log: {log}")
        raise Failed(end_of(log, f"failed (status {status})"))


def call_json(words: Sequence[str], log: Path) -> dict[str, Any]:
    """Run `python WORDS` with a new log and return the JSON object that it printed last; raise Failed as `call`."""
    log.unlink(missing_ok=True)
    call(words, log)
    return json.loads(next(line for line in reversed(log.read_text().splitlines()) if line.startswith("{")))


def start(words: Sequence[str], log: Path) -> int:
    """Return the status of `python WORDS`, run in the repository; on Ctrl-C let it save its step and end."""
    command = [sys.executable, "-c", CHILD, *words]
    with log.open("ab") as to:
        # Its own session: Ctrl-C reaches only this process, and SIGTERM makes the run save before it ends.
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=to, stderr=to, start_new_session=True
        )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SAVE_S)
        process.kill()
        raise
    finally:
        process.communicate()


def end_of(log: Path, what: str) -> str:
    """Return what happened with the end of the log; an instruction is shown from its beginning."""
    lines = log.read_text(errors="replace").splitlines()[-30:] if log.exists() else []
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return "\n    ".join([f"{what}; the end of {log}:", *lines[errors[-1] if errors else -6 :]])
