"""The story of a run, top to bottom: what is trained, where it was left, then step after step to the summary."""

import contextlib
import json
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from resnext_jax.builders import (
    facts,
    open_data,
    present_classes,
    same_classes,
    same_on_all_hosts,
    training_batches,
)
from resnext_jax.errors import Preempted, UserError
from resnext_jax.evaluate.recomputed import recompute_bn
from resnext_jax.evaluate.validation import evaluate_all, show_progress
from resnext_jax.progress import say as tell
from resnext_jax.runtime import preemption
from resnext_jax.runtime.curves import draw_curves
from resnext_jax.runtime.heartbeats import Heartbeats
from resnext_jax.runtime.profiling import Profiler
from resnext_jax.runtime.writer import MetricsWriter, read_metrics
from resnext_jax.sharding import Place, from_first_process, raise_if_any, to_global
from resnext_jax.train import report
from resnext_jax.train.assemble import assemble, jit_statistics
from resnext_jax.train.faults import not_finite
from resnext_jax.train.finetune import first_state
from resnext_jax.train.hunt import Hunter
from resnext_jax.train.report import RECOMPUTED
from resnext_jax.train.resume import check_resumable, check_whole, claim, open_checkpoints
from resnext_jax.train.step import all_finite
from resnext_jax.train.window import open_window
from resnext_jax.types import PyTree, TrainState


def train(config: ConfigDict, workdir: str, place: Place, environment: dict[str, Any]) -> None:
    """Trains to the end, from the newest checkpoint of `workdir` if there is one.

    Args:
      config: see configs/common.py.
      workdir: created if need be; the README lists what it holds.
      place: the devices and this process.
      environment: versions and devices, written beside the config.

    Raises:
      UserError: anything that the user can mend, with every checkpoint untouched.
      Preempted: after a SIGTERM, when all is saved.
    """
    with contextlib.ExitStack() as stack:
        _train(config, workdir, place, environment, stack)


def _train(
    config: ConfigDict, workdir: str, place: Place, environment: dict[str, Any], stack: contextlib.ExitStack
) -> None:
    say = tell if place.is_primary else lambda line: None
    notice = stack.enter_context(preemption.Preemption(place.process_count))

    # ------------------------------------------------------------------------------------------- What is trained
    mistake = None
    try:
        train_source, validation_source = open_data(config, "train"), open_data(config, "validation")
        run = assemble(config, train_source.info, place, present=present_classes(config, validation_source))
        run.state_shapes(place.mesh)  # a network that cannot be is known before anything is written
        report.prepare_workdir(workdir)
    except UserError as error:
        mistake = error
    raise_if_any(place, mistake)
    same_on_all_hosts(place, train=train_source, validation=validation_source)
    title = report.model_title(config)
    description = {"config": json.loads(config.to_json_best_effort()), "dataset": facts(train_source.info)}

    # ---------------------------------------------------------------------------------------- Where it was left
    report.check_shared(workdir, place)
    lock, newest = claim(workdir, place, stack, say)
    rows = read_metrics(workdir)
    checkpoints = open_checkpoints(config, run, workdir, rows)
    stack.callback(checkpoints.close)
    if newest is None:
        state, start_step, left = first_state(config, run, description["dataset"], place, say), 0, {}
    else:
        start_step, saved = newest, checkpoints.description(newest)
        check_whole(saved, newest, workdir)
        same_classes(description["dataset"], saved["dataset"], workdir)
        state = checkpoints.restore(newest, run.state_shapes(place.mesh))
        check_resumable(description, saved, f"of step {newest} in {workdir}", allow=config.resume_changed, say=say)
        left = saved.get("progress", {})
    # What a run may have been left without: the evaluation of the newest checkpoint, and what follows the last step.
    made = {row["phase"] for row in rows if row["step"] == start_step}
    evaluates = bool(from_first_process(place, not left.get("evaluated", True) and "evaluate" not in made))
    recomputes = config.recompute_bn_images > 0
    if start_step >= run.total_steps:
        recomputes = bool(from_first_process(place, recomputes and RECOMPUTED not in made))
    if start_step >= run.total_steps and not (evaluates or recomputes):
        say(f"{workdir} is done: {start_step:,} of {run.total_steps:,} steps.")
        report.summarize(workdir, title, say)
        return
    if start_step:
        say(f"resuming {workdir} at step {start_step:,} of {run.total_steps:,}")

    # ------------------------------------------------------------------------------------------------- The input
    batches = training_batches(config, train_source, place, start_step, run.total_steps)
    stack.callback(batches.close)

    # From here on the workdir is this run's: everything about its config has been checked.
    writer = None
    if place.is_primary:
        report.write_facts(config, workdir, environment, state.params, say)
        writer = MetricsWriter(workdir, start_step)
        stack.callback(writer.close)

    # -------------------------------------------------------------------------------------- What a step may bring
    progress = show_progress(place, "train", run.total_steps, "step", start_step)
    stack.callback(progress.close)
    is_finite = jax.jit(all_finite)
    hunter = Hunter(run.plain_step) if config.debug_nans else None
    window = open_window(
        config, run, workdir, place, rows, start_step, left, lambda line: (progress.close(), say(line))
    )
    profiler = Profiler(workdir, config.watch.profile_steps, place.is_primary, say)
    stack.callback(profiler.close)
    heartbeats = Heartbeats(workdir) if place.is_primary else None

    def save(state: TrainState, step: int, evaluated: bool) -> None:
        if not is_finite(state):
            raise not_finite("norm of parameters and statistics", step, workdir)
        if writer and lock:
            writer.flush()
            lock.check()
        checkpoints.save(state, description, None, {"window": window.carried(), "evaluated": evaluated})

    def validate(variables: PyTree, step: int, phase: str) -> None:
        progress.close()
        evaluation = evaluate_all(config, run.evaluation_step, variables, validation_source, place)
        if phase == "evaluate":
            checkpoints.top1[step] = evaluation["top1"]
        if writer:
            writer.write(step, step / run.steps_per_epoch, phase, evaluation)
            writer.flush()
            draw_curves(read_metrics(workdir), workdir, title)

    def recompute(variables: PyTree, step: int) -> None:
        statistics_step = jit_statistics(config, run.model, place.mesh)
        args = config, statistics_step, variables, step, description, train_source, workdir, place
        validate(recompute_bn(*args), step, RECOMPUTED)

    # ------------------------------------------------------------------------------------------------------ Steps
    step_fn = run.compile(place, config.batch_size, say) if start_step < run.total_steps else run.train_step
    saved_step, line = start_step, ""
    if evaluates:
        validate(state.variables, start_step, "evaluate")
    preempted = False
    window.restart_clock()
    for step in range(start_step + 1, run.total_steps + 1):
        if preempted := notice.requested():
            if saved_step != step - 1:
                window.drain()
                save(state, saved_step := step - 1, evaluated=True)
            break
        wait_start_s = time.monotonic()
        batch = to_global(place.mesh, next(batches))
        waited_s = time.monotonic() - wait_start_s
        if profiler.switches(step):
            window.wait()
            profiler.switch()
            window.restart_clock()
        if hunter:
            hunter.before(state, batch)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, sums = step_fn(state, batch)
        if heartbeats:
            heartbeats.beat(step)
        if hunter:
            hunter.after(step, state, sums)
        window.add(step, sums, waited_s)

        evaluates = run.evaluates_after(step)
        saves = evaluates or step % config.checkpoint.every_steps == 0 or run.keeps_for_ever(step)
        epoch = step / run.steps_per_epoch
        if not (saves or step % config.log.every_steps == 0):
            progress.update(step, f"epoch {epoch:.2f}  {line}")
            continue

        # --------------------------------------------------------------------- A row, a checkpoint, an evaluation
        scalars = window.row() | {"learning_rate": float(run.schedule(step - 1))}
        if writer:
            writer.write(step, epoch, "train", scalars)
        line = report.train_line(scalars)
        progress.update(step, f"epoch {epoch:.2f}  {line}")
        profiler.look(step)
        if saves:
            save(state, saved_step := step, evaluated=not evaluates)
        if evaluates:
            validate(state.variables, step, "evaluate")
        window.restart_clock()

    checkpoints.wait()
    if preempted:
        raise Preempted(preemption.message(saved_step) if place.is_primary else "")
    if recomputes:
        recompute(state.variables, run.total_steps)

    # ---------------------------------------------------------------------------------------------------- Summary
    report.summarize(workdir, title, say)
