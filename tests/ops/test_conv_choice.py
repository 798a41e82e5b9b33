"""Which algorithm is taken for what."""

import pytest

from resnext_jax.errors import UserError
from resnext_jax.ops.conv_choice import ConvShape, chip_of, choose, problems_of, resolver

CONV3 = ConvShape(kernel_px=3, stride=1, groups=32, in_channels=128, out_channels=128, height=56, width=56)
UNSEEN = ConvShape(kernel_px=3, stride=2, groups=6, in_channels=96, out_channels=96, height=30, width=30)


def test_a_name_rules_everywhere():
    assert resolver("dense", "tpu", "v5e")(CONV3) == "dense"
    with pytest.raises(UserError, match=r"Known: .*auto, "):
        resolver("fastest", "cpu", "")


def test_auto():
    # The filter gradient of native costs 300 times its time on a CPU, and three times on a TPU.
    assert resolver("auto", "cpu", "cpu")(CONV3) not in ("native", "im2col")
    assert resolver("auto", "tpu", "v5e")(CONV3) != "native"


@pytest.mark.parametrize(
    ("platform", "chip", "impl"),
    [
        ("tpu", "v5e", "merged128"),  # 128 lanes and a matrix unit of 128 x 128
        ("tpu", "v6e", "merged256"),  # a matrix unit of 256 x 256
        ("tpu", "v9", "merged128"),
        ("gpu", "NVIDIA H100", "native"),
        ("cpu", "cpu", "slabs32"),
    ],
)
def test_a_shape_never_seen(platform, chip, impl):
    assert choose(platform, chip, UNSEEN) == impl


def test_chips_by_the_names_that_jax_gives_them():
    assert [chip_of(kind) for kind in ("TPU v3", "TPU v5 lite", "TPU v5", "TPU v6 lite")] == ["v3", "v5e", "v5p", "v6e"]
    assert chip_of("NVIDIA H100 80GB HBM3") == "NVIDIA H100 80GB HBM3"


def test_problems():
    assert problems_of("auto") == problems_of("merge4") == problems_of("native+im2col") == []
    (problem,) = problems_of("nativ")
    assert "Did you mean 'native'" in problem
