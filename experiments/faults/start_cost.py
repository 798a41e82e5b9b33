"""What a start costs: the first one, the second with its compiled programs kept, and one that resumes.

    python experiments/faults/start_cost.py [--config=configs/resnext50_32x4d.py] [--batch_size=8]

Each start is `python main.py` on synthetic images, timed by what it prints, and killed after its first steps.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.faults.restarts import Run, end

# What marks the end of a part of a start, in their order.
MARKS = ("compiling the step", "compiled in")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/resnext50_32x4d.py")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    flags = (
        f"--config={arguments.config}",
        "--config.data.name=synthetic",
        f"--config.batch_size={arguments.batch_size}",
        f"--config.bn_group_images={arguments.batch_size}",
        f"--config.evaluate.batch_size={arguments.batch_size}",
        "--config.checkpoint.every_steps=2",
        "--config.log.every_steps=1",
        "--config.learning_rate=0.001",
        "--config.compute_dtype=float32",
    )
    root = Path(tempfile.mkdtemp(prefix="start_cost_"))
    results = {}
    print(f"{'start':26}{'before compiling':>18}{'compiling':>12}{'to the 1st row':>16}{'beyond compiling':>18}")
    try:
        for name, workdir in (("first", "a"), ("second, cache kept", "b"), ("resumed, cache kept", "a")):
            run = Run(root / workdir, flags, root / "compiled")
            results[name] = times = time_start(run)
            widths = {"before_s": 18, "compile_s": 12, "first_row_s": 16, "beyond_s": 18}
            print(f"{name:26}" + "".join(f"{times[key]:>{width}.1f}" for key, width in widths.items()), flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if arguments.json:
        print(json.dumps(results))


def time_start(run: Run) -> dict[str, float]:
    """Return the seconds of a start: to the compilation, of it, to the first row, and all but it and one step."""
    start_s = time.monotonic()
    run.start()
    seen = [_until(run, lambda mark=mark: mark in run.said()) - start_s for mark in MARKS]
    before_rows = run.resumed_at()
    first_s = _until(run, lambda: _newer(run, before_rows, 1)) - start_s
    second_s = _until(run, lambda: _newer(run, before_rows, 2)) - start_s
    _until(run, lambda: any((run.workdir / "checkpoints").glob("[0-9]*[02468]/commit_success.txt")))
    run.send(signal.SIGKILL)
    run.wait()
    compile_s = float(run.said().partition("compiled in ")[2].split()[0])
    step_s = second_s - first_s
    return {
        "before_s": seen[0],
        "compile_s": compile_s,
        "first_row_s": first_s - seen[1],
        "beyond_s": first_s - compile_s - step_s,
    }


def _newer(run: Run, step: int, count: int) -> bool:
    return sum(row["step"] > step for row in run.rows()) >= count


def _until(run: Run, reached) -> float:
    while not reached():
        if not run.alive():
            raise RuntimeError(f"the run ended:\n{run.said()[-3000:]}")
        time.sleep(0.01)
    return time.monotonic()


if __name__ == "__main__":
    end(main)
