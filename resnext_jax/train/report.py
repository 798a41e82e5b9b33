"""What a run writes and says about itself besides its metrics: facts in the workdir, lines, the summary."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from resnext_jax import metrics
from resnext_jax.checkpoint import DIRECTORY
from resnext_jax.errors import UserError
from resnext_jax.files import write_whole
from resnext_jax.runtime.curves import CURVES_FILE
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.sharding import Place, from_first_process, raise_if_any
from resnext_jax.types import PyTree

# Where weights with recomputed batch-norm statistics lie in a workdir, and the phase of their row in its metrics.
RECOMPUTED = "recomputed_bn"


def prepare_workdir(workdir: str) -> None:
    """Makes the directory and tries that it can be written, before any time is spent."""
    path = epath.Path(workdir)
    probe = path / f".probe-{time.time_ns()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except ImportError as error:
        raise UserError(
            f"the workdir {workdir} is in a bucket, which gcsfs reads and writes, and it is not installed: pip install "
            "gcsfs. Or take a directory with --workdir=DIR."
        ) from error
    except Exception as error:  # a client of a bucket has errors of its own: no such bucket, no credentials
        with contextlib.suppress(Exception):  # a full disk takes the empty file
            probe.unlink(missing_ok=True)
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"the workdir {workdir} cannot be written ({words}): it must be a directory that you may write to. Choose "
            "another one with --workdir=DIR."
        ) from error


def check_shared(workdir: str, place: Place) -> None:
    """Tries that all processes see one and the same workdir: a checkpoint is written by all of them together.

    Raises:
      UserError: some process does not see what the first one wrote.
    """
    if place.process_count == 1:
        return
    token = from_first_process(place, time.time_ns() % 2**31)
    probe = epath.Path(workdir) / f".shared-{token}"
    if place.is_primary:
        probe.write_text("shared")
    raise_if_any(place, None)  # a barrier: it is written
    seen = probe.exists()
    try:
        raise_if_any(
            place,
            None
            if seen
            else UserError(
                f"the workdir {workdir} of process {place.process_index} is not that of process 0: all processes write "
                "one checkpoint together. Give --workdir=DIR on a file system that all hosts share."
            ),
        )
    finally:
        if place.is_primary:
            probe.unlink()


def write_facts(
    config: ConfigDict, workdir: str, environment: dict[str, Any], params: PyTree, say: Callable[[str], None]
) -> None:
    """`config.json`, `environment.json` and `parameters.txt`."""
    root = epath.Path(workdir)
    resolved = json.loads(config.to_json_best_effort())
    write_whole(root / "config.json", json.dumps(resolved, indent=2) + "\n")
    write_whole(root / "environment.json", json.dumps(environment, indent=2) + "\n")
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    write_whole(root / "parameters.txt", overview + "\n")
    total = overview.splitlines()[-1].removeprefix("Total: ").replace(" -- ", " parameters, ")
    say(f"{model_title(config)}: {total}; by layer in {root / 'parameters.txt'}")


def train_line(row: Mapping[str, float]) -> str:
    """The end of the progress line of training."""
    learned = f"loss {row['loss']:.4f}  top-1 {row['top1']:.2%}" if "loss" in row else "every step skipped"
    return f"{row['images_per_s']:,.0f} images/s  {learned}  input wait {row['input_wait']:.0%}"


def evaluation_line(sums: metrics.Sums) -> str:
    """The end of the progress line of evaluation."""
    row = metrics.means(sums)
    return f"loss {row['loss']:.4f}  top-1 {row['top1']:.2%}  top-5 {row['top5']:.2%}"


def model_title(config: ConfigDict) -> str:
    """The network by its row or its numbers, and the data: `resnext101_64x4d on imagenet2012`."""
    model = config.model
    name = model.name or f"{model.family} {model.depth} ({model.cardinality}x{model.bottleneck_width}d)"
    changes = f"{'' if model.shortcut else ' without shortcuts'}{' pre-activated' if model.preactivation else ''}"
    return f"{name}{changes} on {config.data.name}"


def summarize(workdir: str, title: str, say: Callable[[str], None]) -> None:
    """The table at the end of a run: its last and its best evaluation, and where things lie."""
    rows = [row for row in read_metrics(workdir) if row["phase"] == "evaluate"]
    if not rows:
        return
    best = max(rows, key=lambda row: row["top1"])
    recomputed = [row for row in read_metrics(workdir) if row["phase"] == RECOMPUTED]
    line = "-" * 66
    say(f"\n{title}\n{line}")
    say(f"{'':10}{'step':>10}{'epoch':>9}{'loss':>10}{'top-1':>10}{'top-5':>10}")
    for name, row in (("last", rows[-1]), ("best", best), *(("recomputed", row) for row in recomputed)):
        say(
            f"{name:10}{row['step']:>10,}{row['epoch']:>9.2f}{row['loss']:>10.4f}{row['top1']:>10.2%}{row['top5']:>10.2%}"
        )
    say(line)
    root = epath.Path(workdir)
    say(f"checkpoints  {root / DIRECTORY}\ncurves       {root / CURVES_FILE}\n")
