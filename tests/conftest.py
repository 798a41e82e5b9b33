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
from collections.abc import Iterator
from types import ModuleType

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype

# From here on a call with a wrong type, shape or dtype raises. An int is a float, as for other type checkers.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
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
