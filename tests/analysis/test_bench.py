"""The timings beside a peer: what is compared, the arithmetic, wrong input; not the speed of this machine."""

import importlib.util
import json
import sys
import warnings
from unittest import mock

import jax
import pytest
import tiny
from absl import flags

from resnext_jax.analysis import bench
from resnext_jax.errors import UserError
from resnext_jax.models import zoo

CONFIG = "--config=configs/quickstart.py"
TINY = (CONFIG, "--config.model.name=resnext11_4x2d_tiny", "--config.batch_size=4", "--config.bn_group_images=2")


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the command sets it; undone afterwards


def command(*arguments: str) -> None:
    with mock.patch.object(sys, "argv", ["bench", *arguments]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # how ml_collections loads a file
        bench.main(sys.argv)


def failure(capsys, *arguments: str) -> str:
    """What the command prints for a mistake, having left with status 2."""
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--config=configs/NAME.py"),
        ((CONFIG, "--peer=tensorflow"), "unknown peer 'tensorflow'"),
        ((CONFIG, "--conv_impl=nativ"), "unknown conv_impl 'nativ'. Did you mean 'native'"),
        ((CONFIG, "torch"), "remove 'torch'"),
        ((CONFIG, "--config.compute_dtype=bfloat16"), "--config.compute_dtype=float32"),
    ],
)
def test_a_wrong_argument_is_one_line_with_the_remedy(arguments, words, capsys):
    assert words in failure(capsys, *arguments)


def test_without_torch_the_message_says_how_to_install_it(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert "pip install torch torchvision" in failure(capsys, *TINY)


def test_no_peer_on_a_tpu():
    with pytest.raises(UserError, match="--peer=none"):
        bench.import_torch("tpu")


def test_training_and_inference_of_a_tiny_network(capsys, torchvision, monkeypatch):
    monkeypatch.setattr(bench, "REPEAT_S", 0.0)
    torch = sys.modules["torch"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine its threads wait for each other, 30 ms at every layer
    command(*TINY, "--repeats=2", "--json")
    torch.set_num_threads(threads)
    shown, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    result = json.loads(last)
    assert "PyTorch" in shown
    assert result["device"].startswith("CPU")
    for task in ("train", "inference"):
        row = result[task]
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert all(row["range"][name][0] <= row[name] <= row["range"][name][1] for name in ("ours", "peer"))


def test_turns_and_rates(monkeypatch):
    """By a clock that only the steps move: 0.1 s and 0.4 s of 8 images, and one repeat that is disturbed."""
    now, calls = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def step(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            now[0] += seconds + (2.0 if len(calls) == 12 else 0.0)

        return run

    steps, wait = {"ours": step("ours", 0.1), "peer": step("peer", 0.4)}, dict.fromkeys(("ours", "peer"), id)
    rates = bench.images_per_s(steps, wait, batch_size=8, repeats=3)
    # Three to warm up, then as many as fill half a second, in turns.
    assert "".join(name[0] for name in calls) == "ooopppooooopooooopooooop"
    assert rates["ours"] == pytest.approx([80, 80, 80])
    assert rates["peer"] == pytest.approx([8 / 2.4, 20, 20])
    result = bench.compare(rates)
    assert (result["ours"], result["peer"], result["ratio"]) == pytest.approx((80, 20, 4))
    assert result["range"]["peer"] == pytest.approx([8 / 2.4, 20])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "resnext101_64x4d"])
def test_the_peer_is_torchvisions_network(name, torchvision):
    torch = sys.modules["torch"]
    with torch.device("meta"):
        ours = bench.peer_network(zoo.ARCHS[name], 3, 1000, "cpu")
        true = torchvision.models.get_model(name)
    shapes = [[tuple(array.shape) for array in network.state_dict().values()] for network in (ours, true)]
    assert shapes[0] == shapes[1]
    convs = [[m for m in network.modules() if isinstance(m, torch.nn.Conv2d)] for network in (ours, true)]
    assert [(c.stride, c.padding, c.groups) for c in convs[0]] == [(c.stride, c.padding, c.groups) for c in convs[1]]


@pytest.mark.parametrize("name", ["resnext20_8x4d_small", "resnext29_8x64d", "resnext101_8x14d"])
def test_the_peer_of_other_networks_has_as_many_parameters(name, torchvision):
    model = zoo.build_model(
        zoo.ARCHS[name], 10, platform="cpu", conv_impl="auto", compute_dtype="float32", bn_group_images=0
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
    with sys.modules["torch"].device("meta"):
        peer = bench.peer_network(zoo.ARCHS[name], 3, 10, "cpu")
    assert sum(p.numel() for p in peer.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def test_what_a_cpu_cannot_do_as_the_config_has_it_is_changed_and_said():
    config = tiny.config("--config.data.image_size_px=224", "--config.batch_size=256", "--config.bn_group_images=32")
    config.compute_dtype = "bfloat16"
    notes = " ".join(bench.fit(config, "cpu", "torch", given=set()))
    assert (config.compute_dtype, config.batch_size, config.bn_group_images) == ("float32", 16, 0)
    assert "float32" in notes
    assert "batch 16, not the config's 256" in notes

    config.batch_size, config.bn_group_images, config.compute_dtype = 256, 32, "bfloat16"
    assert bench.fit(config, "gpu", "torch", given=set()) == []
    assert (config.compute_dtype, config.batch_size, config.bn_group_images) == ("bfloat16", 256, 32)
