"""Counts from the traced program, against published figures, PyTorch's own counter and sums by hand."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from resnext_jax.analysis import complexity
from resnext_jax.analysis.complexity import Complexity, Counts
from resnext_jax.analysis.published import PUBLISHED, agrees
from resnext_jax.models import zoo

# Figures that are wrong where they stand: ResNet-50 has 25.6 M parameters.
SLIPS = {("resnet50", "pycls", "22.6 M")}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    result = Complexity(name)
    counts = result.of()
    found = set()
    for figures in PUBLISHED[name]:
        for count, text in zip(dataclasses.astuple(counts), dataclasses.astuple(figures)[1:], strict=True):
            if text and not agrees(count, text):
                found.add((name, figures.source, text))
    assert found == {slip for slip in SLIPS if slip[0] == name}
    assert sum((result.of(part) for part in result.parts()), start=Counts()) == counts


def test_a_figure_agrees_to_its_last_digit():
    assert agrees(25_557_032, "25,557,032")
    assert not agrees(25_557_033, "25,557,032")
    assert agrees(68_155_210, "68.1 M")  # cut
    assert agrees(68_155_210, "68.2 M")  # rounded
    assert not agrees(68_155_210, "68.0 M")
    assert not agrees(68_155_210, "68.3 M")
    assert agrees(4_230_479_872, "4.230 G")
    assert not agrees(4_231_100_000, "4.230 G")
    assert not agrees(4_228_900_000, "4.230 G")


@pytest.mark.parametrize(("name", "image_px"), [("resnext50_32x4d", 97), ("densenet121", 65), ("vgg11_bn", 70)])
@pytest.mark.slow
def test_other_sizes_as_pytorch_counts_them(torchvision, name, image_px):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        torchvision.models.get_model(name).eval()(torch.empty(1, 3, image_px, image_px))
    assert Complexity(name, image_px).of().multiply_adds == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "width", "weights"),
    [
        ("resnet50", 64, 16_384 + 36_864 + 16_384),
        ("resnext50_2x40d", 80, 20_480 + 28_800 + 20_480),
        ("resnext50_4x24d", 96, 24_576 + 20_736 + 24_576),
        ("resnext50_8x14d", 112, 28_672 + 14_112 + 28_672),
        ("resnext50_32x4d", 128, 32_768 + 4_608 + 32_768),
    ],
)
def test_table_2(name, width, weights):
    """A block of stage 2: 256 D + 9 D D / C + 256 D weights, each used at 56 x 56 positions."""
    block = Complexity(name).of("stage2", "block2")
    assert block == Counts(
        params=weights + 2 * (2 * width + 256), multiply_adds=weights * 56 * 56, activations=(2 * width + 256) * 56 * 56
    )
    assert block.multiply_adds / 1e9 == pytest.approx(0.22, abs=0.005)


def test_a_small_network_by_hand():
    """28 px: the stem to 14, then 14, 7 and 4; one block in each stage, groups of 2, 4 and 8 channels."""
    result = Complexity("resnext11_4x2d_tiny")
    stem = 9 * 1 * 4 * 14 * 14
    stage2 = (4 * 8 + 9 * 2 * 8 + 8 * 16 + 4 * 16) * 14 * 14
    stage3 = 16 * 16 * 14 * 14 + (9 * 4 * 16 + 16 * 32 + 16 * 32) * 7 * 7
    stage4 = 32 * 32 * 7 * 7 + (9 * 8 * 32 + 32 * 64 + 32 * 64) * 4 * 4
    parts = {part: result.of(part).multiply_adds for part in result.parts()}
    assert parts == {"stem": stem, "stage2": stage2, "stage3": stage3, "stage4": stage4, "classifier": 64 * 10}
    assert result.of("stage4").activations == 32 * 7 * 7 + (32 + 64 + 64) * 4 * 4
    assert [result.size_px(part) for part in parts] == [(14, 14), (14, 14), (7, 7), (4, 4), None]


def test_the_command(command):
    status, out, _ = command(complexity, "resnext29_8x64d", "resnext11_4x2d_tiny", "--stages", "--json")
    assert status is None
    *shown, last = out.splitlines()
    rows = json.loads(last)
    assert [row["name"] for row in rows] == ["resnext29_8x64d", "resnext11_4x2d_tiny"]
    assert [row.keys() for row in rows] == [{"name", "params", "multiply_adds", "activations"}] * 2
    assert rows[0]["params"] == 34_426_698
    assert next(line for line in shown if line.startswith("resnext29")).endswith("paper: 34.4 M")
    stages = [line.split()[0] for line in shown if line.startswith("  ") and line.split()[0] != "output"]
    assert stages == ["stem", "stage2", "stage3", "stage4", "classifier"] * 2


def test_by_default_the_whole_zoo(command, monkeypatch):
    monkeypatch.setattr(zoo, "ARCHS", {name: zoo.ARCHS[name] for name in ("wrn16_8", "vgg11")})
    _, out, _ = command(complexity, "--json")
    assert [row["name"] for row in json.loads(out.splitlines()[-1])] == ["wrn16_8", "vgg11"]


def test_a_figure_that_differs_is_marked(command):
    _, out, _ = command(complexity, "resnet50")
    assert "pycls: 22.6 M (differs), 4.1 G, 11.1 M" in out
    _, out, _ = command(complexity, "resnet50", "--image_size_px=64")
    assert "torchvision: 25,557,032\n" in out  # multiply-adds are published for 224 px


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnext50_32x4", "vgg12"), ["'resnext50_32x4'. Did you mean 'resnext50_32x4d'", "'vgg12'. Did you mean"]),
        (("resnet50", "vgg16", "--image_size_px=31"), ["resnet50: images of 31x31 px are too small", "vgg16: images"]),
        (("--image_size_px=0",), ["--image_size_px=0 must be 1 or more"]),
        (("--image_size_px=large",), ["--image_size_px=large"]),
    ],
)
def test_mistakes(command, arguments, words):
    status, out, err = command(complexity, *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", len(words))
    assert all(word in line for word, line in zip(words, err.splitlines(), strict=True))
