"""The grouped convolutions of the zoo as CPUs and TPUs compute them, against PyTorch in float64: both gradients too."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnext_jax.models import zoo
from resnext_jax.ops.conv_choice import ConvShape, choose
from resnext_jax.ops.grouped_conv import grouped_conv

# A GPU takes XLA's own grouped convolution, which test_grouped_conv.py has.
DEVICES = (("cpu", "cpu"), ("tpu", "v3"), ("tpu", "v5e"), ("tpu", "v6e"))
# Up to 12,288 in 32 x 48d: the same code, and gigabytes of kernels.
MOST_CHANNELS = 512


def convolutions() -> dict[tuple[int, int, int], list[str]]:
    """(groups, channels, stride) -> what is chosen, by Table 1: d doubles from stage to stage, the image halves."""
    found: dict[tuple[int, int, int], set[str]] = collections.defaultdict(set)
    for arch in zoo.ARCHS.values():
        if not isinstance(arch, zoo.Arch) or arch.cardinality == 1:
            continue
        size_px = zoo.usual_input(arch)[0] // arch.stem.stride // (2 if arch.stem.pool else 1)
        for stage in range(len(arch.blocks)):
            channels = arch.cardinality * arch.bottleneck_width * 2**stage
            for stride in (1, 2) if stage else (1,):
                px = size_px // 2**stage * stride
                shape = ConvShape(3, stride, arch.cardinality, channels, channels, px, px)
                found[arch.cardinality, channels, stride] |= {choose(*device, shape) for device in DEVICES}
    return {key: sorted(impls) for key, impls in found.items() if key[1] <= MOST_CHANNELS}


CONVOLUTIONS = convolutions()


def test_the_list_has_the_convolutions_of_the_paper():
    """Table 1 and Table 3: 32x4d, 2x40d, 4x24d and 8x14d in stage 2, and strided ones of 32x4d and 64x4d."""
    assert {(32, 128, 1), (2, 80, 1), (4, 96, 1), (8, 112, 1), (32, 512, 2), (64, 512, 2)} <= CONVOLUTIONS.keys()
    assert {"slabs32", "merged128", "blocked128", "dense", "merged256"} <= {
        impl for impls in CONVOLUTIONS.values() for impl in impls
    }


@pytest.mark.parametrize(("groups", "channels", "stride"), CONVOLUTIONS, ids=str)
@pytest.mark.slow
def test_as_chosen_it_equals_torch(groups, channels, stride):
    rng = np.random.default_rng(0)
    height, width = 3, 4  # odd and even; what is chosen was chosen for the true size
    shapes = (1, height, width, channels), (3, 3, channels // groups, channels)
    shapes += ((1, -(-height // stride), -(-width // stride), channels),)
    x, kernel, grad = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

    inputs, filters = torch.tensor(x).double().movedim(3, 1), torch.tensor(kernel).double().permute(3, 2, 0, 1)
    inputs.requires_grad_()
    filters.requires_grad_()
    true = torch.nn.functional.conv2d(inputs, filters, stride=stride, padding=1, groups=groups)
    true.backward(torch.tensor(grad).double().movedim(3, 1))
    assert inputs.grad is not None
    assert filters.grad is not None
    want = true.detach().movedim(1, 3), inputs.grad.movedim(1, 3), filters.grad.permute(2, 3, 1, 0)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
    def run(x, kernel, grad):
        def gradients(impl):
            out, vjp = jax.vjp(lambda x, kernel: grouped_conv(x, kernel, stride=stride, impl=impl), x, kernel)
            return out, *vjp(grad)

        return {impl: gradients(impl) for impl in CONVOLUTIONS[groups, channels, stride]}

    for impl, got in run(*map(jnp.asarray, (x, kernel, grad))).items():
        for name, ours, theirs in zip(("output", "input gradient", "filter gradient"), got, want, strict=True):
            error = np.abs(np.asarray(ours, np.float64) - theirs.numpy()).max() / theirs.abs().max()
            assert error < 2e-6, f"{impl}, {name}: {error:.1e}"
