"""Multiply-adds against published figures and by hand."""

from typing import Any

import jax.numpy as jnp
import pytest

from resnext_jax.models import zoo
from resnext_jax.models.arch import CIFAR_STEM, Arch
from resnext_jax.models.complexity import multiply_adds
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.ops.conv_choice import resolver

# In 10^9 at 224 px: torchvision's figures of its weights.
PUBLISHED = {"resnet50": 4.089, "resnext50_32x4d": 4.230, "resnext101_64x4d": 15.46}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.slow
def test_published(name):
    # As a TPU computes them, with merged groups and blocks: that changes nothing.
    tpu: dict[str, Any] = {"platform": "tpu", "chip": "v5e", "conv_impl": "auto"}
    model = zoo.build_model(zoo.select(name), 1000, compute_dtype="bfloat16", bn_group_images=32, **tpu)
    assert multiply_adds(model, (224, 224, 3)) == pytest.approx(PUBLISHED[name] * 1e9, rel=1e-3)


def test_by_hand():
    """A CIFAR stem of 4 channels and one bottleneck of 2 paths of 3 channels, 16 out, at 8 px, 10 classes."""
    model = ResNeXt(Arch("bottleneck", (1,), 2, 3, CIFAR_STEM, width=4), 10, resolver("auto", "cpu"), 0, jnp.bfloat16)
    stem = 9 * 3 * 4
    block = 4 * 6 + 9 * 3 * 6 + 6 * 16 + 4 * 16  # 1x1, 3x3 of 3 channels per group, 1x1, shortcut
    assert multiply_adds(model, (8, 8, 3)) == 64 * (stem + block) + 16 * 10
