"""Read and write files of weights as arrays by name. Nothing in a file is executed."""

import collections
import contextlib
import math
import mmap
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from resnext_jax.errors import UserError
from resnext_jax.json_files import MAX_SHOWN, WHOLE, check_form, parse_json, shown

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SAFETENSORS_DTYPES = dict(
    **dict(F64="<f8", F32="<f4", F16="<f2", I64="<i8", I32="<i4", I16="<i2", I8="i1", U8="u1", BOOL="?"),
    BF16=BFLOAT16,
)
HEADER_ENTRY = {"dtype": str, "shape": [WHOLE], "data_offsets": [WHOLE]}  # form of a JSON value
MAX_HEADER_BYTES = 100_000_000  # as in the reader of its authors
MAX_DIMENSIONS = 16
MAX_UNPACKED = 4  # entries of a PyTorch file are stored uncompressed; others compress them a little
CHUNK_BYTES = 1 << 22
WRAPPERS = ("state_dict", "model")  # keys under which training scripts save the weights beside other values
SAVE_ALONE = "Save the weights by themselves: torch.save(model.state_dict(), FILE)."


def open_bytes(path: str) -> mmap.mmap:
    """Return the content of a file, mapped into memory; raises UserError if it cannot be read, or is empty."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Give the path of a file of weights.") from None
    except ValueError:
        raise UserError(f"{path} is empty. Fetch the file again.") from None


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of a `.safetensors` or a PyTorch file, in the order of the file.

    Raises:
      UserError: it is truncated, or holds anything but arrays by name; code in it is not executed.
    """
    return _read_safetensors(path) if path.endswith(".safetensors") else _read_torch(path)


def array_at(data: Any, start: int, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """Return the array at a place of a file; raises ValueError if it has impossible sizes or does not lie in the file.

    Args:
      data: content of the file.
      start: first byte of the array.
    """
    if len(shape) > MAX_DIMENSIONS or not all(0 <= size < 2**63 for size in shape):
        raise ValueError(f"the sizes {shown(list(shape))}")
    count = math.prod(shape)
    if not 0 <= start <= len(data) or count * dtype.itemsize > len(data) - start:
        raise ValueError(
            f"it ends at byte {len(data):,}, where {count * dtype.itemsize:,} bytes from byte {start:,} on are due"
        )
    return np.frombuffer(data, dtype, count, start).reshape(shape)  # refuses sizes like (0, 2**62)


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    content = open_bytes(path)
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(len(content) - 8, MAX_HEADER_BYTES) or content[8:9] != b"{":
            raise ValueError("its header is cut short, too large or no table")
        header = parse_json(content[8 : 8 + length], dict)
        check_form(header.pop("__metadata__", {}), {str: str}, "__metadata__")
        check_form(header, {str: HEADER_ENTRY})
        arrays, places = {}, []
        for name, fields in header.items():
            if fields["dtype"] not in SAFETENSORS_DTYPES or len(fields["data_offsets"]) != 2:
                raise ValueError(f"{shown(name)} has the dtype {shown(fields['dtype'])} or other than two offsets")
            first, last = fields["data_offsets"]
            arrays[name] = array_at(
                content, 8 + length + first, np.dtype(SAFETENSORS_DTYPES[fields["dtype"]]), fields["shape"]
            )
            if last - first != arrays[name].nbytes:
                raise ValueError(f"{shown(name)} has {last - first:,} bytes, and its shape {arrays[name].nbytes:,}")
            places.append((first, last, name))
        ends = [0, *(last for _, last, _ in sorted(places))]
        for end, (first, _, name) in zip(ends, sorted(places), strict=False):
            if first != end:
                raise ValueError(f"{shown(name)} begins at byte {first:,} of the data, where {end:,} is due")
        if (rest := len(content) - 8 - length - ends[-1]) != 0:
            raise ValueError(f"{rest:,} bytes at its end belong to no array")
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} is no whole .safetensors file: {error}. Fetch it again.") from None
    return arrays


def import_torch(what: str) -> ModuleType:
    """Return the module `torch`; raises UserError if it is not installed."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{what} wants PyTorch, which is not installed: pip install -e '.[convert]' (or pip install torch). "
            ".safetensors and .t7 files are read without it."
        ) from None
    return torch


def _read_torch(path: str) -> dict[str, np.ndarray]:
    open_bytes(path).close()
    torch = import_torch(f"reading {path}")
    _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storages
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise almost anything in the reader
        raise UserError(
            f"{path} cannot be read as tensors alone ({_reason(error)}). It is broken or cut short, or it holds "
            "objects and code, which are never executed here. Fetch it again, or where you trust it save its weights "
            "by themselves: torch.save(model.state_dict(), FILE)."
        ) from None
    return {name: _to_numpy(torch, path, name, tensor) for name, tensor in _state_dict(path, content).items()}


def _check_zip(path: str) -> None:
    """Compares the content of a zip with its sizes and CRC-32s, which PyTorch does not do; other files have none."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            (name, times), *_ = collections.Counter(entry.filename for entry in entries).most_common(1)
            if times > 1:
                raise ValueError(f"it has {times} entries {shown(name)}")
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED * os.path.getsize(path):
                raise ValueError(f"its entries claim more than {MAX_UNPACKED} times its size")
            if not any(entry.CRC for entry in entries):  # torch.serialization.set_crc32_options(False)
                return
            for entry in entries:
                with archive.open(entry) as part:
                    while part.read(CHUNK_BYTES):
                        pass  # at its end the CRC-32 is compared
    except Exception as error:  # a broken file can raise almost anything in the reader
        raise UserError(f"{path} is damaged ({shown(str(error))}). Fetch it again.") from None


def _reason(error: Exception) -> str:
    """Return what PyTorch found, without its advice to read the file in a way that executes it."""
    text = str(error)
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it names {named[1]}, which is no tensor"
    if "weights_only" in text:
        return "it is no table of tensors"
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return first[:200].partition(". ")[0]


def _state_dict(path: str, content: Any) -> Mapping[str, Any]:
    """Return the weights by name, without what a training script wrapped around them."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} holds {type(content).__name__}, no tensors by name. {SAVE_ALONE}")
    if content and all(name.startswith("module.") for name in content):  # from DataParallel
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return content


def _to_numpy(torch: ModuleType, path: str, name: str, tensor: Any) -> np.ndarray:
    """Return a tensor as a view: one that repeats a few values (stride 0) may be larger than any memory."""
    try:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError
        tensor = tensor.detach()
        return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    except (TypeError, RuntimeError, NotImplementedError):  # sparse, quantized, without data, of a dtype of its own
        kind = f"{type(tensor).__name__}{f' of {tensor.dtype}' if isinstance(tensor, torch.Tensor) else ''}"
        raise UserError(f"{path}: {name[:MAX_SHOWN]} is a {kind}, not a plain tensor. {SAVE_ALONE}") from None


def write_torch(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict completely or not at all; a file that has the same arrays already is left as it is.

    Raises:
      UserError: PyTorch is missing, or another file exists or the file cannot be written.
    """
    torch = import_torch(f"writing {path}")
    if os.path.exists(path):
        if not _has_arrays(path, arrays):
            raise UserError(f"{path} exists, and is left as it is. Remove it, or give another --out=FILE.")
        return
    tensors = collections.OrderedDict()  # the type of a state dict
    for name, array in arrays.items():
        array = array.copy()  # PyTorch wants writable memory
        is_bfloat16 = array.dtype == BFLOAT16
        tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
        tensors[name] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    unfinished = f"{path}.unfinished"  # what a kill leaves there is written over
    try:
        torch.save(tensors, unfinished)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise UserError(f"{path} cannot be written: {str(error).rstrip('.')}. Give another --out=FILE.") from None


def _has_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether a file has exactly these arrays, in this order."""
    try:
        found = read_arrays(path)
    except UserError:
        return False
    pairs = zip(found.values(), arrays.values(), strict=False)
    return list(found) == list(arrays) and all(
        (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()) for one, other in pairs
    )
