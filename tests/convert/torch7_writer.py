"""Torch7's binary files once more, written: from the description in torch7's doc/serialization.md, not from the reader.

Networks are built as fb.resnet.torch and ResNeXt build them (models/resnet.lua, preresnet.lua, resnext.lua), and
computed by PyTorch's functions, module by module.
"""

import struct
from typing import Any

import numpy as np
import torch
from torch.nn import functional


class Obj:
    """An object of a Torch7 class with its fields."""

    def __init__(self, class_name: str, **fields: Any):
        self.class_name, self.fields = class_name, fields


class Func:
    """A Lua function: made-up bytecode and upvalues."""

    def __init__(self, bytecode: bytes, upvalues: Any):
        self.bytecode, self.upvalues = bytecode, upvalues


class Writer:
    """Writes one object; equal arrays and objects that are met again become references, as Torch7 has them.

    Args:
      tensor_class: of float32 arrays, "Float" or "Cuda". Views of one flat array are written with that as their
        storage, as after getParameters().
      versions: False for files of before versions were written.
    """

    def __init__(self, tensor_class: str = "Float", versions: bool = True):
        self.out, self.seen, self.tensor_class, self.versions = bytearray(), {}, tensor_class, versions
        self.keep: list[Any] = []

    def write(self, value: Any) -> "Writer":
        if value is None:
            self.int32(0)
        elif isinstance(value, bool):
            self.int32(5).int32(int(value))
        elif isinstance(value, int | float):
            self.int32(1)
            self.out += struct.pack("<d", value)
        elif isinstance(value, str):
            self.int32(2).text(value)
        elif isinstance(value, dict | list):
            if self.reference(3, value):
                pairs = value.items() if isinstance(value, dict) else enumerate(value, start=1)
                self.int32(len(value))
                for key, item in pairs:
                    self.write(key).write(item)
        elif isinstance(value, Func):
            if self.reference(8, value):
                self.int32(len(value.bytecode))
                self.out += value.bytecode
                self.write(value.upvalues)
        elif isinstance(value, Obj):
            if self.reference(4, value):
                self.class_name(value.class_name).write(value.fields)
        elif self.reference(4, value):
            self.tensor(value)
        return self

    def tensor(self, array: np.ndarray) -> None:
        kind = {"float32": self.tensor_class, "float64": "Double", "int64": "Long"}[array.dtype.name]
        self.class_name(f"torch.{kind}Tensor").int32(array.ndim)
        storage = array if array.base is None or array.base.ndim != 1 else array.base
        for size in array.shape:
            self.int64(size)
        for stride in array.strides:
            self.int64(stride // array.itemsize)
        offset = (array.__array_interface__["data"][0] - storage.__array_interface__["data"][0]) // array.itemsize
        self.int64(offset + 1)
        if self.reference(4, storage if storage is not array else (array, "storage")):
            self.class_name(f"torch.{kind}Storage").int64(storage.size)
            self.out += storage.tobytes()

    def reference(self, tag: int, value: Any) -> bool:
        """Writes the type and the index; whether the content has still to be written."""
        key = (id(value[0]), value[1]) if isinstance(value, tuple) else id(value)
        self.keep.append(value)
        new = key not in self.seen
        self.int32(tag).int32(self.seen.setdefault(key, len(self.seen) + 1))
        return new

    def class_name(self, name: str) -> "Writer":
        return self.text("V 1").text(name) if self.versions else self.text(name)

    def text(self, text: str) -> "Writer":
        self.int32(len(text.encode()))
        self.out += text.encode()
        return self

    def int32(self, value: int) -> "Writer":
        self.out += struct.pack("<i", value)
        return self

    def int64(self, value: int) -> "Writer":
        self.out += struct.pack("<q", value)
        return self


class Builder:
    """The original scripts' modules with random weights in one flat storage."""

    def __init__(self, seed: int = 0, num_values: int = 400_000, library: str = "cudnn"):
        self.rng, self.library = np.random.default_rng(seed), library
        self.flat, self.used = np.zeros(num_values, np.float32), 0

    def array(self, *shape: int, low: float, high: float) -> np.ndarray:
        size = int(np.prod(shape))
        part = self.flat[self.used : self.used + size]
        part[:] = self.rng.uniform(low, high, size)
        self.used += size
        return part.reshape(shape)

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> Obj:
        bound = (6 / (kernel * kernel * inputs // groups)) ** 0.5
        return Obj(
            f"{self.library}.SpatialConvolution",
            nInputPlane=inputs,
            nOutputPlane=outputs,
            groups=groups,
            **dict.fromkeys(("kW", "kH"), kernel),
            **dict.fromkeys(("dW", "dH"), stride),
            **dict.fromkeys(("padW", "padH"), kernel // 2),
            _type="torch.CudaTensor",
            weight=self.array(outputs, inputs // groups, kernel, kernel, low=-bound, high=bound),
        )

    def norm(self, channels: int) -> Obj:
        return Obj(
            f"{self.library}.SpatialBatchNormalization",
            eps=1e-5,
            momentum=0.1,
            weight=self.array(channels, low=0.5, high=1.5),
            bias=self.array(channels, low=-0.5, high=0.5),
            running_mean=self.array(channels, low=-0.5, high=0.5),
            running_var=self.array(channels, low=0.5, high=2),
        )

    def relu(self) -> Obj:
        return Obj(f"{self.library}.ReLU", inplace=True, mode="CUDNN_ACTIVATION_RELU")

    def block(self, inputs: int, inner: int, outputs: int, stride: int, groups: int, preactivation: str) -> Obj:
        """`preactivation`: "" (after the convolutions), or preresnet.lua's "no_preact", "both_preact", "preact"."""
        convs = [self.conv(inputs, inner, 1, 1), self.conv(inner, inner, 3, stride, groups)]
        convs.append(self.conv(inner, outputs, 1, 1))
        before, main = [], []
        if preactivation in ("both_preact", "preact"):
            (before if preactivation == "both_preact" else main).extend([self.norm(inputs), self.relu()])
        for number, conv in enumerate(convs):
            main.append(conv)
            if number < 2:
                main += [self.norm(inner), self.relu()]
            elif not preactivation:
                main.append(self.norm(outputs))
        shortcut = Obj("nn.Identity")
        if inputs != outputs or stride > 1:
            projection = self.conv(inputs, outputs, 1, stride)
            shortcut = sequential(projection, *([] if preactivation else [self.norm(outputs)]))
        table = Obj("nn.ConcatTable", modules=[sequential(*main), shortcut])
        after = [] if preactivation else [self.relu()]
        return sequential(*before, table, Obj("nn.CAddTable", inplace=True), *after)

    def network(
        self,
        blocks: tuple[int, ...],
        width: int,
        inner: int,
        groups: int,
        num_classes: int,
        preactivation: bool = False,
    ) -> Obj:
        pool = Obj(f"{self.library}.SpatialMaxPooling", kW=3, kH=3, dW=2, dH=2, padW=1, padH=1, ceil_mode=False)
        modules, channels = [self.conv(3, width, 7, 2), self.norm(width), self.relu(), pool], width
        for stage, count in enumerate(blocks):
            layer, outputs = [], 4 * width * 2**stage
            for number in range(count):
                kind = ("no_preact" if stage == 0 else "both_preact") if number == 0 else "preact"
                stride = 2 if stage > 0 and number == 0 else 1
                layer.append(
                    self.block(channels, inner * 2**stage, outputs, stride, groups, kind if preactivation else "")
                )
                channels = outputs
            modules.append(sequential(*layer))
        if preactivation:
            modules += [self.norm(channels), self.relu()]
        average = Obj(f"{self.library}.SpatialAveragePooling", kW=2, kH=2, dW=1, dH=1, padW=0, padH=0)
        view = Obj("nn.View", size=np.array([channels], np.int64), numElements=channels, numInputDims=3)
        weight = self.array(num_classes, channels, low=-0.1, high=0.1)
        linear = Obj("nn.Linear", weight=weight, bias=self.array(num_classes, low=-1, high=1))
        return sequential(*modules, average, view, linear)


def sequential(*modules: Obj) -> Obj:
    return Obj("nn.Sequential", modules=list(modules), train=False, _type="torch.CudaTensor")


def compute(module: Obj, x: torch.Tensor) -> torch.Tensor:
    """What Torch7's modules do in evaluation."""
    kind, fields = module.class_name.split(".")[1], module.fields
    arrays = {name: torch.from_numpy(value.copy()) for name, value in fields.items() if isinstance(value, np.ndarray)}
    match kind:
        case "Sequential":
            for part in fields["modules"]:
                x = compute(part, x)
            return x
        case "ConcatTable":
            return torch.stack([compute(part, x) for part in fields["modules"]])
        case "CAddTable":
            return x.sum(0)
        case "SpatialConvolution":
            weight = arrays["weight"].reshape(fields["nOutputPlane"], -1, fields["kH"], fields["kW"])
            return functional.conv2d(x, weight, None, fields["dW"], fields["padW"], 1, fields.get("groups", 1))
        case "SpatialBatchNormalization":
            running = arrays["running_mean"], arrays["running_var"]
            return functional.batch_norm(x, *running, arrays["weight"], arrays["bias"], False, 0, fields["eps"])
        case "ReLU":
            return functional.relu(x)
        case "SpatialMaxPooling":
            return functional.max_pool2d(x, fields["kW"], fields["dW"], fields["padW"])
        case "SpatialAveragePooling":
            return x.mean((2, 3), keepdim=True)
        case "View":
            return x.flatten(1)
        case "Linear":
            return functional.linear(x, arrays["weight"], arrays["bias"])
        case "Identity":
            return x
    raise ValueError(kind)
