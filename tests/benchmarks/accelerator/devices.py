"""The devices that jax sees, and the peak rates of their kinds."""

import re

from tests.benchmarks.common import environment

# Dense bf16 TFLOP/s of one device, by what jax calls its kind; the first that fits. From the
# makers' data sheets: NVIDIA's of H100, H200, A100, L40S, HGX B200 and GB200, half of what is given
# "with sparsity"; Google's "system architecture" pages of Cloud TPU.
PEAKS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL|H200 NVL", 835.0),
    ("H100|H200|GH200", 989.4),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("TPU v4", 275.0),
    ("TPU v5 ?(lite|e)", 197.0),
    ("TPU v5", 459.0),
    ("TPU v6", 918.0),
)


def peak_tflops(kind: str) -> float | None:
    """Dense bf16 TFLOP/s of a device of this kind, or None where it is not known."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, kind)), None)


def measure() -> dict:
    """What there is."""
    import jax

    devices = jax.devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "memory_gib": limit and limit / 2**30,
        "peak_tflops": peak_tflops(devices[0].device_kind),
        "runtime": " ".join(devices[0].client.platform_version.split()),
        "versions": environment()["versions"],
    }
