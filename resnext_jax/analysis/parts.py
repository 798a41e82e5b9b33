"""The part of the network, and the direction, that an operation of the compiled training step belongs to.

JAX notes the path of every operation: `jit(train_step)/transpose(jvp(ResNeXt))/stage3/block1/conv2/mul`. Modules and
the scopes of `train.step` give the part, `transpose(...)` marks the backward pass, `jvp(...)` the forward pass.
"""

import re

from resnext_jax.analysis.hlo import Computation, Instruction, Module, inside
from resnext_jax.models.arch import Arch
from resnext_jax.models.densenet import DenseNetArch
from resnext_jax.models.zoo import Row

PARTS = ("input", "stem", "pooling", "1x1", "3x3", "grouped 3x3", "BN", "shortcut", "add and ReLU", "classifier")
PARTS += ("optimizer", "other")
DIRECTIONS = ("forward", "backward", "update", "other")

SCOPES = {"augment": "input", "loss": "classifier", "update": "optimizer", "classifier": "classifier"}
SCOPES |= {"hidden1": "classifier", "hidden2": "classifier", "final_bn": "BN"}
SCOPES |= {"stem_conv": "stem", "stem_bn": "stem", "shortcut_conv": "shortcut", "shortcut_bn": "shortcut"}


def part_of(op_name: str, arch: Row) -> str:
    """Return one of PARTS. The batch norms of the stem and of the shortcuts count as stem and shortcut.

    Example:
      >>> from resnext_jax.models.zoo import ARCHS
      >>> part_of("jit(train_step)/jvp(ResNeXt)/stage2/block1/conv2/conv_general_dilated", ARCHS["resnext50_32x4d"])
      'grouped 3x3'
    """
    words = re.findall(r"\w+", op_name)
    for word in words:
        if word in SCOPES:
            return SCOPES[word]
    if any(re.fullmatch(r"stage\d+", word) for word in words):
        # A convolution computed with its batch norm (`ops.moments`) counts as the convolution.
        product = words[-1] in ("conv_general_dilated", "dot_general")
        if any(re.fullmatch(r"bn\d", word) for word in words) and not product:
            return "BN"
        conv = next((word for word in words if re.fullmatch(r"conv\d", word)), None)
        if conv is None:
            return "add and ReLU"
        if isinstance(arch, Arch):
            if arch.block == "bottleneck" and conv != "conv2":
                return "1x1"
            return "grouped 3x3" if arch.cardinality > 1 else "3x3"
        return "1x1" if isinstance(arch, DenseNetArch) and conv == "conv1" else "3x3"
    if "Vgg" in words:  # ReLU and dropout of the fully connected layers
        return "classifier"
    if "ResNeXt" in words or "DenseNet" in words:  # outside its modules are only the stem's ReLU and the two poolings
        return "stem" if {"relu", "max", "gt", "select_n"} & set(words) else "pooling"
    return "other"


def direction_of(op_name: str) -> str:
    """Return one of DIRECTIONS; what is recomputed for the backward pass counts as backward."""
    if "transpose(" in op_name:
        return "backward"
    if "jvp(" in op_name or re.search(r"/augment\b", op_name):
        return "forward"
    return "update" if re.search(r"/update\b", op_name) else "other"


def op_name_of(module: Module, instruction: Instruction, computation: Computation) -> str:
    """Return the JAX operation that an instruction is counted as.

    A fusion counts as its convolution (or matrix product) if it has one, else as what XLA names it after, which is
    usually its last operation. A copy without a name counts as what it copies.
    """
    parts = list(inside(module, instruction)) if instruction.opcode == "fusion" else []
    products = [part.op_name for part in parts if part.opcode in ("convolution", "dot")]
    found = next((name for name in (*products, instruction.op_name) if name), "")
    if not found:
        found = next((part.op_name for part in reversed(parts) if part.op_name), "")
    while not found and instruction.operands and instruction.operands[0] in computation:
        instruction = computation[instruction.operands[0]]
        found = instruction.op_name
    return found
