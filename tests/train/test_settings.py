"""JAX's settings and the training step: what is explicit in the program, and what a resume compares."""

import re

import jax
import numpy as np
import pytest
import tiny

from resnext_jax.errors import UserError
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train.classification import Classification
from resnext_jax.types import DatasetInfo

RECIPES = {
    "colors": ("augment.color_jitter=0.4", "augment.lighting_std=0.1", "augment.pad_px=2", "augment.policy=none"),
    "modern": (
        *("augment.mixup_alpha=0.2", "augment.cutmix_alpha=1.0", "augment.erase_probability=0.5", "optimizer=lamb"),
        *("schedule.name=cosine", "model.stochastic_depth=0.1", "ema_decay=0.9", "accumulation_steps=2"),
    ),
    "bfloat16": ("compute_dtype=bfloat16", "conv_impl=moments", "optimizer=lars", "on_nonfinite=skip"),
}


def programs(recipe: str) -> tuple[str, list]:
    """The text of the programs of the first state and of a training step, and the dtypes of the state."""
    color = ("data.mean=1,2,3", "data.std=4,5,6")
    config = tiny.config(*(f"--config.{field}" for field in (*color, *RECIPES[recipe])))
    task = Classification(
        config, Place(make_mesh(jax.devices()[:1]), "cpu"), DatasetInfo("x", 320, tuple("abcdefgh"), None)
    )
    first = jax.make_jaxpr(task.create_state)()
    step = jax.make_jaxpr(task.train_step)(task.state_shapes(), task.batch_shapes())
    return f"{first}{step}", [leaf.dtype for leaf in jax.tree.leaves(task.state_shapes())]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_program_of_a_step_does_not_depend_on_settings(recipe):
    usual, dtypes = programs(recipe)
    assert {str(dtype) for dtype in dtypes} == {"float32", "int32"}
    with jax.default_matmul_precision("bfloat16"):
        assert programs(recipe)[0].count("DEFAULT") == usual.count("DEFAULT")
    with jax.default_prng_impl("rbg"):
        assert "key<rbg>" not in programs(recipe)[0]
    with jax.enable_x64(True):
        text, wide = programs(recipe)
    assert wide == dtypes
    assert not re.search(r":f64\[[^\]]*\] = ", text)  # Python's numbers are f64 as arguments, and converted inside
    assert "bit_width=64" not in text  # of draws


def test_a_run_without_compiling_is_refused(tmp_path):
    with jax.disable_jit(), pytest.raises(UserError, match=r"JAX_DISABLE_JIT.*debug_nans"):
        tiny.train(tiny.config(), tmp_path)


@pytest.mark.slow
def test_a_run_is_the_same_bits_under_other_settings(tmp_path):
    unusual = {
        "JAX_ENABLE_X64": "1",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_RANDOM_SEED_OFFSET": "5",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    }
    arrays = []
    for workdir, environment in ((tmp_path / "usual", {}), (tmp_path / "unusual", unusual)):
        tiny.finish(tiny.start(workdir, "--config.num_steps=4", **environment))
        arrays.append(tiny.arrays(workdir / "checkpoints" / "4"))
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(arrays[1][name], array, err_msg=name, strict=True)
