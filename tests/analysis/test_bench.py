"""The command: what is compared, wrong input; not the speed of this machine."""

import importlib.util
import json
import sys

import pytest
import tiny

from resnext_jax.analysis import bench, timing

CONFIG = "--config=configs/quickstart.py"
TINY = (CONFIG, "--config.model.name=resnext11_4x2d_tiny", "--config.batch_size=4", "--config.bn_group_images=2")


@pytest.fixture(autouse=True)
def preallocation(monkeypatch):
    """The command sets this variable; the test puts it back."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--config=configs/NAME.py"),
        ((CONFIG, "--peer=tensorflow"), "unknown peer 'tensorflow'"),
        ((CONFIG, "--conv_impl=nativ"), "unknown conv_impl 'nativ'. Did you mean 'native'"),
        ((CONFIG, "--compare=fast"), "unknown conv_impl 'fast'"),
        ((CONFIG, "--networks=resnet50,resnet5"), "unknown network 'resnet5'. Did you mean"),
        ((CONFIG, "torch"), "remove 'torch'"),
        ((CONFIG, "--config.compute_dtype=bfloat16"), "--config.compute_dtype=float32"),
    ],
)
def test_a_wrong_argument_is_one_line_with_the_remedy(failure, arguments, words):
    assert words in failure(bench, *arguments)


def test_without_torch_the_message_says_how_to_install_it(failure, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert "pip install torch torchvision" in failure(bench, *TINY)


@pytest.mark.slow
def test_training_and_inference_of_a_tiny_network(command, torchvision, monkeypatch):
    monkeypatch.setattr(timing, "REPEAT_S", 0.0)
    torch = sys.modules["torch"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine its threads wait for each other, 30 ms at every layer
    _, out, _ = command(bench, *TINY, "--repeats=2", "--json")
    torch.set_num_threads(threads)
    shown, last = out.rstrip().rsplit("\n", 1)
    result = json.loads(last)
    assert "PyTorch" in shown
    assert result["device"].startswith("CPU")
    for task in ("train", "inference"):
        row = result[task]
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert all(row["range"][name][0] <= row[name] <= row["range"][name][1] for name in ("ours", "peer"))


def test_several_networks_and_our_own_native_beside_the_peer(command, monkeypatch):
    """Steps that are fakes of 0.1, 0.2 and 2 s a batch of 4, by a clock that only they move."""
    now, released = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def contender(seconds: float) -> timing.Contender:
        def step() -> None:
            now[0] += seconds

        return timing.Contender(dict.fromkeys(bench.TASKS, step), wait=id)

    seconds = {"auto": 0.1, "native": 2.0}
    monkeypatch.setattr(bench, "ours", lambda config, device, batch, conv_impl: contender(seconds[conv_impl]))
    monkeypatch.setattr(bench, "torch_peer", lambda *arguments: (contender(0.2), "a fake"))
    monkeypatch.setattr(bench, "import_torch", lambda platform: None)
    monkeypatch.setattr(bench, "release_torch", released.append)
    networks = ["resnext20_8x4d_small", "resnext11_4x2d_tiny"]
    _, out, _ = command(bench, *TINY, f"--networks={','.join(networks)}", "--compare=native", "--json")
    shown, last = out.rstrip().rsplit("\n", 1)
    result = json.loads(last)
    assert list(result["networks"]) == networks
    assert released == ["cpu", "cpu"]
    row = result["networks"]["resnext11_4x2d_tiny"]["train"]
    rates = [row[name] for name in ("ours", "peer", "ratio", "compare", "ratio_compare")]
    assert rates == pytest.approx([40, 20, 2, 2, 20])
    ratios = shown.splitlines()[-1].split()
    assert [float(number) for number in ratios[-2:]] == [2, 20]


@pytest.mark.parametrize("words", ["RESOURCE_EXHAUSTED: Out of memory while trying", "CUDA out of memory. Tried"])
def test_too_little_memory_is_one_line_with_a_smaller_batch(failure, words, monkeypatch):
    def fail(*arguments):
        raise RuntimeError(words)

    monkeypatch.setattr(bench, "ours", fail)
    error = failure(bench, *TINY, "--peer=none")
    assert "batch_size=4 is too large" in error
    assert "--config.batch_size=2" in error


def test_on_a_cpu_dtype_and_batch_are_changed_with_a_note():
    config = tiny.config("--config.data.image_size_px=224", "--config.batch_size=256", "--config.bn_group_images=32")
    config.compute_dtype = "bfloat16"
    notes = " ".join(bench.fit(config, "cpu", "torch", given=set()))
    assert (config.compute_dtype, config.batch_size, config.bn_group_images) == ("float32", 16, 0)
    assert "float32" in notes
    assert "batch 16, not the config's 256" in notes

    config.batch_size, config.bn_group_images, config.compute_dtype = 256, 32, "bfloat16"
    assert bench.fit(config, "gpu", "torch", given=set()) == []
    assert (config.compute_dtype, config.batch_size, config.bn_group_images) == ("bfloat16", 256, 32)
