"""The runs of a results folder: which are done, and those that are not, one after the other through `main.py`."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from experiments.common.study import ROOT, Evaluation, Run, flags_of
from resnext_jax.checkpoint import DIRECTORY, finished_steps
from resnext_jax.errors import PREEMPTED_STATUS, UserError
from resnext_jax.files import write_whole
from resnext_jax.progress import duration
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.train.resume import flat

# Fields that may differ between the runs of one table: none of them changes a number in it, except where images cannot
# be read. `evaluate.every_steps` is not among them: the best of more evaluations is a better one.
FREE = (
    *("log.", "checkpoint.", "watch.", "data.dir", "data.num_threads", "data.on_bad_image"),
    *("protocol", "evaluate.batch_size", "evaluate.ensemble", "evaluate.classes", "evaluate.class_map"),
    *("evaluate.real_labels", "conv_impl", "accumulation_steps", "debug_nans", "resume_changed"),
)
LAST_LINES, MOST_LINES = 6, 30  # of the log of a run that failed
SAVE_S = 60.0  # for a run to save its step, when it is told to end
Say = Callable[[str], None]


def is_done(run: Run) -> bool:
    """Whether the run has its last evaluation, by what it wrote itself.

    Raises:
      UserError: it was made with another recipe.
    """
    same_recipe(run)
    rows = evaluations(run)
    if not rows:
        return False
    step, epoch, config = rows[-1]["step"], rows[-1]["epoch"], run.config()
    if config.num_steps is not None:
        return step == config.num_steps
    # The last step is that whose epoch is nearest to the end; a step is epoch / step of an epoch.
    return abs(epoch - config.num_epochs) <= 0.51 * epoch / step


def is_saved(run: Run) -> bool:
    """Whether no weights are behind the last evaluation of a run that is done.

    Checkpoints are written in the background: a kill after the last evaluation can leave an older one as the newest. A
    folder of metrics alone, as results are kept, has nothing to be behind.
    """
    steps = finished_steps(epath.Path(run.workdir) / DIRECTORY)
    return not steps or steps[0] >= evaluations(run)[-1]["step"]


def evaluations(run: Run) -> list[dict[str, Any]]:
    """The rows of its evaluations so far."""
    rows = [row for row in read_metrics(run.workdir) if row["phase"] == "evaluate"]
    wrong = next((row for row in rows for name in ("top1", "top5") if not _is_accuracy(row.get(name))), None)
    if wrong is not None:
        raise UserError(
            f"{run.workdir}/metrics.jsonl has an evaluation at step {wrong['step']} with top1={wrong.get('top1')!r} "
            f"and top5={wrong.get('top5')!r}: both must be accuracies in [0, 1]. Mend that line, or remove the run to "
            "make it again."
        )
    return rows


def _is_accuracy(value: Any) -> bool:
    return isinstance(value, float | int) and 0 <= value <= 1


def same_recipe(run: Run) -> None:
    """Raises UserError where the run of this name was made with fields that change its numbers."""
    path = epath.Path(run.workdir) / "config.json"
    if not path.exists():
        return
    try:
        theirs = flat(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove {run.workdir}, and the run is made again.") from error
    ours = flat(json.loads(run.config().to_json_best_effort()))
    changed = [
        f"  {name} was {theirs[name]!r}, is {value!r}"
        for name, value in sorted(ours.items())
        if name in theirs and theirs[name] != value and not name.startswith(FREE)
    ]
    if changed:
        raise UserError(
            f"{run.workdir} was trained with another recipe than {run.name!r} has now:",
            *changed,
            "Keep those results and take another folder (--out=DIR), or remove that run.",
        )


def make(runs: Sequence[Run], data_dir: str | None, logs: Path, say: Say) -> dict[str, str]:
    """Makes every run that is not done and saved, one line for each; one that fails does not stop the others.

    Args:
      runs: all of them.
      data_dir: of the images; None for the usual places.
      logs: the folder for what the runs print.
      say: takes a line.

    Returns:
      Of each run that failed its name, and what to read.
    """
    left = [run for run in runs if not (is_done(run) and is_saved(run))]
    if len(left) < len(runs):
        say(f"{len(runs) - len(left)} of {len(runs)} runs are done")
    failures, spent_s = {}, 0.0
    for number, run in enumerate(left):
        print(f"[{number + 1}/{len(left)}] {run.name} ... ", end="", file=sys.stderr, flush=True)
        start_s = time.monotonic()
        images = flags_of({"data.dir": data_dir}) if data_dir else []
        words = ["main.py", *run.flags, f"--workdir={run.workdir}", *images]
        log = logs / f"{Path(run.workdir).name}.log"
        status = start(words, log)
        took_s = time.monotonic() - start_s
        spent_s += took_s
        if status == 0 and is_done(run):
            error = 100 * (1 - evaluations(run)[-1]["top1"])
            rest = len(left) - number - 1
            eta = f", ETA {duration(spent_s / (number + 1) * rest)}" if rest else ""
            say(f"{duration(took_s)}, top-1 error {error:.2f} %{eta}")
        else:
            failures[run.name] = failed(status, log)
            say(failures[run.name])
    return failures


def evaluate(
    run: Run, evaluation: Evaluation, data_dir: str | None, log: Path, *, makes: bool
) -> dict[str, Any] | str | None:
    """The row of another evaluation of a run that is done: from its file, or made now.

    Returns:
      The row; what to read, where the evaluation failed; None where it is not there and not to be made.
    """
    kept = epath.Path(run.workdir) / f"evaluation_{evaluation.slug}.json"
    fields = json.loads(json.dumps(dict(evaluation.fields)))
    found = _read(kept)
    if found.get("fields") == fields:
        return found
    if not makes:
        return None
    if not is_saved(run):
        return f"not evaluated: the last checkpoint of {run.workdir} is missing. Make that run again, and it is saved."
    flags = flags_of({**evaluation.fields, **({"data.dir": data_dir} if data_dir else {})})
    log.unlink(missing_ok=True)
    status = start(["main.py", "--mode=evaluate", f"--workdir={run.workdir}", "--json", *flags], log)
    if status:
        return failed(status, log)
    row = next(line for line in reversed(log.read_text().splitlines()) if line.startswith('{"checkpoint"'))
    found = {"fields": fields, **json.loads(row)}
    write_whole(kept, json.dumps(found) + "\n")
    return found


def _read(path: epath.Path) -> dict[str, Any]:
    """The JSON object of a file; an empty one of a file that is not there, or damaged and to be made again."""
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def start(words: Sequence[str], log: Path) -> int:
    """`python WORDS` in the repository, its output in a file. Ctrl-C lets it save its step, and comes back here."""
    log.parent.mkdir(parents=True, exist_ok=True)
    child = Path(__file__).with_name("child.py")
    with log.open("ab") as file:
        # A session of its own: Ctrl-C comes to us alone, and SIGTERM makes the run save before it ends.
        process = subprocess.Popen(
            [sys.executable, str(child), *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        if process.stdin:
            process.stdin.close()


def failed(status: int, log: Path) -> str:
    """What became of a run, with the end of its log."""
    if status == PREEMPTED_STATUS:
        return f"preempted; run the command again. Its log: {log}"
    lines = log.read_text(errors="replace").splitlines()[-MOST_LINES:] if log.exists() else []
    # An instruction is shown from its beginning on.
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    lines = lines[errors[-1] if errors else -LAST_LINES :]
    what = "ended without its last evaluation" if status == 0 else f"failed (status {status})"
    return "\n    ".join([f"{what}; the end of {log}:", *lines])
