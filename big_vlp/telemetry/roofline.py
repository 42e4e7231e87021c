"""How long a compiled program takes where nothing but products and memory costs time.

Of each instruction the longer of FLOPs / peak and bytes / bandwidth, summed: instructions run one
after the other. What devices send each other is left out, and products in fp32 count as bf16's.
"""

import collections
import dataclasses
from typing import NamedTuple

from big_vlp.telemetry import devices
from big_vlp.telemetry.hlo import Program


class Kind(NamedTuple):
    """Instructions that do the same to arrays of the same shapes.

    Attributes:
      name: opcode, what of the model, and result.
      seconds, flops, bytes: of all of them.
      times: how often one of them runs.
    """

    name: str
    seconds: float
    flops: float
    bytes: float
    times: int


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Times of one device.

    Attributes:
      seconds: all instructions'.
      product_seconds: FLOPs / peak.
      memory_seconds: bytes / bandwidth.
      peak: FLOP/s.
      kinds: the costliest first.
    """

    seconds: float
    product_seconds: float
    memory_seconds: float
    peak: float
    kinds: list[Kind]

    def share(self, model_flops: float) -> float:
        """Of the peak, by what the model needs on one device: the most that its MFU can be."""
        return model_flops / (self.peak * self.seconds)


class UnknownDeviceError(ValueError):
    """Peak and memory bandwidth of a device are not known."""


def roofline(text: str, device_kind: str) -> Roofline:
    """Of a program as `compiled.as_text()` gives it, on a device that jax calls so.

    Raises:
      ValueError: it is no such text.
      UnknownDeviceError: nobody has written down what the device can do.
    """
    tflops, gigabytes = devices.peak_tflops(device_kind), devices.bandwidth(device_kind)
    if tflops is None or gigabytes is None:
        raise UnknownDeviceError(f"Peak and memory bandwidth of {device_kind!r} are not known.")
    peak, bandwidth = 1e12 * tflops, 1e9 * gigabytes
    kinds = collections.defaultdict(lambda: Kind("", 0.0, 0.0, 0.0, 0))
    for work in Program(text).work():
        instruction = work.instruction
        arrays = " ".join(f"{t}[{','.join(map(str, shape))}]" for t, shape in instruction.arrays)
        name = " ".join(filter(None, (instruction.opcode, instruction.label, arrays[:60])))
        seconds = max(work.flops / peak, work.bytes / bandwidth)
        before = kinds[name]
        kinds[name] = Kind(
            name,
            before.seconds + seconds,
            before.flops + work.flops,
            before.bytes + work.bytes,
            before.times + work.times,
        )
    found = sorted(kinds.values(), key=lambda kind: -kind.seconds)
    flops, moved = (sum(getattr(kind, name) for kind in found) for name in ("flops", "bytes"))
    seconds = sum(kind.seconds for kind in found)
    return Roofline(seconds, flops / peak, moved / bandwidth, peak, found)


def table(found: Roofline, rows: int = 10) -> str:
    """The costliest kinds, for people."""
    lines = [f"{'ms':>8}  share     GB  TFLOP  times"]
    for kind in found.kinds[:rows]:
        lines.append(
            f"{1e3 * kind.seconds:8.2f} {kind.seconds / found.seconds:6.1%} {kind.bytes / 1e9:6.2f}"
            f" {kind.flops / 1e12:6.3f} {kind.times:6}  {kind.name}"
        )
    return "\n".join(lines)
