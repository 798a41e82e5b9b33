"""Read Torch7's binary files (torch/File.lua, `.t7`) as data; nothing in a file is executed.

Little-endian, with longs of 8 bytes. An object begins with its type: 0 nil; 1 number (double); 2 string (int32 length,
bytes); 3 table (int32 index, int32 count, pairs of objects); 4 object of a class (int32 index, version "V 1", class
name, body); 5 boolean (int32); 6, 7, 8 function (bytecode, upvalues). An index that occurred before refers to that
object. The body of a tensor is its number of dimensions, sizes, strides, offset (from 1) and storage; the body of a
storage is its length and elements; the body of any other class is a table of its fields.
"""

import dataclasses
import re
import struct
from typing import Any

import numpy as np

from resnext_jax.convert.files import MAX_DIMENSIONS, array_at, open_bytes
from resnext_jax.errors import UserError
from resnext_jax.json_files import MAX_SHOWN

NIL, NUMBER, STRING, TABLE, OBJECT, BOOLEAN, FUNCTION = range(7)
FUNCTIONS_WITH_INDEX = (7, 8)
CPU = dict(Double="<f8", Half="<f2", Long="<i8", Int="<i4", Short="<i2", Char="i1", Byte="u1")
DTYPES = {"Float": "<f4", "Cuda": "<f4", **CPU, **{f"Cuda{name}": dtype for name, dtype in CPU.items()}}
MAX_DEPTH = 150  # nested tables; a network has about 20


@dataclasses.dataclass(frozen=True)
class Function:
    """A Lua function: its bytecode was skipped."""


@dataclasses.dataclass(frozen=True)
class Module:
    """An object of any class except tensors and storages: `nn.Sequential`, `cudnn.SpatialConvolution`."""

    class_name: str
    fields: dict[Any, Any]


def read_torch7(path: str) -> Any:
    """Return the object in a file.

    It is a number, bool, str or None; an array (a tensor or a storage); a dict (a table, with int keys for whole
    numbers); a `Module` or a `Function`.

    Raises:
      UserError: the file is truncated or broken, or not of this format.
    """
    try:
        reader = _Reader(path)
        value, rest = reader.read(), len(reader.data) - reader.at
        if rest:
            raise _BrokenError(f"{rest:,} bytes follow its object, which ends at byte {reader.at:,}")
        return value
    except _BrokenError as error:
        raise UserError(
            f"{path} is no whole Torch7 file: {error}. Fetch it again; a file of Torch7's ascii format must be saved "
            "anew there with torch.save(FILE, model)."
        ) from None


class _BrokenError(Exception):
    pass


class _Reader:
    def __init__(self, path: str):
        self.data, self.at, self.depth = open_bytes(path), 0, 0
        self.seen: dict[int, Any] = {}

    def read(self) -> Any:
        start, tag = self.at, self.int32()
        if tag == NIL:
            return None
        if tag == NUMBER:
            return self.unpack("<d")
        if tag == STRING:
            return self.string()
        if tag == BOOLEAN:
            return self.int32() == 1
        if tag not in (TABLE, OBJECT, FUNCTION, *FUNCTIONS_WITH_INDEX):
            raise _BrokenError(f"at byte {start:,} stands the type {tag}, which does not exist")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _BrokenError(f"more than {MAX_DEPTH} objects lie within one another at byte {start:,}")
        value = self.function() if tag == FUNCTION else self.indexed(tag)
        self.depth -= 1
        return value

    def indexed(self, tag: int) -> Any:
        index = self.int32()
        if index in self.seen:
            return self.seen[index]
        if tag == TABLE:
            table = self.seen[index] = {}
            return self.fill(table)
        if tag != OBJECT:
            self.seen[index] = Function()
            return self.function()
        class_name = self.string()
        if re.fullmatch(r"V \d+", class_name):  # files older than versions begin with the class
            class_name = self.string()
        match = re.fullmatch(r"torch\.(\w*)(Tensor|Storage)", class_name)
        if match is None:
            module = self.seen[index] = Module(class_name, {})
            fields = self.read()
            if not isinstance(fields, dict):
                raise _BrokenError(
                    f"an object of {class_name[:MAX_SHOWN]} before byte {self.at:,} has no table of fields"
                )
            module.fields.update(fields)
            return module
        if match[1] not in DTYPES:
            raise _BrokenError(f"at byte {self.at:,} stands the class {class_name[:MAX_SHOWN]}, which is not known")
        dtype = np.dtype(DTYPES[match[1]])
        array = self.seen[index] = self.tensor(dtype) if match[2] == "Tensor" else self.storage(dtype)
        return array

    def fill(self, table: dict) -> dict:
        for _ in range(self.count()):
            key, value = self.read(), self.read()
            if isinstance(key, float) and key.is_integer():
                key = int(key)
            if isinstance(key, str | int | float | bool):  # other keys never name a part of a network
                table[key] = value
        return table

    def function(self) -> Function:
        self.skip(self.count())
        self.read()  # upvalues
        return Function()

    def storage(self, dtype: np.dtype) -> np.ndarray:
        count = self.int64()
        try:
            array = array_at(self.data, self.at, dtype, (count,))
        except ValueError as error:
            raise _BrokenError(error) from None
        self.at += array.nbytes
        return array

    def tensor(self, dtype: np.dtype) -> np.ndarray:
        start, num_dims = self.at, self.int32()
        if not 0 <= num_dims <= MAX_DIMENSIONS:
            raise _BrokenError(f"the tensor at byte {start:,} has {num_dims} dimensions")
        sizes = tuple(self.int64() for _ in range(num_dims))
        strides = tuple(self.int64() for _ in range(num_dims))
        offset, storage = self.int64() - 1, self.read()
        if storage is None or num_dims == 0:
            return np.empty(0, dtype)
        fits = isinstance(storage, np.ndarray) and storage.ndim == 1 and storage.dtype == dtype and offset >= 0
        fits = fits and all(size >= 0 for size in sizes) and all(stride >= 0 for stride in strides)
        if fits and 0 in sizes:
            return np.empty(0, dtype)  # as of sizes that no array can have: (0, 2**62)
        if fits:
            last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
            fits = last < len(storage) and int(np.prod(sizes, dtype=object)) <= len(storage)
        if not fits:
            raise _BrokenError(f"the tensor {sizes} at byte {start:,} does not lie within its storage")
        # The stride of a single element may be any number, also one that is too large for numpy.
        strides = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
        return np.lib.stride_tricks.as_strided(storage[offset:], sizes, strides, writeable=False)

    def int32(self) -> int:
        return self.unpack("<i")

    def int64(self) -> int:
        return self.unpack("<q")

    def count(self) -> int:
        start, count = self.at, self.int32()
        if count < 0:
            raise _BrokenError(f"at byte {start:,} stands the length {count}")
        return count

    def string(self) -> str:
        count, start = self.count(), self.at
        self.skip(count)
        return self.data[start : self.at].decode("utf-8", "surrogateescape")

    def unpack(self, form: str) -> Any:
        start = self.at
        self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, start)[0]

    def skip(self, count: int) -> None:
        if count < 0 or count > len(self.data) - self.at:
            raise _BrokenError(
                f"it ends at byte {len(self.data):,}, where {count:,} bytes from byte {self.at:,} on are due"
            )
        self.at += count
