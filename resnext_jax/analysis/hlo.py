"""Reads the optimized HLO text of a TPU program: what runs, how often per call, and the compiler's figure for each.

The TPU compiler writes its estimate into the text, `"estimated_cycles":"1915"` beside an instruction. The sum of all
such numbers in the file would count the body of a loop once and leave out what has no number. `executed` follows the
program as it runs instead.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

Computation = dict[str, "Instruction"]  # by name, in the order of the schedule

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
COLLECTIVES += ("ragged-all-to-all",)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: `%name = shape opcode(operands), attributes`."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def estimated_cycles(self) -> int | None:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """Path of the JAX operation that it comes from, or ""; names that XLA made up have no slash."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found and "/" in found[1] else ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the result (all arrays of a tuple), without the padding of its tiles."""
        return num_bytes(self.shape)

    def called(self, attribute: str) -> list[str]:
        """Return the computations that an attribute names: `body=%b` or `branch_computations={%a, %b}`."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", found[1]) if found else []


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations of a program, and the name of the one that runs."""

    computations: dict[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction as it runs."""

    instruction: Instruction
    times: int  # how often it runs per call of the program
    cycles: int | None  # the compiler's figure for all `times` together; None where it gives none
    computation: Computation  # contains the instruction; has its operands


def parse(text: str) -> Module:
    """Parse `compiled.as_text()`; lines that are not instructions are skipped."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            rest = re.sub(r"/\*.*?\*/", "", line[found.end() :])
            shape_end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
            opcode, _, _ = rest[shape_end:].strip().partition("(")
            start = rest.index("(", shape_end)
            end = _closing(rest, start)
            operands = tuple(re.findall(r"%([\w.\-]+)", rest[start:end])) or (rest[start + 1 : end - 1],)
            current[found[1]] = Instruction(found[1], opcode, rest[:shape_end], operands, rest[end:])
    return Module(computations, entry)


def _closing(text: str, start: int) -> int:
    """Return the position after the parenthesis that closes the one at `start`."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(text, start):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.end()
    raise ValueError(f"no closing parenthesis in {text[start : start + 80]!r}")


def num_bytes(shape: str) -> int:
    """Return the bytes of `bf16[32,56,56,128]{3,0,2,1:T(8,128)(2,1)}`, or of a tuple of such, without padding."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int(width[0]) if (width := re.findall(r"\d+", dtype)) else 0
        total += (math.prod(int(dim) for dim in dims.split(",") if dim) * bits + 7) // 8
    return total


def executed(module: Module) -> tuple[list[Executed], list[str]]:
    """Return the instructions that run as steps of their own, with how often, and the loops with unknown trips.

    A loop's body counts times its trips, once where the trips are unknown. A called computation counts. The contents
    of a fusion do not, because the figure of the fusion covers them. Of the branches of a conditional the most
    expensive counts. Of an asynchronous pair one figure counts: the start's, or the done's where the start has none.
    """
    unknown: list[str] = []

    def visit(name: str, times: int) -> list[Executed]:
        steps, computation = [], module.computations[name]
        for instruction in computation.values():
            opcode, figure = instruction.opcode, _figure(module, instruction, computation)
            if opcode == "while":
                trips = trip_count(module, instruction, computation)
                if trips is None:
                    unknown.append(instruction.name)
                for part in ("condition", "body"):
                    steps += visit(instruction.called(part)[0], times * (1 if trips is None else trips))
            elif opcode == "conditional":
                names = instruction.called("branch_computations")
                names = names or [*instruction.called("true_computation"), *instruction.called("false_computation")]
                steps += max((visit(branch, times) for branch in names), key=total_cycles)
            elif figure is None and opcode in ("call", "async-start"):
                for callee in instruction.called("to_apply") or instruction.called("calls"):
                    steps += visit(callee, times)
            else:
                steps.append(Executed(instruction, times, None if figure is None else figure * times, computation))
        return steps

    return visit(module.entry, 1), unknown


def total_cycles(steps: list[Executed]) -> int:
    return sum(step.cycles or 0 for step in steps)


def _figure(module: Module, instruction: Instruction, computation: Computation) -> int | None:
    if instruction.opcode.endswith("-update"):
        return None
    if instruction.opcode.endswith("-done"):
        start = instruction
        while start.opcode.endswith(("-done", "-update")) and start.operands[0] in computation:
            start = computation[start.operands[0]]
        wrapped = [i for name in start.called("calls") for i in module.computations[name].values()]
        if any(i.estimated_cycles is not None for i in (start, *wrapped) if i is not instruction):
            return None
    return instruction.estimated_cycles


def trip_count(module: Module, loop: Instruction, computation: Computation) -> int | None:
    """Return how often a `while` runs its body: XLA's note in it, or the distance from the start to the limit.

    JAX's loops of known length count by 1 while `i < limit`, both ends constant; for others the result is None.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if noted:
        return int(noted[1])
    condition = module.computations[loop.called("condition")[0]]
    compares = [i for i in condition.values() if i.opcode == "compare"]
    if len(compares) != 1 or "direction=LT" not in compares[0].attributes:
        return None
    counter, limit_name = compares[0].operands
    index = re.search(r"\bindex=(\d+)", condition[counter].attributes)
    limit, initial = _constant(limit_name, condition), computation.get(loop.operands[0])
    if index is None or limit is None or initial is None or initial.opcode != "tuple":
        return None
    start = _constant(initial.operands[int(index[1])], computation)
    return None if start is None else max(0, limit - start)


def _constant(name: str, computation: Computation) -> int | None:
    """Return the value of an integer constant, also behind copies."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    text = instruction.operands[0]
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def inside(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """Yield the instructions of a fusion and of the fusions in it; nothing for other instructions."""
    for name in instruction.called("calls"):
        for part in module.computations[name].values():
            yield part
            yield from inside(module, part)
