"""A small run, started as its users start it: where it lies, what it has done so far, how it ends."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
    """Exits with the status of `main`; without a traceback after Ctrl-C, which its runs have got too."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; the next start begins anew", file=sys.stderr)
        sys.exit(130)


@dataclasses.dataclass(frozen=True)
class Devices:
    """How many processes, and how many fake devices each of them has."""

    processes: int = 1
    devices_each: int = 1

    def __str__(self) -> str:
        return f"{self.processes}x{self.devices_each}"


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

    def start(self, devices: Devices = Devices(), *, cached: bool = True) -> None:
        """Starts the command, once per process; without `cached` it compiles as at the very first start."""
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        self._said_from = self._said.stat().st_size if self._said.exists() else 0
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices.devices_each),
            "JAX_ENABLE_COMPILATION_CACHE": "1" if cached else "0",
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "MPLBACKEND": "Agg",
            "PYTHONUNBUFFERED": "1",
        }
        if devices.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
            environment["JAX_NUM_PROCESSES"] = str(devices.processes)
        command = [sys.executable, "main.py", *self._arguments, f"--workdir={self.workdir}"]
        with self._said.open("ab") as log:
            self._processes = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment | ({"JAX_PROCESS_ID": str(index)} if devices.processes > 1 else {}),
                    stdout=log,
                    stderr=log,
                )
                for index in range(devices.processes)
            ]

    def alive(self) -> bool:
        """Whether every process still runs."""
        return all(process.poll() is None for process in self._processes)

    def send(self, number: int) -> None:
        """Sends a signal to every process."""
        for process in self._processes:
            process.send_signal(number)

    def wait(self, timeout_s: float = 600.0) -> list[int]:
        """The exit statuses; processes that do not end in time are killed, and that is an error."""
        try:
            return [process.wait(timeout_s) for process in self._processes]
        except subprocess.TimeoutExpired:
            for process in self._processes:
                process.kill()
                process.wait()
            raise RuntimeError(f"{self.workdir} did not end within {timeout_s:.0f} s:\n{self.said()[-2000:]}") from None

    def said(self) -> str:
        """What the processes of this start have printed so far."""
        if not self._said.exists():
            return ""
        with self._said.open("rb") as file:
            file.seek(self._said_from)
            return file.read().decode(errors="replace")

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl, without a last one that is torn."""
        path = self.workdir / "metrics.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def last_step(self) -> int:
        """Of the newest row."""
        return max((row["step"] for row in self.rows()), default=0)

    def resumed_at(self) -> int:
        """The step at which this start went on; 0 where it began, or did not come that far."""
        found = re.search(r"resuming \S+ at step ([\d,]+)|is done: ([\d,]+) of", self.said())
        return int((found[1] or found[2]).replace(",", "")) if found else 0

    def preempted_at(self) -> int:
        """The step that this start said it saved after a SIGTERM; 0 where it did not."""
        found = re.search(r"preempted \(SIGTERM\): saved at step ([\d,]+)", self.said())
        return int(found[1].replace(",", "")) if found else 0

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written, and not left from an earlier start."""
        directory = self.workdir / "checkpoints"
        return self.steps() and directory.is_dir() and any("tmp" in path.name for path in directory.iterdir())

    def is_evaluating(self) -> bool:
        """Whether an evaluation was due at the newest row and has not been made."""
        rows = self.rows() if self.steps() else []
        return bool(rows) and rows[-1]["phase"] == "train" and rows[-1]["step"] % EVALUATE_EVERY_STEPS == 0

    def is_recomputing(self) -> bool:
        """Whether the last evaluation is made, and that of recomputed batch-norm statistics is not."""
        rows = self.rows()
        return bool(rows) and rows[-1]["phase"] == "evaluate" and rows[-1]["step"] == self._num_steps()

    def _num_steps(self) -> int:
        return int(next(flag for flag in self._arguments if flag.startswith("--config.num_steps=")).split("=")[1])

    def steps(self) -> bool:
        """Whether this start has come to its steps."""
        return "compiled in" in self.said()
