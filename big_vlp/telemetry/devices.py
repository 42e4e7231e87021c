"""What devices can do, by what jax calls their kinds."""

import re

import jax

# Of one device, the first that fits: dense TFLOP/s (bf16, fp32), and GB/s of its memory. From the
# makers' data sheets: NVIDIA's of H100, H200, A100, L40S, HGX B200 and GB200, half of what is given
# "with sparsity"; Google's "system architecture" pages of Cloud TPU.
_DEVICES = (
    ("H100 PCIe", 756.0, 51.0, 2000.0),
    ("H100 NVL", 835.0, 60.0, 3900.0),
    ("H200 NVL", 835.0, 60.0, 4800.0),
    ("H200|GH200", 989.4, 66.9, 4800.0),
    ("H100", 989.4, 66.9, 3350.0),
    ("A100.*40GB", 312.0, 19.5, 1555.0),
    ("A100", 312.0, 19.5, 2039.0),
    ("L40S", 362.0, 91.6, 864.0),
    ("GB200", 2500.0, 80.0, 8000.0),
    ("B200", 2250.0, 75.0, 8000.0),
    ("TPU v4", 275.0, None, 1228.0),
    ("TPU v5 ?(lite|e)", 197.0, None, 819.0),
    ("TPU v5", 459.0, None, 2765.0),
    ("TPU v6", 918.0, None, 1640.0),
)

# GiB of one device's memory that programs can use, as libtpu says it for described devices.
_MEMORIES = (
    ("TPU v4", 15.25),
    ("TPU v5 ?(lite|e)", 15.75),
    ("TPU v5", 95.74),
    ("TPU v6", 31.25),
)


def peak_tflops(kind: str, dtype: str = "bfloat16") -> float | None:
    """Dense TFLOP/s of a device of this kind in "bfloat16", "float16" or full-precision "float32";
    None where it is not known."""
    half, single, _ = _found(kind)
    return single if dtype == "float32" else half


def bandwidth(kind: str) -> float | None:
    """GB/s of the memory of a device of this kind; None where it is not known."""
    return _found(kind)[2]


def memory_bytes(device) -> int | None:
    """What programs can use of a device's memory; None where nobody says it.

    Args:
      device: of this machine, or a described one.
    """
    try:
        stats = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # it is described, or another process'
        stats = {}
    known = (gib for kind, gib in _MEMORIES if re.search(kind, device.device_kind))
    return stats.get("bytes_limit") or next((int(gib * 2**30) for gib in known), None)


def _found(kind: str) -> tuple[float | None, float | None, float | None]:
    return next((row for name, *row in _DEVICES if re.search(name, kind)), (None, None, None))
