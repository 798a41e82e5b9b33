"""Kills a small run at random moments, again and again, and compares its end with that of the uninterrupted run.

    python experiments/faults/run.py --kills=50 --terms=20        bit for bit, on one device
    python experiments/faults/run.py --devices=12                 other devices and processes at every restart
    python experiments/faults/run.py --config.ema_decay=0.9 --config.recompute_bn_images=64    of another run

README.md beside this file says what is compared, and what was found.
"""

import argparse
import dataclasses
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common.files import locked
from experiments.faults import compare, preparation
from experiments.faults.restarts import TINY, Run, end
from resnext_jax.errors import PREEMPTED_STATUS
from resnext_jax.progress import say

PREPARE, RECOMPUTATION = "prepare", "recomputation"
LOOK_EVERY_S = 0.002
# Processes x fake devices of each: at most 8, one for each batch-norm group of the batch of 64 images.
LAYOUTS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2))
# Phases of a run: what is watched for, and for how many seconds at most a random delay goes on before the kill.
PHASES: dict[str, tuple[Callable[[Run], bool], float]] = {
    "start-up": (lambda run: True, 4.0),
    "compile": (lambda run: "compiling the step" in run.said(), 3.0),
    "step": (Run.steps, 1.5),
    "save": (Run.is_saving, 0.1),
    "evaluation": (Run.is_evaluating, 0.6),
    RECOMPUTATION: (Run.is_recomputing, 2.0),  # of batch-norm statistics, in runs that ask for it
}


@dataclasses.dataclass
class Tally:
    """What happened to the runs."""

    kills: dict[str, int] = dataclasses.field(default_factory=dict)
    terms: dict[str, int] = dataclasses.field(default_factory=dict)
    starts: int = 0
    runs: int = 0
    steps_made_again: int = 0
    slowest_term_s: float = 0.0
    differences: list[str] = dataclasses.field(default_factory=list)


def main() -> int:
    """Run the bench and return its exit status: 0 where nothing was lost and nothing differs, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=None, help="SIGKILLs (default 50)")
    parser.add_argument("--terms", type=int, default=None, help="SIGTERMs (default 20)")
    parser.add_argument("--devices", type=int, default=0, help="restarts on other devices and processes (default 0)")
    parser.add_argument("--steps", type=int, default=30, help="of a run (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", help="where the runs lie; by default a directory that is removed at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments, overrides = parser.parse_known_args()
    if unknown := [flag for flag in overrides if not flag.startswith("--config.")]:
        parser.error(f"unknown arguments: {' '.join(unknown)}; fields of the run are set with --config.FIELD=VALUE")
    if min(arguments.kills or 0, arguments.terms or 0, arguments.devices) < 0 or arguments.steps < 1:
        parser.error("--kills, --terms and --devices must be 0 or more, and --steps 1 or more")
    only_devices = arguments.devices > 0
    kills = arguments.kills if arguments.kills is not None else (0 if only_devices else 50)
    terms = arguments.terms if arguments.terms is not None else (0 if only_devices else 20)
    if not (kills or terms or only_devices):
        parser.error("nothing would be killed: give --kills, --terms or --devices more than 0")
    root = Path(arguments.workdir or tempfile.mkdtemp(prefix="faults_")).resolve()
    start_s, result, differences = time.monotonic(), {}, []
    steps, moments = arguments.steps, (random.Random(arguments.seed) for _ in range(2))
    try:
        with locked(root):
            if kills or terms:
                tally = kill_and_resume(root / "killed", steps, kills, terms, next(moments), overrides)
                result |= dataclasses.asdict(tally)
                differences += tally.differences
                print_table(tally, steps)
            if arguments.devices:
                changes = change_devices(root / "devices", steps, arguments.devices, next(moments), overrides)
                result |= changes
                differences += changes["device_differences"]
    finally:
        if not arguments.workdir:
            shutil.rmtree(root, ignore_errors=True)
    result["seconds"] = round(time.monotonic() - start_s, 1)
    say("\n".join(differences) if differences else "nothing was lost, nothing differs")
    say(f"in {result['seconds']:.0f} s")
    if arguments.json:
        print(json.dumps(result))
    return 1 if differences else 0


# --------------------------------------------------------------------------------------------------- Kill and resume


def kill_and_resume(
    root: Path, steps: int, kills: int, terms: int, rng: random.Random, overrides: Sequence[str]
) -> Tally:
    """Kill runs at random moments until all signals are sent; compare the end of each with an uninterrupted run."""
    shutil.rmtree(root, ignore_errors=True)
    arguments = (*TINY, f"--config.num_steps={steps}", "--config.log.every_steps=4", *overrides)
    calm = Run(root / "uninterrupted", arguments, root / "compiled")
    calm.start()
    end_of(calm)
    say(f"the uninterrupted run: {calm.last_step()} steps, {len(calm.rows())} rows")
    tally = Tally()
    recomputes = any(row["phase"] == compare.RECOMPUTED for row in calm.rows())
    in_runs = [phase for phase in PHASES if recomputes or phase != RECOMPUTATION]
    phases = [*in_runs, PREPARE]
    signals = [(signal.SIGKILL, phases[index % len(phases)]) for index in range(kills)]
    signals += [(signal.SIGTERM, in_runs[index % len(in_runs)]) for index in range(terms)]
    rng.shuffle(signals)
    prepared = [phase for _, phase in signals if phase == PREPARE]
    signals = [(number, phase) for number, phase in signals if phase != PREPARE]
    while signals:
        run = Run(root / f"run{tally.runs}", arguments, root / "compiled")
        strike(run, steps, signals, tally, rng, kills + terms - len(prepared))
        differences = compare.differing_bits(run.workdir, calm.workdir, run.rows(), calm.rows(), steps)
        tally.differences += [f"{run.workdir.name}: {line}" for line in differences]
        say(f"{run.workdir.name} ended after {len(run.rows())} rows: {len(differences) or 'no'} differences")
        tally.runs += 1
        if not differences:
            shutil.rmtree(run.workdir)
    if prepared:
        tally.kills[PREPARE], lines = preparation.kill_and_resume(root / "prepared", len(prepared), rng, say)
        tally.differences += lines
    return tally


def strike(run: Run, steps: int, signals: list, tally: Tally, rng: random.Random, total: int) -> None:
    """Start a run again and again, and each time send the next signal, until it ends or none is left."""
    promised, before = 0, 0  # the step that a SIGTERM said it saved; the newest row
    while True:
        number, phase = signals[0] if signals else (None, "")
        # With a warm cache nothing would be left of the compilation.
        run.start(cached=phase != "compile")
        tally.starts += 1
        hit = number is not None and reach(run, phase, rng)
        if not hit:
            end_of(run)
        if run.resumed_at() or not hit:  # else this start was killed before it went on, and made nothing
            if run.resumed_at() < promised < steps:
                tally.differences.append(f"{run.workdir.name}: went on from {run.resumed_at()}, saved was {promised}")
            tally.steps_made_again += max(0, before - run.resumed_at())
            promised, before = 0, 0
        if number is None or not hit:
            return
        signals.pop(0)
        run.send(number)
        sent_s = time.monotonic()
        (status,) = run.wait()
        before = max(before, run.last_step())
        if number == signal.SIGTERM:
            promised = max(promised, run.preempted_at())
            tally.slowest_term_s = max(tally.slowest_term_s, time.monotonic() - sent_s)
            tally.terms[phase] = tally.terms.get(phase, 0) + 1
            # Before Python listens the signal ends it; a run that was done by then says so.
            allowed = {PREEMPTED_STATUS, 0} | ({-signal.SIGTERM} if phase == "start-up" else set())
        else:
            tally.kills[phase] = tally.kills.get(phase, 0) + 1
            allowed = {-signal.SIGKILL, 0}
        if status not in allowed:
            tally.differences.append(f"{run.workdir.name}: status {status} after {number!r} in {phase}:\n{run.said()}")
        done = total - len(signals)
        say(f"{done}/{total}  {number.name} in {phase} at step {run.last_step()}, status {status}")


def reach(run: Run, phase: str, rng: random.Random) -> bool:
    """Wait for the phase and a random time; return False where the run ended before."""
    reached, longest_s = PHASES[phase]
    while not reached(run):
        if not run.alive():
            return False
        time.sleep(LOOK_EVERY_S)
    until_s = time.monotonic() + rng.uniform(0.0, longest_s)
    while time.monotonic() < until_s and run.alive():
        time.sleep(LOOK_EVERY_S)
    return run.alive()


def end_of(run: Run) -> None:
    """Wait for a run to end by itself; raise RuntimeError where it fails."""
    statuses = run.wait()
    if any(statuses):
        raise RuntimeError(f"{run.workdir} ended with status {statuses}:\n{run.said()[-4000:]}")


def print_table(tally: Tally, steps: int) -> None:
    say(f"\n{'phase':14}{'SIGKILL':>9}{'SIGTERM':>9}")
    for phase in (*PHASES, PREPARE):
        if phase == RECOMPUTATION and not (tally.kills.get(phase) or tally.terms.get(phase)):
            continue  # runs that do not ask for it have none
        say(f"{phase:14}{tally.kills.get(phase, 0):>9}{tally.terms.get(phase, 0):>9}")
    say(f"{'together':14}{sum(tally.kills.values()):>9}{sum(tally.terms.values()):>9}")
    say(f"{tally.runs} runs of {steps} steps in {tally.starts} starts")
    say(f"steps made again: {tally.steps_made_again}; slowest end after a SIGTERM: {tally.slowest_term_s:.1f} s")


# ------------------------------------------------------------------------------------------------- Changing devices


def change_devices(root: Path, steps: int, restarts: int, rng: random.Random, overrides: Sequence[str]) -> dict:
    """Restart and kill a run, each time on other devices and processes; compare it with one on one device."""
    shutil.rmtree(root, ignore_errors=True)
    arguments = (
        *TINY,
        f"--config.num_steps={steps}",
        "--config.batch_size=64",
        "--config.log.every_steps=1",
        "--config.checkpoint.every_steps=2",
        *overrides,
    )
    calm = Run(root / "one_device", arguments, root / "compiled")
    calm.start()
    end_of(calm)
    layouts, worst, lines, runs, used = [], 0.0, [], 0, []
    while restarts > 0:
        run = Run(root / f"run{runs}", arguments, root / "compiled")
        while True:
            layouts = layouts or rng.sample(LAYOUTS, len(LAYOUTS))
            layout, before = layouts.pop(), run.last_step()
            run.start(*layout)
            used.append("{}x{}".format(*layout))
            stop = min(before + rng.randint(2, 5), steps) if restarts > 0 else steps + 1
            while run.alive() and run.last_step() < stop:
                time.sleep(LOOK_EVERY_S)
            if run.last_step() >= steps or not run.alive():
                end_of(run)
                break
            run.send(signal.SIGKILL)
            run.wait()
            restarts -= 1
            say(f"{used[-1]} devices: from step {run.resumed_at()} to {run.last_step()}")
        differences, largest = compare.differing_losses(run.rows(), calm.rows())
        lines += [f"{run.workdir.name}: {line}" for line in differences]
        worst, runs = max(worst, largest), runs + 1
        say(f"{run.workdir.name} ended; largest relative difference of a loss so far {worst:.2g}")
    return {"layouts": used, "device_runs": runs, "largest_loss_difference": worst, "device_differences": lines}


if __name__ == "__main__":
    end(main)
