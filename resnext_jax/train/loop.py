"""The story of a run, top to bottom: what is trained, where it was left, then step after step to the summary."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resnext_jax import metrics
from resnext_jax.checkpoint import Checkpoints
from resnext_jax.curves import draw_curves
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.sources import Source
from resnext_jax.errors import UserError
from resnext_jax.evaluate.classify import evaluate
from resnext_jax.sharding import Place, agree, from_first_process, to_global
from resnext_jax.train import report
from resnext_jax.train.assemble import assemble
from resnext_jax.train.dataset import open_data, same_classes
from resnext_jax.train.finetune import first_state
from resnext_jax.train.step import all_finite
from resnext_jax.types import PyTree
from resnext_jax.writer import MetricsWriter, Progress, Silent, read_metrics

# The host prepares this many steps ahead of the device: enough to overlap, and batches are memory.
STEPS_IN_FLIGHT = 2
NO_CHECKPOINT = -1


def train(config: ConfigDict, workdir: str, place: Place, environment: dict[str, Any]) -> None:
    """Trains to the end, from the newest checkpoint of `workdir` if there is one.

    Args:
      config: see configs/common.py.
      workdir: created if need be; the README lists what it holds.
      place: the devices and this process.
      environment: versions and devices, written beside the config.

    Raises:
      UserError: anything that the user can mend, with every checkpoint untouched.
    """
    with contextlib.ExitStack() as stack:
        _train(config, workdir, place, environment, stack)


def _train(
    config: ConfigDict, workdir: str, place: Place, environment: dict[str, Any], stack: contextlib.ExitStack
) -> None:
    say = report.say if place.speaks else lambda line: None

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
    description = {
        "config": json.loads(config.to_json_best_effort()),
        "dataset": {"name": train_source.info.name, "class_names": list(train_source.info.class_names)},
    }

    # ---------------------------------------------------------------------------------------- Where it was left
    report.check_shared(workdir, place)
    checkpoints = Checkpoints(workdir, keep_newest=config.checkpoint.keep_newest, keep_best=config.checkpoint.keep_best)
    stack.callback(checkpoints.close)
    newest = checkpoints.latest_step()
    start_step = from_first_process(place, NO_CHECKPOINT if newest is None else newest)
    state_shapes = run.state_shapes(place.mesh)
    if start_step == NO_CHECKPOINT:
        state, start_step = first_state(config, run, description["dataset"], place, say), 0
    else:
        same_classes(description["dataset"], checkpoints.description(start_step)["dataset"], workdir)
        state = checkpoints.restore(start_step, state_shapes)
    if start_step >= run.total_steps:
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

    # ------------------------------------------------------------------------------------------------------ Steps
    progress = show_progress(place, "train", run.total_steps, "step", start_step)
    stack.callback(progress.close)
    is_finite = jax.jit(all_finite)
    window: list[metrics.Sums] = []  # of the steps since the last row, still on the device
    window_start_s, waited_s, line = time.monotonic(), 0.0, ""
    for step in range(start_step + 1, run.total_steps + 1):
        wait_start_s = time.monotonic()
        batch = to_global(place.mesh, next(batches))
        waited_s += time.monotonic() - wait_start_s
        state, sums = step_fn(state, batch)
        window.append(sums)
        if len(window) > STEPS_IN_FLIGHT:
            jax.block_until_ready(window[-1 - STEPS_IN_FLIGHT])

        evaluates = run.evaluates_after(step)
        saves = evaluates or step % config.checkpoint.every_steps == 0
        epoch = step / run.steps_per_epoch
        if not (saves or step % config.log.every_steps == 0):
            progress.update(step, f"epoch {epoch:.2f}  {line}")
            continue

        # ----------------------------------------------------------------------------------------- A row
        scalars = flush(window, step, workdir)
        elapsed_s = time.monotonic() - window_start_s
        scalars |= {
            "learning_rate": float(run.schedule(step - 1)),
            "images_per_s": len(window) * config.batch_size / elapsed_s,
            "input_wait": waited_s / elapsed_s,
        }
        if writer:
            writer.write(step, epoch, "train", scalars)
        line = report.train_line(scalars)
        progress.update(step, f"epoch {epoch:.2f}  {line}")

        # ----------------------------------------------------------------------- Evaluation and checkpoint
        evaluation = None
        if evaluates:
            progress.close()
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            evaluation = evaluate_all(config, run.evaluation_step, variables, validation_source, place)
            if writer:
                writer.write(step, epoch, "evaluate", evaluation)
                draw_curves(read_metrics(workdir), workdir, title)
        if saves:
            if not is_finite(state):
                raise not_finite("norm of parameters and statistics", step, workdir)
            checkpoints.save(state, description, evaluation)
        window, waited_s, window_start_s = [], 0.0, time.monotonic()

    checkpoints.wait()

    # ---------------------------------------------------------------------------------------------------- Summary
    report.summarize(workdir, title, say)


def evaluate_all(
    config: ConfigDict, step: Callable, variables: PyTree, source: Source, place: Place
) -> dict[str, float]:
    """Loss, top-1, top-5 and the number of images of `source`, as the config prepares them."""
    progress = show_progress(place, "evaluate", len(source), "image")
    sums = evaluate(
        step,
        variables,
        source,
        place,
        batch_size=config.evaluate.batch_size,
        image_size_px=config.data.image_size_px,
        resize_px=config.data.resize_px,
        crop=config.data.crop,
        num_threads=config.data.num_threads,
        interpolation=config.data.get("interpolation", "bicubic"),  # which checkpoints of before do not have
        progress=lambda sums: progress.update(int(sums.images), report.evaluation_line(sums)),
    )
    progress.close()
    return metrics.means(sums) | {"images": int(sums.images)}


def flush(window: list[metrics.Sums], step: int, workdir: str) -> dict[str, float]:
    """Means over the steps of `window`, the last of which is `step`.

    Raises:
      UserError: a loss was not finite; the first such step is named.
    """
    total = metrics.zeros()
    for offset, sums in enumerate(jax.device_get(window), start=step - len(window) + 1):
        if not np.isfinite(sums.loss):
            raise not_finite("loss", offset, workdir)
        total = metrics.add(total, sums)
    return metrics.means(total) | {"images": int(total.images)}


def not_finite(what: str, step: int, workdir: str) -> UserError:
    """The instruction for a run that has diverged."""
    return UserError(
        f"the {what} is not finite at step {step}: the run has diverged, and stops. What was saved in "
        f"{workdir}/checkpoints before is untouched. Lower learning_rate, lengthen schedule.warmup_epochs or compute "
        "in float32; in another --workdir, if the run shall start anew."
    )


def show_progress(place: Place, label: str, total: int, unit: str, start: int = 0) -> Progress | Silent:
    """The progress line of one phase; only the first process has one."""
    return Progress(label, total, unit, start) if place.speaks else Silent()
