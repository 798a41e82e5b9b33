"""The story of a run, top to bottom: what is trained, where it was left, then step after step to the summary."""

import contextlib
import json
import time
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from resnext_jax import cluster
from resnext_jax.curves import draw_curves
from resnext_jax.data.pipeline import train_batches
from resnext_jax.errors import UserError
from resnext_jax.sharding import Place, agree, from_first_process, to_global
from resnext_jax.train import report
from resnext_jax.train.assemble import assemble
from resnext_jax.train.dataset import facts, open_data, same_classes
from resnext_jax.train.faults import Faults, not_finite
from resnext_jax.train.finetune import first_state
from resnext_jax.train.hunt import Hunter
from resnext_jax.train.preemption import Preemption
from resnext_jax.train.resume import check_resumable, claim, open_checkpoints
from resnext_jax.train.step import all_finite
from resnext_jax.train.validation import evaluate_all, show_progress
from resnext_jax.train.window import Window
from resnext_jax.types import TrainState
from resnext_jax.writer import MetricsWriter, read_metrics


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
    say = report.say if place.speaks else lambda line: None
    preemption = stack.enter_context(Preemption(place))

    # ------------------------------------------------------------------------------------------- What is trained
    mistake = None
    try:
        train_source, validation_source = open_data(config, "train"), open_data(config, "validation")
        run = assemble(config, train_source.info, place)
        report.prepare_workdir(workdir)
    except UserError as error:
        mistake = error
    agree(place, mistake)
    title = report.model_title(config)
    description = {"config": json.loads(config.to_json_best_effort()), "dataset": facts(train_source.info)}

    # ---------------------------------------------------------------------------------------- Where it was left
    report.check_shared(workdir, place)
    lock, newest = claim(workdir, place, stack, say)
    rows = read_metrics(workdir)
    checkpoints = open_checkpoints(config, run, workdir, rows)
    stack.callback(checkpoints.close)
    preemption.before_leaving += [checkpoints.wait, *([lock.release] if lock else [])]
    state_shapes = run.state_shapes(place.mesh)
    if newest is None:
        state, start_step, left = first_state(config, run, description["dataset"], place, say), 0, {}
    else:
        start_step, saved = newest, checkpoints.description(newest)
        same_classes(description["dataset"], saved["dataset"], workdir)
        state = checkpoints.restore(newest, state_shapes)
        check_resumable(description, saved, f"of step {newest} in {workdir}", allow=config.resume_changed, say=say)
        left = saved["progress"]
    made = any(row["phase"] == "evaluate" and row["step"] == start_step for row in rows)
    evaluates = bool(from_first_process(place, not (left.get("evaluated", True) or made)))
    if start_step >= run.total_steps and not evaluates:
        say(f"{workdir} is done: {start_step:,} of {run.total_steps:,} steps.")
        report.summarize(workdir, title, say)
        return
    if start_step:
        say(f"resuming {workdir} at step {start_step:,} of {run.total_steps:,}")

    # ------------------------------------------------------------------------------------------------- The input
    batches = train_batches(
        train_source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        num_steps=run.total_steps,
        image_size_px=config.data.image_size_px,
        crop=config.data.crop,
        num_threads=config.data.num_threads,
        process_index=place.process_index,
        process_count=place.process_count,
    )
    stack.callback(batches.close)

    # From here on the workdir is this run's: everything about its config has been checked.
    writer = None
    if place.speaks:
        report.write_facts(config, workdir, environment, state.params, say)
        writer = MetricsWriter(workdir, start_step)
        stack.callback(writer.close)

    # ------------------------------------------------------------------------------------------------ Compilation
    say(
        f"compiling the step for {place.mesh.size} {place.platform} device(s); "
        "this can take from seconds (small networks) to minutes (101 layers)"
    )
    compile_start_s = time.monotonic()
    step_fn = run.train_step.lower(state_shapes, run.batch_shapes(place.mesh, config.batch_size)).compile()
    say(f"compiled in {time.monotonic() - compile_start_s:.1f} s")

    # -------------------------------------------------------------------------------------- What a step may bring
    progress = show_progress(place, "train", run.total_steps, "step", start_step)
    stack.callback(progress.close)
    is_finite = jax.jit(all_finite)
    hunter = Hunter(run.plain_step, is_finite) if config.debug_nans else None
    faults = Faults(
        workdir,
        skips=config.on_nonfinite == "skip",
        max_skipped_in_a_row=config.max_skipped_in_a_row,
        spike_nats=config.watch.spike_nats,
        losses=[row["loss"] for row in rows if row["phase"] == "train" and row["step"] <= start_step and "loss" in row],
        note=lambda line: (progress.close(), say(line)),
    )
    window = Window(config.batch_size, faults, left.get("window"))

    def save(state: TrainState, step: int, evaluated: bool) -> None:
        if not is_finite(state):
            raise not_finite("norm of parameters and statistics", step, workdir)
        if writer and lock:
            writer.flush()
            lock.check()
        with preemption.saving:
            checkpoints.save(state, description, None, {"window": window.carried(), "evaluated": evaluated})

    def validate(state: TrainState, step: int) -> None:
        progress.close()
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        evaluation = evaluate_all(config, run.evaluation_step, variables, validation_source, place)
        checkpoints.top1[step] = evaluation["top1"]
        if writer:
            writer.write(step, step / run.steps_per_epoch, "evaluate", evaluation)
            writer.flush()
            draw_curves(read_metrics(workdir), workdir, title)

    # ------------------------------------------------------------------------------------------------------ Steps
    saved_step, line = start_step, ""
    if evaluates:
        validate(state, start_step)
    preemption.start_steps(start_step)
    window.restart_clock()
    for step in range(start_step + 1, run.total_steps + 1):
        wait_start_s = time.monotonic()
        batch = preemption.take(batches, step)
        if batch is None:
            if saved_step != step - 1:
                window.drain()
                save(state, step - 1, evaluated=True)
            break
        batch = to_global(place.mesh, batch)
        waited_s = time.monotonic() - wait_start_s
        if hunter:
            hunter.before(state, batch)
        state, sums = step_fn(state, batch)
        cluster.beat(step)
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
        if saves:
            save(state, saved_step := step, evaluated=not evaluates)
        if evaluates:
            # What is saved already can be left at once; the evaluation is then made at the next start.
            preemption.with_nothing_at_stake(partial(validate, state, step))
        window.restart_clock()

    checkpoints.wait()
    preemption.end()

    # ---------------------------------------------------------------------------------------------------- Summary
    report.summarize(workdir, title, say)
