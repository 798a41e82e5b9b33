"""What an asynchronous save costs a run: steps with a save and without, in turns, in one process.

    python experiments/faults/save_cost.py [--config=configs/resnext50_32x4d.py] [--batch_size=8] [--steps=8]

A turn is `--steps` steps without a save and as many with one at their beginning; the difference is what the save costs,
in the call and in the background. The turn must be longer than a save is under way, and says so if it is not.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax

from resnext_jax import sharding
from resnext_jax.analysis.compiling import dataset_info
from resnext_jax.analysis.timing import synthetic_batch
from resnext_jax.checkpoint import Checkpoints
from resnext_jax.config import command_line
from resnext_jax.runtime import startup
from resnext_jax.train.assemble import assemble

SHARE = 0.03  # of the step time that saving may cost


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/resnext50_32x4d.py")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="of one half of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workdir", help="where to save; by default a temporary directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    step, state, batch, description = compiled_step(arguments.config, arguments.batch_size, device)
    workdir = arguments.workdir or tempfile.mkdtemp(prefix="save_cost_")
    checkpoints = Checkpoints(workdir, keep_newest=1, keep_best=0)
    directory = Path(workdir) / "checkpoints"
    plain, saving, blocked, written = [], [], [], []
    for turn in range(arguments.turns + 1):
        for saves in (False, True):
            start_s = time.monotonic()
            if saves:
                checkpoints.save(state, description, None, {})
                blocked.append(time.monotonic() - start_s)
            done_s = None
            for _ in range(arguments.steps):
                state, sums = step(state, batch)
                jax.block_until_ready(sums)
                if saves and done_s is None and not any("tmp" in path.name for path in directory.iterdir()):
                    done_s = time.monotonic()
            (saving if saves else plain).append(time.monotonic() - start_s)
            if saves:
                written.append(done_s is not None)
                checkpoints.wait()
        if not turn:  # the first is for warming up
            plain, saving, blocked, written = [], [], [], []
    checkpoints.close()
    num_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    if not arguments.workdir:
        shutil.rmtree(workdir)
    step_s = statistics.median(plain) / arguments.steps
    cost_s = statistics.median(after - before for after, before in zip(saving, plain, strict=True))
    result = {
        "device": device.device_kind,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "checkpoint_bytes": num_bytes,
        "step_s": round(step_s, 4),
        "save_call_s": round(statistics.median(blocked), 4),
        "save_cost_s": round(cost_s, 3),
        "cost_s_of_turns": [round(after - before, 3) for after, before in zip(saving, plain, strict=True)],
        "written_within_turn": all(written),
        "steps_between_saves_for_3_percent": max(1, round(cost_s / (SHARE * step_s) + 0.5)),
        "share_every_1000_steps": round(cost_s / (1000 * step_s), 5),
    }
    for name, value in result.items():
        print(f"{name:36}{value}")
    if arguments.json:
        print(json.dumps(result))


def compiled_step(config_file: str, batch_size: int, device: Any) -> tuple[Callable, Any, Any, dict[str, Any]]:
    """Return the compiled training step, its first state, a batch, and what a checkpoint says of them."""
    startup.quiet_logging()
    config = command_line.load(config_file)
    config.batch_size = config.bn_group_images = config.evaluate.batch_size = batch_size
    if device.platform == "cpu":
        config.compute_dtype = "float32"  # what a CPU computes in
    info, place = dataset_info(config.data.name), sharding.Place(sharding.make_mesh([device]), jax.default_backend())
    run = assemble(config, info, place)
    images = synthetic_batch(batch_size, run.image_shape, info.num_classes)
    step = run.train_step.lower(run.state_shapes(place.mesh), run.batch_shapes(place.mesh, batch_size)).compile()
    description = {"config": {}, "dataset": {"name": info.name, "class_names": list(info.class_names)}}
    return step, run.create_state(), sharding.to_global(place.mesh, images), description


if __name__ == "__main__":
    main()
