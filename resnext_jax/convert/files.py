"""Read and write files of weights as arrays by name. Nothing in a file is executed."""

import collections
import contextlib
import json
import math
import mmap
import os
import re
import struct
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from resnext_jax.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SAFETENSORS_DTYPES = dict(
    **dict(F64="<f8", F32="<f4", F16="<f2", I64="<i8", I32="<i4", I16="<i2", I8="i1", U8="u1", BOOL="?"),
    BF16=BFLOAT16,
)
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


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    content = open_bytes(path)
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        if length > len(content) - 8 or not isinstance(header, dict):
            raise ValueError("its header is cut short or no table")
        arrays, end = {}, 8 + length
        for name, fields in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = np.dtype(SAFETENSORS_DTYPES[fields["dtype"]]), fields["shape"]
            if not all(isinstance(size, int) and size >= 0 for size in shape):
                raise ValueError(f"the shape {shape}")
            first, last = fields["data_offsets"]
            count, start = math.prod(shape), 8 + length + first
            if not 0 <= first <= last or last - first != count * dtype.itemsize or 8 + length + last > len(content):
                raise ValueError(f"{name} lies outside of it")
            arrays[name] = np.frombuffer(content, dtype, count, start).reshape(shape)
            end = max(end, 8 + length + last)
        if end != len(content):
            raise ValueError(f"{len(content) - end} bytes at its end belong to no array")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError | TypeError) else error
        raise UserError(f"{path} is no whole .safetensors file: {reason}. Fetch it again.") from None
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
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise UserError(f"{path}: {name} is a {type(tensor).__name__}, not a plain tensor. {SAVE_ALONE}")
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def write_torch(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict; raises UserError if PyTorch is missing, or the file exists or cannot be written."""
    torch = import_torch(f"writing {path}")
    if os.path.exists(path):
        raise UserError(f"{path} exists, and is left as it is. Remove it, or give another --out=FILE.")
    tensors = collections.OrderedDict()  # the type of a state dict
    for name, array in arrays.items():
        array = array.copy()  # PyTorch wants writable memory
        is_bfloat16 = array.dtype == BFLOAT16
        tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
        tensors[name] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    try:
        torch.save(tensors, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            os.remove(path)
        raise UserError(f"{path} cannot be written: {str(error).rstrip('.')}. Give another --out=FILE.") from None
