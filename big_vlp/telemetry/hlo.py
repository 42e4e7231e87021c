"""The text of a compiled program (XLA's HLO), read: instructions, and what each computes and moves.

What counts as FLOPs is matrix products and convolutions; bytes are those of operands and results,
wherever they lie, and of slices only what is read or written.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_START = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|\w+_computation)=(\{[^}]*\}|[^\s,]*)"
)
# What devices send each other takes other paths than those to their memories; where other work is
# fused with it, the bytes of both count.
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all|"
    r"collective-broadcast)(-start|-done)?$"
)
# Of no work of their own; asynchronous copies and slices run beside the products.
_FREE = frozenset(
    (
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast"),
        *("copy-start", "copy-done", "slice-start", "slice-done"),
        *("async-start", "async-update", "async-done"),
        *("after-all", "opt-barrier", "partition-id", "replica-id"),
    )
)
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
# Of queries and keys, or their like, for each head; blocks that a mask leaves out count as well.
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_SLICES = ("slice", "dynamic-slice", "gather")


Arrays = tuple[tuple[str, tuple[int, ...]], ...]  # of (dtype, shape)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      arrays: those of its result.
      operands: names of instructions of the same computation.
      attributes: what stands behind the operands.
    """

    name: str
    opcode: str
    arrays: Arrays
    operands: tuple[str, ...]
    attributes: str

    @property
    def bytes(self) -> int:
        return _bytes(self.arrays)

    @property
    def sent(self) -> Arrays:
        """The arrays that a device has after a collective: the second half of those where one
        starts, but for all-reduce, and no counters."""
        arrays = tuple(array for array in self.arrays if array[1])
        if self.opcode.endswith("-start") and not self.opcode.startswith("all-reduce"):
            return arrays[len(arrays) // 2 :]
        return arrays

    @property
    def label(self) -> str:
        """What of the model it computes, as JAX names it, with all numbers alike."""
        named = re.search(r'op_name="([^"]*)"', self.attributes)
        path = re.sub(r"\d+", "N", named[1]) if named else ""
        return "/".join(path.split("/")[-4:])

    def called(self) -> list[str]:
        lists = _CALLED.findall(self.attributes.split("metadata=")[0])
        names = (name for found in lists for name in found.strip("{}").split(","))
        return [name.strip().lstrip("%") for name in names]

    def numbers(self, name: str) -> list[int]:
        """The attribute `name={1,2}`."""
        found = re.search(rf"{name}=\{{([\d,]*)\}}", self.attributes)
        return [int(n) for n in found[1].split(",") if n] if found else []


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Work:
    """What an instruction of the program does in all its turns together.

    Attributes:
      times: how often it runs; what stands in a loop runs as often as the loop turns.
      flops, bytes: of all those times.
    """

    instruction: Instruction
    times: int
    flops: float
    bytes: float


class Collective(NamedTuple):
    """What devices send each other.

    Attributes:
      kind: "all-gather" and the like.
      arrays: as "bf16[4096,11008]", those that a device has afterwards.
      times: how often it is sent; what stands in a loop as often as that turns.
      bytes: of all those times.
    """

    kind: str
    arrays: str
    times: int
    bytes: int


class Program:
    """A compiled program.

    Args:
      text: as `compiled.as_text()` gives it.

    Raises:
      ValueError: it is no such text.
    """

    def __init__(self, text: str):
        self._computations: dict[str, Computation] = {}
        self._entry = None
        inside = None
        for line in text.splitlines():
            if start := _START.match(line):
                if inside is not None:
                    found = _read(start[1], line[start.end() :])
                    inside[found.name] = found
            elif head := _HEAD.match(line):
                inside = self._computations.setdefault(head[2], {})
                if head[1]:
                    self._entry = head[2]
        if self._entry is None:
            raise ValueError("This is no text of a compiled program: it has no ENTRY.")

    def collectives(self) -> list[Collective]:
        """What devices send each other, those with the most bytes first.

        What the compiler has cut into asynchronous pieces is one: they share a channel and arrays.
        """
        found: dict[tuple, int] = {}
        for name, times in self._runs().items():
            for instruction in self._computations[name].values():
                match = _COLLECTIVE.match(instruction.opcode)
                if match and match[2] != "-done":
                    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                    key = match[1], instruction.sent, channel[1] if channel else instruction.name
                    found[key] = max(found.get(key, 0), times)
        counts = collections.Counter()
        for (kind, arrays, _), times in found.items():
            counts[kind, arrays] += times
        rows = [
            Collective(kind, _written(arrays), times, times * _bytes(arrays))
            for (kind, arrays), times in counts.items()
        ]
        return sorted(rows, key=lambda row: -row.bytes)

    def _runs(self) -> dict[str, int]:
        """How often each computation runs, what is fused and what a condition may leave out
        included."""
        runs = collections.Counter({self._entry: 1})
        waiting = [(self._entry, 1)]
        while waiting:
            name, times = waiting.pop()
            for instruction in self._computations[name].values():
                turns = self._turns(instruction) if instruction.opcode == "while" else 1
                for called in instruction.called():
                    runs[called] += times * turns
                    waiting.append((called, times * turns))
        return runs

    def work(self) -> list[Work]:
        """Every instruction that runs by itself; what is fused into one counts with it."""
        return list(self._work(self._entry, 1))

    def _work(self, name: str, times: int) -> Iterator[Work]:
        computation = self._computations[name]
        for instruction in computation.values():
            opcode = instruction.opcode
            if opcode in _FREE or _COLLECTIVE.match(opcode):
                continue
            if any(f'"{call}"' in instruction.attributes for call in _FREE_CALLS):
                continue
            if opcode == "while":
                turns = times * self._turns(instruction)
                body = re.search(r"body=%?([\w.\-]+)", instruction.attributes)[1]
                yield from self._work(body, turns)
            elif opcode == "conditional":
                branches = [list(self._work(branch, times)) for branch in instruction.called()]
                yield from max(branches, key=lambda works: sum(w.flops + w.bytes for w in works))
            elif opcode == "call":
                yield from self._work(instruction.called()[0], times)
            else:
                flops = self._flops(computation, instruction)
                moved = self._moved(computation, instruction)
                yield Work(instruction, times, times * flops, times * moved)

    def _turns(self, loop: Instruction) -> int:
        """As XLA found, else the largest number that the loop's condition compares with."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]
        constants = [
            int(found[1])
            for instruction in self._computations[condition].values()
            if (found := re.match(r"constant (\d+)$", instruction.attributes))
        ]
        return max(constants, default=1)

    def _flops(self, computation: Computation, instruction: Instruction) -> float:
        if instruction.opcode == "dot":
            return _of_dot(instruction, computation)
        if instruction.opcode == "convolution":
            return _of_convolution(instruction, computation)
        if instruction.opcode == "custom-call":
            return _of_kernel(instruction, computation)
        inner = [self._computations[name] for name in instruction.called()]
        if instruction.opcode != "fusion":
            inner = []
        return sum(self._flops(fused, i) for fused in inner for i in fused.values())

    def _moved(self, computation: Computation, instruction: Instruction) -> int:
        """Bytes; an operand of which a fusion reads slices counts as those, and one that it writes
        a slice of, in place, as that."""
        operands = [computation[name] for name in instruction.operands if name in computation]
        opcode = instruction.opcode
        if opcode in _SLICES:
            return 2 * instruction.bytes
        if opcode == "dynamic-update-slice":
            return 2 * operands[1].bytes
        if opcode != "fusion":
            return instruction.bytes + sum(operand.bytes for operand in operands)
        fused = self._computations[instruction.called()[0]]
        parameters = [i for i in fused.values() if i.opcode == "parameter"]
        parameters.sort(key=lambda i: int(i.attributes.split()[1].rstrip(",")))
        written = [i for i in fused.values() if i.opcode == "dynamic-update-slice"]
        in_place = {_origin(fused, i.operands[0]): i for i in written}
        moved, out = 0, instruction.bytes
        for parameter in parameters:
            users = _users(fused, parameter.name)
            if parameter.name in in_place:
                update = fused[in_place[parameter.name].operands[1]].bytes
                moved += update
                out += update - parameter.bytes
            elif users and all(
                user.opcode in _SLICES and _origin(fused, user.operands[0]) == parameter.name
                for user in users
            ):
                moved += sum(user.bytes for user in users)
            else:
                moved += parameter.bytes
        return moved + max(out, 0)


def _bytes(arrays: Arrays) -> int:
    return sum(_item_bytes(dtype) * math.prod(shape) for dtype, shape in arrays)


def _written(arrays: Arrays) -> str:
    written = (f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in arrays)
    return " ".join(dict.fromkeys(written)) or "scalars"


def _item_bytes(dtype: str) -> int:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 0  # tokens have none


def _read(name: str, rest: str) -> Instruction:
    """An instruction from what stands behind its `=`."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    inside, attributes = rest[: end - 1], rest[end:].lstrip(", ")
    if opcode in ("parameter", "constant"):
        operands, attributes = (), f"{opcode} {inside}"
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
        operands = operands or tuple(part.split()[-1] for part in inside.split(", ") if part)
    arrays = tuple(
        (dtype, tuple(int(n) for n in shape.split(",") if n))
        for dtype, shape in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", kind))
    )
    return Instruction(name, opcode, arrays, operands, attributes)


def _closing(text: str, start: int) -> int:
    """The index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"A parenthesis stays open: {text[:100]}")


def _users(computation: Computation, name: str) -> list[Instruction]:
    """Who reads it, through bitcasts."""
    found = []
    for instruction in computation.values():
        if name in instruction.operands:
            if instruction.opcode == "bitcast":
                found += _users(computation, instruction.name)
            else:
                found.append(instruction)
    return found


def _origin(computation: Computation, name: str) -> str:
    """The instruction that a chain of bitcasts begins with."""
    while computation[name].opcode == "bitcast":
        name = computation[name].operands[0]
    return name


def _of_dot(instruction: Instruction, computation: Computation) -> float:
    left = computation[instruction.operands[0]].arrays[0][1]
    contracted = [left[axis] for axis in instruction.numbers("lhs_contracting_dims")]
    return 2.0 * math.prod(instruction.arrays[0][1]) * math.prod(contracted)


def _of_convolution(instruction: Instruction, computation: Computation) -> float:
    """Products with padding, and with the zeros between dilated pixels, do not count: a batch of
    matrix products is such a convolution on TPUs."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    image, kernel, out = labels.groups()
    image_shape, kernel_shape = (computation[name].arrays[0][1] for name in instruction.operands)
    out_shape = instruction.arrays[0][1]
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    products = out_shape[out.index("f")] * image_shape[image.index("f")]
    products *= image_shape[image.index("b")]
    for name in ("feature_group_count", "batch_group_count"):
        group = re.search(rf"{name}=(\d+)", instruction.attributes)
        products //= int(group[1]) if group else 1
    for axis in sorted(set(image) - {"b", "f"}):
        at = int(axis)

        def field(name, default, at=at):
            return fields[name].split("x")[at] if name in fields else default

        products *= _pairs(
            image_shape[image.index(axis)],
            kernel_shape[kernel.index(axis)],
            out_shape[out.index(axis)],
            int(field("stride", 1)),
            int(field("pad", "0_0").split("_")[0]),
            int(field("lhs_dilate", 1)),
            int(field("rhs_dilate", 1)),
        )
    return 2.0 * products


@functools.cache
def _pairs(image, kernel, out, stride, pad, image_dilation, kernel_dilation) -> int:
    """Along one axis: pairs of an output and a kernel position that meet a pixel."""
    at = np.arange(out)[:, None] * stride - pad + np.arange(kernel) * kernel_dilation
    inside = (at >= 0) & (at <= (image - 1) * image_dilation)
    return int((inside & (at % image_dilation == 0)).sum())


def _of_kernel(instruction: Instruction, computation: Computation) -> float:
    """Of a kernel what its author says it costs, of cuBLAS' products what they compute; else 0."""
    said = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
    if said:
        return float(said[1])
    if kind := re.match(r"splash_m[hq]a_(fwd|dq|dkv)", instruction.name):  # it does not say
        arrays = (computation[name].arrays[0] for name in instruction.operands)
        # Behind what its masks want, whole numbers: [B, H, T or S, D]; of one row without B.
        query, key = [shape for dtype, shape in arrays if dtype in ("bf16", "f32")][:2]
        return 2.0 * _SPLASH_PRODUCTS[kind[1]] * math.prod(query) * key[-2]
    contracted = re.search(r'"lhs_contracting_dimensions":\["(\d+)"', instruction.attributes)
    if contracted and "gemm" in instruction.attributes:
        left = computation[instruction.operands[0]].arrays[0][1]
        return 2.0 * math.prod(instruction.arrays[0][1]) * left[int(contracted[1])]
    return 0.0
