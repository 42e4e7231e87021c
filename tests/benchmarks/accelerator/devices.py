"""The devices that jax sees, and the peak rates of their kinds."""

from tests.benchmarks.common import environment


def measure() -> dict:
    """What there is."""
    import jax

    from big_vlp.telemetry.devices import peak_tflops

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
