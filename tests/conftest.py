"""How every test runs: on eight fake CPU devices, with strict dtypes and ranks, with shapes checked at run time."""

import os

# Before JAX is imported: it reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")  # nothing from an earlier run, nothing in the user's home

import importlib
from collections.abc import Iterator
from types import ModuleType

import jaxtyping
import pytest

# The rooms of array functions: from here on a call with a wrong shape or dtype raises.
jaxtyping.install_import_hook(["resnext_jax.ops", "resnext_jax.metrics"], "beartype.beartype")


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
