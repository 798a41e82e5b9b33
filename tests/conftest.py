"""How every test runs: on eight fake CPU devices, with strict dtypes and ranks, with shapes checked at run time."""

import atexit
import os
import shutil
import tempfile

# Before JAX is imported: it reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("MPLBACKEND", "Agg")
# XLA spends more time on optimizing these small programs than they run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# One new compilation cache for all tests, their subprocesses and the workers of pytest-xdist, which inherit it. What it
# returns is the compiled program, bit for bit.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="resnext_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import importlib
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jaxtyping
import pytest
from absl import flags
from beartype import BeartypeConf, beartype

# From here on a call with a wrong type, shape or dtype raises. An int is a float, as for other type checkers.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.setrecursionlimit(10_000)  # a checked call takes several frames
jaxtyping.install_import_hook("resnext_jax", "conftest.typechecked")


@pytest.fixture(scope="session")
def torchvision() -> Iterator[ModuleType]:
    """torchvision, for tests that compare with it (timm needs it too: ask for this fixture, then import timm).

    A torchvision built for another torch cannot load its compiled operators. None is used here, but importing it
    looks two of them up, so they are declared where they are missing.
    """
    torch = importlib.import_module("torch")
    try:
        yield importlib.import_module("torchvision")
    except RuntimeError:
        operators = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as this frame
        operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield importlib.import_module("torchvision")


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., tuple]:
    """Calls the `main` of a module of the analysis in the repository's root: (exit status or None, stdout, stderr)."""
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])

    def run(module: ModuleType, *arguments: str) -> tuple:
        monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
        monkeypatch.setattr(sys, "argv", ["command", *arguments])  # where ml_collections looks for overrides
        status = None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # how ml_collections loads a file
            try:
                module.main(argv=sys.argv)
            except SystemExit as exit_:
                status = exit_.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def failure(command) -> Callable[..., str]:
    """Calls the `main` of a module of the analysis, which must exit with status 2; returns what it says."""

    def run(module: ModuleType, *arguments: str) -> str:
        status, _, error = command(module, *arguments)
        assert status == 2
        return error

    return run


@pytest.fixture
def run_main(capsys, monkeypatch) -> Callable[..., tuple]:
    """Calls `main.py` in the repository's root, on the 8 devices of the tests: (exit status, stdout, stderr)."""
    import tiny

    from resnext_jax import cli

    monkeypatch.chdir(tiny.ROOT)

    def run(*arguments: str) -> tuple:
        status = 0
        with tiny.command_line(*arguments) as (argv, values):
            try:
                cli.main(values, argv)
            except SystemExit as exit_:
                status = exit_.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def bucket() -> Iterator[Any]:
    """The objects of gs://bucket."""
    import fake_bucket

    with fake_bucket.served() as served:
        served.store.clear()
        yield served
        served.store.clear()
