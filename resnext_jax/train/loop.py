"""A run from top to bottom: where it starts, what surrounds the steps, the steps, and the summary.

The loop knows no model and no data. A `Task` says what is trained; `Cadence` says what follows a step.
"""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from resnext_jax.errors import Preempted, UserError
from resnext_jax.progress import say
from resnext_jax.runtime import preemption
from resnext_jax.sharding import Place, raise_if_any, to_global
from resnext_jax.train import resume
from resnext_jax.train.cadence import cadence_of
from resnext_jax.train.monitor import Monitor, open_monitor
from resnext_jax.train.nans import NanDebugger
from resnext_jax.train.task import Task
from resnext_jax.train.workdir import (
    RunWriter,
    check_shared,
    prepare_workdir,
    summarize,
    warn_of_lost_rows,
    write_facts,
)
from resnext_jax.types import PyTree, TrainState


def train(task: Task, config: ConfigDict, workdir: str, place: Place, environment: dict[str, Any]) -> None:
    """Train to the end, from the newest checkpoint of `workdir` if there is one.

    Args:
      config: resolved config; the loop reads `log`, `evaluate`, `checkpoint`, `watch` and what stops a run.
      workdir: directory of the run, created if need be. The README lists what it holds.
      environment: versions and devices, written beside the config.

    Raises:
      UserError: a mistake that the user can fix. Every checkpoint is untouched.
      Preempted: after a SIGTERM, once the state is saved.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            "JAX_DISABLE_JIT is set, and the training step is compiled before it runs: unset it. To find the operation "
            "that makes a NaN, take --config.debug_nans=true."
        )
    log = say if place.is_primary else lambda line: None
    cadence = cadence_of(config, task.total_steps, task.steps_per_epoch)
    description = {
        "config": json.loads(config.to_json_best_effort()),
        "dataset": task.dataset,
        "settings": resume.jax_settings(),
    }
    with contextlib.ExitStack() as stack:
        notice = stack.enter_context(preemption.Preemption(place.process_count))

        # ---------------------------------------------------------------------------------------- Where it starts
        open_workdir(workdir, place)
        lock, newest = resume.claim(workdir, place, stack, log)
        checkpoints = resume.open_checkpoints(config, task, cadence, workdir)
        stack.callback(checkpoints.close)
        start = resume.find_start(
            task, checkpoints, newest, description, workdir, place, allow_changes=config.resume_changed, log=log
        )
        state = start.state
        warn_of_lost_rows(workdir, start.lost_rows, log)
        if start.step >= task.total_steps and not (start.owes_evaluation or start.owes_final):
            log(f"{workdir} is done: {start.step:,} of {task.total_steps:,} steps.")
            summarize(workdir, task, log, start.lost_rows)
            return
        if start.step:
            log(f"resuming {workdir} at step {start.step:,} of {task.total_steps:,}")

        # ------------------------------------------------------------------------------ What surrounds the steps
        batches = stack.enter_context(contextlib.closing(task.batches(start.step)))
        if place.is_primary:
            write_facts(config, workdir, environment, state.params, task.model_name, log)
        writer = RunWriter(workdir, task, checkpoints, description, lock, start.step, start.lost_rows)
        stack.callback(writer.close)
        monitor = open_monitor(task, config, start, workdir, place, log)
        stack.callback(monitor.close)
        step_fn = CompiledStep(task.train_step, place, monitor, log)
        if config.debug_nans:
            step_fn = NanDebugger(step_fn, task.plain_step)
        if start.owes_evaluation:
            with monitor.paused():
                writer.evaluate(state.variables, start.step)

        # ------------------------------------------------------------------------------------------------- Steps
        for step in range(start.step + 1, task.total_steps + 1):
            batch = to_global(place.mesh, monitor.next_batch(batches, step))
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, sums = step_fn(state, batch)
            monitor.after_step(step, sums)
            stops = notice.requested()

            if cadence.logs(step):
                writer.write_row(step, "train", monitor.row(step) | {"learning_rate": task.learning_rate(step - 1)})
            if cadence.saves(step) or stops:
                progress = {"window": monitor.carried(), "evaluated": not cadence.evaluates(step)}
                writer.save(state, step, progress)
            if stops:
                checkpoints.wait()
                raise Preempted(preemption.message(step) if place.is_primary else "")
            if cadence.evaluates(step):
                with monitor.paused():
                    writer.evaluate(state.variables, step)

        # ----------------------------------------------------------------------------------------------- The end
        checkpoints.wait()
        if start.owes_final:
            with monitor.paused():
                writer.evaluate_finally(state.variables, max(start.step, task.total_steps))
        summarize(workdir, task, log, start.lost_rows)


def open_workdir(workdir: str, place: Place) -> None:
    """Create the workdir and test that all processes can write and see it."""
    error = None
    try:
        prepare_workdir(workdir)
    except UserError as caught:
        error = caught
    raise_if_any(place, error)
    check_shared(workdir, place)


class CompiledStep:
    """Compiles a step for each shape of batches when it first meets it, and says so."""

    def __init__(self, step: Any, place: Place, monitor: Monitor, log: Callable[[str], None]):
        self._step, self._place, self._monitor, self._log = step, place, monitor, log
        self._compiled: dict[Any, Callable] = {}

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Any]:
        key = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))
        if key not in self._compiled:
            with self._monitor.paused():
                self._log(
                    f"compiling the step for {self._place.mesh.size} {self._place.platform} device(s); "
                    "this can take from seconds (small networks) to minutes (101 layers)"
                )
                start_s = time.monotonic()
                self._compiled[key] = self._step.lower(state, batch).compile()
                self._log(f"compiled in {time.monotonic() - start_s:.1f} s")
        return self._compiled[key](state, batch)
