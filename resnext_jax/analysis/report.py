"""The costs of a step from its optimized HLO text: cycles by part, memory traffic, collectives; and a table of them.

The compiler has no figure for custom calls (Pallas kernels) and a few others, the gradient of max-pooling among them.
They are listed separately, with the time of their bytes and flops at the peak rates of the chip. That is a low lower
bound: for single passes over a large array the compiler itself assumes 0.2 to 0.9 of the peak rate of the memory.
Collectives are listed with their bytes, and so are copies that run beside the computation; neither is part of the sum.
"""

import collections
import dataclasses
import re
from typing import Any

from resnext_jax.analysis import hlo, parts
from resnext_jax.analysis.chips import Chip
from resnext_jax.models import zoo

NOTE = "estimate of the TPU compiler, not a measurement"
MIB = 2**20
# What costs nothing or is counted elsewhere.
FREE_OPCODES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"}
FREE_OPCODES |= {"partition-id", "replica-id"}
FREE_CUSTOM_CALLS = {"AllocateBuffer", "ConcatBitcast"}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of one program, per device (a chip; on v3 a core) and training step."""

    estimated_cycles: int  # sum of the compiler's figures, loops counted with their trips
    estimated_s: float  # the same at the chip's clock
    floor_cycles: int  # lower bound for `custom_calls` and `without_figure`, which are not part of the sum
    parts: dict[str, dict[str, int]]  # part -> direction -> cycles
    collective_bytes: int  # sum over the collectives of what a device sends or receives, whichever is larger
    collectives: list[Row]  # each with its shapes, its bytes, and its bytes by part
    custom_calls: list[Row]  # one row each
    without_figure: list[Row]  # one row by opcode and part, if it takes a cycle or more at peak rates
    async_copies: Row  # between HBM and on-chip memory, beside the computation: count, bytes, time at peak rates
    unknown_loops: list[str]  # loops of unknown length, counted once


def account(text: str, chip: Chip, arch: zoo.Row) -> Costs:
    """Return the costs in the optimized HLO text (`compiled.as_text()`) of a training step of `arch`."""
    module = hlo.parse(text)
    steps, unknown_loops = hlo.executed(module)
    named = [(step, parts.op_name_of(module, step.instruction, step.computation)) for step in steps]
    by_part: dict[str, dict[str, int]] = {}
    for step, op_name in named:
        if step.cycles is not None:
            row = by_part.setdefault(parts.part_of(op_name, arch), {})
            direction = parts.direction_of(op_name)
            row[direction] = row.get(direction, 0) + step.cycles
    collective_rows = _collectives(module, steps, arch)
    custom_calls, without_figure, async_copies = _without_figure(named, chip, arch)
    total = hlo.total_cycles(steps)
    return Costs(
        estimated_cycles=total,
        estimated_s=total / chip.clock_hz,
        floor_cycles=sum(row["floor_cycles"] for row in (*custom_calls, *without_figure)),
        parts={part: by_part[part] for part in parts.PARTS if part in by_part},
        collective_bytes=sum(row["bytes"] for row in collective_rows),
        collectives=collective_rows,
        custom_calls=custom_calls,
        without_figure=without_figure,
        async_copies=async_copies,
        unknown_loops=unknown_loops,
    )


def _collectives(module: hlo.Module, steps: list[hlo.Executed], arch: zoo.Row) -> list[Row]:
    rows, spread = [], set()
    for step in steps:
        if _is_collective(step.instruction):
            rows.append(_collective_row(module, step.instruction, step, arch))
        for found in hlo.inside(module, step.instruction) if step.instruction.opcode == "fusion" else ():
            channel = re.search(r"channel_id=(\d+)", found.attributes)
            # A fused collective may be spread over several fusions, all of one channel and operation. Collectives of
            # their own may share a channel without being one.
            one = (channel and channel[1], found.op_name)
            if _is_collective(found) and one not in spread:
                spread.add(one)
                rows.append(_collective_row(module, found, step, arch))
    return rows


def _collective_row(module: hlo.Module, instruction: hlo.Instruction, step: hlo.Executed, arch: zoo.Row) -> Row:
    sent, received = _operand_bytes(instruction, step.computation), instruction.num_bytes
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        received -= sent + 4 * len(re.findall(r"[us]32\[\]", instruction.shape))  # a tuple of both ends, and counters
    # A combined collective carries arrays of many parts. Each array has its name where it is taken out again, or else
    # (a `psum` of `shard_map`) where it is put in.
    values = step.computation.values()
    taken = [i for i in values if i.opcode == "get-tuple-element" and i.operands[0] == instruction.name]
    by_part = collections.Counter()
    for array in taken or [instruction]:
        index = re.search(r"\bindex=(\d+)", array.attributes) if taken else None
        put_in = instruction.operands[int(index[1]) if index else 0 :][:1]
        operands = [step.computation[name] for name in put_in if name in step.computation]
        names = [array.op_name, *(parts.op_name_of(module, operand, step.computation) for operand in operands)]
        name = next((name for name in names if parts.part_of(name, arch) != "other"), instruction.op_name)
        by_part[f"{parts.part_of(name, arch)} {parts.direction_of(name)}"] += step.times * array.num_bytes
    row = {"opcode": instruction.opcode, "count": step.times, "bytes": step.times * max(sent, received)}
    return row | {"shapes": _shapes(instruction), "parts": dict(by_part.most_common())}


def _without_figure(
    named: list[tuple[hlo.Executed, str]], chip: Chip, arch: zoo.Row
) -> tuple[list[Row], list[Row], Row]:
    """Return the custom calls, everything else by opcode and part, and the asynchronous copies."""
    custom_calls: list[Row] = []
    rest: dict[tuple[str, str], Row] = {}
    copies = {"count": 0, "bytes": 0}
    for step, op_name in named:
        instruction, opcode, part = step.instruction, step.instruction.opcode, parts.part_of(op_name, arch)
        free = opcode in FREE_OPCODES or opcode.endswith(("-done", "-update"))
        if free or step.cycles is not None or _is_collective(instruction):
            continue
        num_bytes, flops = _traffic(instruction, step.computation)
        row = {"count": step.times, "bytes": step.times * num_bytes}
        if opcode == "custom-call":
            target = (re.findall(r'custom_call_target="([^"]*)"', instruction.attributes) or ["?"])[0]
            if target not in FREE_CUSTOM_CALLS:
                floor = _floor_cycles(chip, row["bytes"], step.times * (flops or 0))
                name = {"target": target, "op_name": op_name, "part": part, "direction": parts.direction_of(op_name)}
                counted = {"flops": None if flops is None else step.times * flops}
                custom_calls.append(name | row | counted | {"floor_cycles": floor, "floor_s": floor / chip.clock_hz})
            continue
        into = copies if opcode.endswith("-start") else rest.setdefault((opcode, part), {"count": 0, "bytes": 0})
        into["count"] += row["count"]
        into["bytes"] += row["bytes"]
    rows = [
        {"opcode": opcode, "part": part, **row, "floor_cycles": _floor_cycles(chip, row["bytes"])}
        for (opcode, part), row in rest.items()
    ]
    rows = sorted((row for row in rows if row["floor_cycles"]), key=lambda row: -row["floor_cycles"])
    return custom_calls, rows, copies | {"floor_cycles": _floor_cycles(chip, copies["bytes"])}


def _is_collective(instruction: hlo.Instruction) -> bool:
    return instruction.opcode.removesuffix("-start") in hlo.COLLECTIVES


def _floor_cycles(chip: Chip, num_bytes: int, flops: int = 0) -> int:
    return round(max(num_bytes / chip.hbm_bytes_per_s, flops / chip.bf16_flops_per_s) * chip.clock_hz)


def _traffic(instruction: hlo.Instruction, computation: hlo.Computation) -> tuple[int, int | None]:
    """Return bytes in and out, and flops, from a Pallas kernel's `cost_estimate` where it has one, else by shapes."""
    # A copy crosses between the memories once; its operand may be a slice's whole array, its result is both ends.
    if instruction.opcode.endswith("-start"):
        return min([hlo.num_bytes(shape) for shape in _shapes(instruction)][:2]), None
    stated = re.search(r'"cost_estimate":\{[^}]*\}', instruction.attributes)
    numbers = dict(re.findall(r'"(\w+)":"(\d+)"', stated[0])) if stated else {}
    moved = _operand_bytes(instruction, computation) + instruction.num_bytes
    return int(numbers.get("bytes_accessed", 0)) or moved, int(numbers["flops"]) if "flops" in numbers else None


def _shapes(instruction: hlo.Instruction) -> list[str]:
    return re.findall(r"\w+\[[\d,]*\]", instruction.shape)


def _operand_bytes(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
    return sum(computation[name].num_bytes for name in instruction.operands if name in computation)


def table(costs: Costs, chip: Chip) -> str:
    """Return the costs as a text for people."""
    total = costs.estimated_cycles
    lines = [
        f"{_mega(total)} a step on every {chip.device}, {costs.estimated_s * 1e3:.2f} ms at {chip.clock_hz / 1e9:g} GHz"
        f"   ({NOTE})",
        f"  {'M cycles':14}" + "".join(f"{name:>10}" for name in (*parts.DIRECTIONS, "sum", "share")),
    ]
    for part, row in costs.parts.items():
        numbers = [row.get(direction, 0) for direction in parts.DIRECTIONS]
        cells = "".join(f"{number / 1e6:10.3f}" if number else f"{'':10}" for number in numbers)
        lines.append(f"  {part:14}{cells}{sum(numbers) / 1e6:10.3f}{sum(numbers) / max(total, 1):10.1%}")
    if costs.floor_cycles:
        lines.append(
            f"  no figure by the compiler, not in the sum; at peak rates at least {_mega(costs.floor_cycles)}:"
        )
    for row in costs.custom_calls:
        flops = "flops unknown" if row["flops"] is None else f"{row['flops'] / 1e9:.3f} G flops"
        lines.append(f"    {_mega(row['floor_cycles'])}  {row['target']} {row['op_name']}, {_mib(row)}, {flops}")
    lines += [
        f"    {_mega(row['floor_cycles'])}  {row['count']} {row['opcode']}, {row['part']}, {_mib(row)}"
        for row in costs.without_figure
        if row["floor_cycles"] >= total / 1000
    ]
    copies = costs.async_copies
    lines.append(
        f"  beside the computation, not in the sum: {copies['count']} copies between HBM and on-chip memory, "
        f"{_mib(copies)}, {_mega(copies['floor_cycles'])} at peak rates"
    )
    lines += [f"  the loop {name} has an unknown length and is counted once" for name in costs.unknown_loops]
    lines.append(f"  collectives: {len(costs.collectives)}, {costs.collective_bytes / MIB:.2f} MiB, not in the sum")
    for row in costs.collectives:
        times = f"{row['count']} x " if row["count"] > 1 else ""
        most = ", ".join(f"{name} {size / MIB:.2f}" for name, size in list(row["parts"].items())[:4])
        what = row["shapes"][0] if len(row["shapes"]) == 1 else f"{len(row['shapes'])} arrays"
        lines.append(f"    {times}{row['opcode']} of {what}, {_mib(row)}: {most}{', ...' * (len(row['parts']) > 4)}")
    return "\n".join(lines)


def _mega(cycles: int) -> str:
    return f"{cycles / 1e6:.3f} M cycles"


def _mib(row: Row) -> str:
    return f"{row['bytes'] / MIB:.2f} MiB"
