"""Files of weights are read as data: a pickle with code is refused unexecuted, a broken file with an instruction."""

import json
import os
import pickle
import struct
import sys
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from resnext_jax.convert.files import read_arrays, write_torch
from resnext_jax.errors import UserError


def message(path):
    with pytest.raises(UserError) as caught:
        read_arrays(str(path))
    return str(caught.value)


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("new_format", [True, False])
def test_states_of_torch(tmp_path, new_format):
    """The zip files of today, and those of before 2020 (the WSL, SSL and SWSL ResNeXts)."""
    state = {
        "weight": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "half": torch.tensor([0.1, 65504.0], dtype=torch.float16),
        "brain": torch.tensor([1.0, -3.0e38], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    path = tmp_path / "x.pth"
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    arrays = read_arrays(str(path))
    assert list(arrays) == list(state)
    np.testing.assert_array_equal(arrays["weight"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(arrays["half"], np.array([0.1, 65504], np.float16))
    np.testing.assert_array_equal(arrays["brain"], np.array([1, -3.0e38], ml_dtypes.bfloat16))
    assert (arrays["bn.num_batches_tracked"].shape, arrays["bn.num_batches_tracked"].dtype) == ((), np.int64)

    written = tmp_path / "y.pth"
    write_torch(str(written), arrays)
    back = torch.load(written, weights_only=True)
    assert all(
        torch.equal(back[name], tensor.data) and back[name].dtype == tensor.dtype for name, tensor in state.items()
    )
    write_torch(str(written), arrays)  # the same again is done already
    with pytest.raises(UserError, match=r"y\.pth exists"):
        write_torch(str(written), dict(reversed(arrays.items())))


@pytest.mark.parametrize("wrap", [{"state_dict": 1, "epoch": 3}, {"model": 1, "args": {"lr": 0.1}}])
def test_what_training_scripts_wrap_around(tmp_path, wrap):
    content = {key: {"module.fc.bias": torch.ones(2)} if value == 1 else value for key, value in wrap.items()}
    torch.save(content, tmp_path / "x.pth")
    assert list(read_arrays(str(tmp_path / "x.pth"))) == ["fc.bias"]


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle", "beside weights"])
def test_code_in_a_pickle_is_not_executed(tmp_path, kind):
    marker, path = tmp_path / "executed", tmp_path / "x.pth"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Hostile(marker)))
    else:
        content = {"fc.bias": torch.ones(2), "x": Hostile(marker)} if kind == "beside weights" else Hostile(marker)
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    text = message(path)
    assert not marker.exists()
    assert "never executed" in text
    assert "torch.save(model.state_dict(), FILE)" in text
    # Of a pickle of another protocol than its own, PyTorch does not say what stands in it.
    assert ("it is no table of tensors" if kind == "plain pickle" else f"it names {os.mkdir.__module__}.mkdir") in text
    for advice in ("weights_only", "safe_globals", "\x1b"):  # PyTorch's own, which would execute it
        assert advice not in text
    if kind == "plain pickle":
        pickle.loads(path.read_bytes())  # the file does what it is meant to
        assert marker.exists()


def test_a_network_saved_whole(tmp_path):
    """Not its weights alone: the sentence names the class that would have to be run."""
    torch.save(torch.nn.Linear(2, 3), tmp_path / "x.pth")
    text = message(tmp_path / "x.pth")
    assert "it names torch.nn.modules.linear.Linear" in text
    assert "weights_only" not in text


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"y\.pth cannot be written: .*none does not exist\. Give another --out=FILE"):
        write_torch(str(tmp_path / "none" / "y.pth"), {"a": np.ones(2, np.float32)})


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_files_cut_short(tmp_path, new_format):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    for length in (1, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "Fetch it again" in message(path)
    path.write_bytes(b"")
    assert "is empty" in message(path)
    assert "No such file" in message(tmp_path / "none.pth")
    assert "Is a directory" in message(tmp_path)


@pytest.mark.parametrize("crc32", [True, False])
def test_a_flipped_bit_is_found_by_the_crc_32(tmp_path, crc32):
    """PyTorch reads it; files written without CRC-32s (an option of PyTorch) can only be trusted."""
    path, values = tmp_path / "x.pth", torch.full((1000,), 0.318)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(crc32)
    torch.save({"a": values}, path)
    torch.serialization.set_crc32_options(before)
    np.testing.assert_array_equal(read_arrays(str(path))["a"], values.numpy())
    content = bytearray(path.read_bytes())
    content[content.index(values.numpy().tobytes()) + 4 * 500 + 3] ^= 1 << 6
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["a"][500] > 1e37
    if crc32:
        assert "is damaged" in message(path)
        assert "CRC-32" in message(path)


def rewritten(path, change):
    """Writes the zip of a PyTorch file anew, its entries changed by `change(names to contents)`."""
    torch.save({"a": torch.ones(1000)}, path)
    with zipfile.ZipFile(path) as file:
        entries = [(name, file.read(name)) for name in file.namelist()]
    return change(entries)


def test_a_zip_with_two_entries_of_a_name(tmp_path):
    path = tmp_path / "x.pth"
    entries = rewritten(path, lambda entries: [*entries, ("x/data/0", bytes(4000))])
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")
        for name, content in entries:
            file.writestr(name, content)
    assert "2 entries 'x/data/0'" in message(path)


def test_a_zip_that_claims_to_be_much_larger(tmp_path):
    path = tmp_path / "x.pth"
    entries = rewritten(path, lambda entries: [*entries, ("x/bomb", bytes(10_000_000))])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    assert "4 times its size" in message(path)


def test_a_tensor_of_one_repeated_value_takes_no_memory(tmp_path):
    torch.save({"a": torch.ones(1).expand(2**40)}, tmp_path / "x.pth")
    assert read_arrays(str(tmp_path / "x.pth"))["a"].shape == (2**40,)


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {1: torch.ones(2)}, 3.0])
def test_no_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    assert "no tensors by name" in message(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "value",
    [
        *(3, "text", [torch.ones(2)], torch.ones(2).to_sparse(), torch.empty(2, device="meta")),
        *(torch.ones(2).to(torch.float8_e4m3fn), torch.tensor([1j]).conj()),
    ],
)
def test_no_plain_tensor(tmp_path, value):
    torch.save({"a": value}, tmp_path / "x.pth")
    assert "a is a" in message(tmp_path / "x.pth")


def test_without_torch(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    text = message(tmp_path / "x.pth")
    assert "wants PyTorch" in text
    assert "pip install -e '.[convert]'" in text


def safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype, shape, first, last):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_safetensors(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("F32", [2, 2], 8, 24),
        "a": entry("F16", [4], 0, 8),
        "n": entry("I64", [], 24, 32),
        "brain": entry("BF16", [1], 32, 34),
    }
    data = np.array([1, 2, 3, 4], "<f2").tobytes() + np.array([5, 6, 7, 8], "<f4").tobytes()
    data += np.array(9, "<i8").tobytes() + b"\x80\x3f"
    arrays = read_arrays(str(safetensors(tmp_path / "x.safetensors", header, data)))
    assert list(arrays) == ["b", "a", "n", "brain"]
    np.testing.assert_array_equal(arrays["a"], np.array([1, 2, 3, 4], np.float16))
    np.testing.assert_array_equal(arrays["b"], np.array([[5, 6], [7, 8]], np.float32))
    assert arrays["n"] == 9
    assert arrays["brain"].astype(np.float32) == 1


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        (b"{}", b"", 2**63),
        (b"{}", b"", 100),
        (b"[]", b"", None),
        (b"not json", b"", None),
        (b"\xff\xfe", b"", None),
        ({"a": 3}, b"", None),
        ({"a": {"dtype": "F32"}}, b"", None),
        ({"a": entry("F99", [1], 0, 4)}, bytes(4), None),
        ({"a": entry("F32", [2], 0, 4)}, bytes(4), None),
        ({"a": entry("F32", [1], 0, 4)}, bytes(3), None),
        ({"a": entry("F32", [1], -4, 0)}, bytes(4), None),
        ({"a": entry("F32", [-1], 0, -4)}, bytes(4), None),
        ({"a": entry("F32", ["1"], 0, 4)}, bytes(4), None),
        ({"a": entry("F32", [1], 0, 4)}, bytes(8), None),
        ({"a": entry("F32", [1], 4, 8)}, bytes(8), None),  # a hole at the beginning
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12), None),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, bytes(8), None),  # overlapping
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, bytes(4), None),
        (b'{"a": %(a)s, "a": %(a)s}' % {b"a": json.dumps(entry("F32", [1], 0, 4)).encode()}, bytes(4), None),
        ({"a": entry("F32", [2**62], 0, 2**64)}, bytes(4), None),
        ({"a": entry("F32", [0, 2**62], 0, 0)}, b"", None),
        ({"a": entry("F32", [2**70, 0], 0, 0)}, b"", None),
        ({"a": entry("F32", [1] * 100_000, 0, 4)}, bytes(4), None),
        ({"a": entry("F32", [True], 0, 4)}, bytes(4), None),
        ({"a": entry("F32", [1], "0", "4")}, bytes(4), None),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4), None),
        ({"a": entry("F32", [1], 0, 4), "__metadata__": {"format": 1}}, bytes(4), None),
        (b'{"a":' * 50_000, b"", None),
        (b" {}", b"", None),
    ],
)
def test_broken_safetensors(tmp_path, header, data, length):
    path = safetensors(tmp_path / "x.safetensors", header, data, length)
    assert "is no whole .safetensors file" in message(path)


def test_safetensors_cut_short(tmp_path):
    path = safetensors(tmp_path / "x.safetensors", {"a": entry("F32", [4], 0, 16)}, bytes(16))
    content = path.read_bytes()
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        assert "is no whole .safetensors file" in message(path)
