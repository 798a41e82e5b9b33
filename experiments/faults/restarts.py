"""A small run, started as its users start it: its workdir, what it has done so far, how it ends."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from resnext_jax.errors import user_errors_reported
from resnext_jax.runtime.writer import read_metrics

ROOT = Path(__file__).resolve().parents[2]
EVALUATE_EVERY_STEPS = 10
TINY = (
    "--config=configs/quickstart.py",
    "--config.model.name=resnext11_4x2d_tiny",
    "--config.batch_size=32",
    "--config.bn_group_images=8",
    "--config.schedule.name=step",
    "--config.schedule.warmup_epochs=0",
    # Small: where two programs round differently, some ReLU flips sooner or later, and a large rate takes the losses
    # of two device counts apart.
    "--config.learning_rate=0.0001",
    f"--config.evaluate.every_steps={EVALUATE_EVERY_STEPS}",
    "--config.checkpoint.every_steps=5",
    "--config.checkpoint.keep_newest=3",
)


def end(main: Callable[[], int | None]) -> None:
    """Exit with the status of `main`; without a traceback after Ctrl-C, which its runs receive too."""
    try:
        with user_errors_reported():
            status = main()
        sys.exit(status)
    except KeyboardInterrupt:
        print("\ninterrupted; the next start begins anew", file=sys.stderr)
        sys.exit(130)


class Run:
    """One workdir and the processes that write it.

    Args:
      workdir: of the run.
      arguments: flags of `main.py` besides `--workdir`.
      cache: directory of the compilation cache.
    """

    def __init__(self, workdir: Path, arguments: Sequence[str], cache: Path):
        self.workdir, self._arguments, self._cache = workdir, arguments, cache
        self._processes: list[subprocess.Popen] = []
        self._said = workdir.parent / f"{workdir.name}.log"
        self._said_from = 0

    def start(self, processes: int = 1, devices_each: int = 1, *, cached: bool = True) -> None:
        """Start the command, once per process; without `cached` it compiles as at the very first start."""
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        self._said_from = self._said.stat().st_size if self._said.exists() else 0
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices_each),
            "JAX_ENABLE_COMPILATION_CACHE": "1" if cached else "0",
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "MPLBACKEND": "Agg",
            "PYTHONUNBUFFERED": "1",
        }
        commands = [[sys.executable, "main.py", *self._arguments, f"--workdir={self.workdir}"]] * processes
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                shared = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}", f"--num_processes={len(commands)}"
            commands = [[*command, *shared, f"--process_id={index}"] for index, command in enumerate(commands)]
        with self._said.open("ab") as log:
            self._processes = [
                subprocess.Popen(each, cwd=ROOT, env=environment, stdout=log, stderr=log) for each in commands
            ]

    def alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def wait(self, timeout_s: float = 600.0) -> list[int]:
        """Return the exit statuses; processes that do not end in time are killed, and that is an error."""
        try:
            return [process.wait(timeout_s) for process in self._processes]
        except subprocess.TimeoutExpired:
            for process in self._processes:
                process.kill()
                process.wait()
            raise RuntimeError(f"{self.workdir} did not end within {timeout_s:.0f} s:\n{self.said()[-2000:]}") from None

    def said(self) -> str:
        """Return what the processes of this start have printed so far."""
        return self._said.read_bytes()[self._said_from :].decode(errors="replace") if self._said.exists() else ""

    def rows(self) -> list[dict]:
        """Return the rows of metrics.jsonl, without an incomplete last one."""
        return read_metrics(str(self.workdir))

    def last_step(self) -> int:
        return max((row["step"] for row in self.rows()), default=0)

    def resumed_at(self) -> int:
        """Return the step at which this start resumed; 0 where it began, or did not come that far."""
        found = re.search(r"resuming \S+ at step ([\d,]+)|is done: ([\d,]+) of", self.said())
        return int((found[1] or found[2]).replace(",", "")) if found else 0

    def preempted_at(self) -> int:
        """Return the step that this start said it saved after a SIGTERM; 0 where it did not."""
        found = re.search(r"preempted \(SIGTERM\): saved at step ([\d,]+)", self.said())
        return int(found[1].replace(",", "")) if found else 0

    def is_saving(self) -> bool:
        """Return whether a checkpoint is being written, and not left from an earlier start."""
        directory = self.workdir / "checkpoints"
        return self.steps() and directory.is_dir() and any("tmp" in path.name for path in directory.iterdir())

    def is_evaluating(self) -> bool:
        """Return whether an evaluation was due at the newest row and has not been made."""
        rows = self.rows() if self.steps() else []
        return bool(rows) and rows[-1]["phase"] == "train" and rows[-1]["step"] % EVALUATE_EVERY_STEPS == 0

    def is_recomputing(self) -> bool:
        """Return whether the last evaluation is made, and that of recomputed batch-norm statistics is not."""
        rows = self.rows()
        last = rows and rows[-1]["phase"] == "evaluate" and f"--config.num_steps={rows[-1]['step']}"
        return last in self._arguments

    def steps(self) -> bool:
        """Return whether this start has come to its steps."""
        return "compiled in" in self.said()
