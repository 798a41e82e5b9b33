"""A run of seconds for tests: the smallest network of the zoo on the built-in images."""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from ml_collections import ConfigDict

import main
from resnext_jax.checkpoint import Checkpoints
from resnext_jax.config.command_line import parse
from resnext_jax.data.sources import FASHION_MNIST_CLASSES
from resnext_jax.models import zoo
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train import loop
from resnext_jax.train.classification import Classification, open_classification
from resnext_jax.types import DatasetInfo, TrainState

ROOT = Path(__file__).parents[1]
NUM_STEPS = 30
ARGUMENTS = (
    "--config=configs/quickstart.py",
    "--config.model.name=resnext11_4x2d_tiny",
    f"--config.num_steps={NUM_STEPS}",
    "--config.batch_size=32",
    "--config.bn_group_images=8",
    "--config.schedule.name=step",  # does not depend on num_steps
    "--config.schedule.warmup_epochs=0",
    # Small: where two programs round differently, some ReLU flips within 20 steps (one weight changed by 1e-7 is
    # enough), and from there on a rate of 0.01 takes the losses 1e-3 apart; this one keeps them within 1e-6.
    "--config.learning_rate=0.0001",
    "--config.evaluate.every_steps=10",
    "--config.checkpoint.every_steps=5",
    "--config.checkpoint.keep_newest=99",
    "--config.log.every_steps=4",
)
INFO = DatasetInfo("builtin", 15_000, FASHION_MNIST_CLASSES, (28, 28, 1))
# A job in the background inherits a Ctrl-C that is ignored; this becomes the command with one that is not.
WITH_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@contextlib.contextmanager
def command_line(*arguments: str) -> Iterator[tuple[list[str], flags.FlagValues]]:
    """The arguments where ml_collections looks for overrides, and the command's flags, not yet parsed."""
    argv = ["main.py", *arguments]
    alone = mock.patch.dict(os.environ, {"JAX_NUM_PROCESSES": "1"})  # JAX has devices already in the tests' process
    with mock.patch.object(sys, "argv", argv), alone, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # how ml_collections loads a file
        yield argv, main.define_flags(flags.FlagValues())


def config(*overrides: str) -> ConfigDict:
    """The config of the tiny run; an override may repeat a field."""
    with command_line(*_once((*ARGUMENTS, *overrides))) as (argv, values):
        parse(argv, values)
    return values.config


def cpu_model(arch: zoo.Row, num_classes: int, **changes: Any) -> zoo.Network:
    """A network that computes in float32 on a CPU."""
    usual: dict[str, Any] = {"conv_impl": "auto", "compute_dtype": "float32", "bn_group_images": 0}
    return zoo.build_model(arch, num_classes, platform="cpu", **(usual | changes))


def assembled(*overrides: str, devices: int = 1) -> tuple[Classification, Place]:
    """The parts of the tiny run."""
    place = Place(make_mesh(jax.devices()[:devices]), "cpu")
    return Classification(config(*overrides), place, INFO), place


def train(config: ConfigDict, workdir: Path | str, devices: int = 1) -> None:
    """Train in this process, as `python main.py` does."""
    place = Place(make_mesh(jax.devices()[:devices]), "cpu")
    loop.train(open_classification(config, place), config, str(workdir), place, {})


def save_fresh(workdir: Path | str, *overrides: str) -> TrainState:
    """Writes a checkpoint of untrained weights at step 0, as a run would, and returns its state."""
    run, _ = assembled(*overrides)
    state = run.create_state()
    checkpoints = Checkpoints(str(workdir), keep_newest=1, keep_best=0)
    checkpoints.save(state, description(*overrides))
    checkpoints.close()
    return state


def description(*overrides: str) -> dict[str, Any]:
    """The JSON item of a checkpoint."""
    return {
        "config": config(*overrides).to_dict(),
        "dataset": {"name": INFO.name, "class_names": list(INFO.class_names)},
    }


def start(workdir: Path | str, *overrides: str, **environment: str) -> subprocess.Popen:
    """`python main.py` on the tiny run in a process of its own, on one device unless `environment` says otherwise."""
    return subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, "main.py", *arguments(f"--workdir={workdir}", *overrides)],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def arguments(*overrides: str) -> list[str]:
    """The command line of the tiny run."""
    return _once((*ARGUMENTS, *overrides))


def free_address() -> str:
    """HOST:PORT of a loopback port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def part(address: str, num_processes: int, process_id: int) -> dict[str, str]:
    """The variables of one of several processes."""
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(process_id),
    }


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """What the process said, once it has ended with `status`."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path: read with nothing but orbax."""
    trees = []
    with ocp.PyTreeCheckpointer() as checkpointer:
        for item in ("variables", "training"):
            metadata = checkpointer.metadata(checkpoint / item).item_metadata.tree
            numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
            trees.append(checkpointer.restore(checkpoint / item, restore_args=numpy))
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for tree in trees
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def digests(directory: Path) -> dict[str, str]:
    """Every file below a directory and the hash of its content."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _once(arguments: tuple[str, ...]) -> list[str]:
    """The last of the arguments that set the same flag."""
    return list({argument.split("=")[0]: argument for argument in arguments}.values())
