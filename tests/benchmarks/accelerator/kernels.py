"""Where the time of a step goes: the costliest kernels of a profile."""

import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
from jax.profiler import ProfileData

from tests.benchmarks.accelerator import steps

STEPS, SHOWN = 3, 25


def measure(model: str, remat, unroll: bool, candidates: list, tiny: bool, folder: str) -> dict:
    """Kernels of three steps with their share of the devices' busy time."""
    running = steps.start(model, remat, unroll, candidates, tiny, folder)
    with tempfile.TemporaryDirectory(dir=folder) as trace:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(trace, profiler_options=options):
            began = time.perf_counter()
            for _ in range(STEPS):
                running.step()
            seconds = time.perf_counter() - began
        spent = Counter()
        for file in Path(trace).rglob("*.xplane.pb"):
            spent += kernels(ProfileData.from_file(str(file)))
    busy = sum(spent.values())
    if not busy:
        raise RuntimeError("The profile holds no kernels: this profiler does not see the device.")
    return {
        "batch": running.batch,
        "step_ms": 1e3 * seconds / STEPS,
        "busy_ms": busy / STEPS / len(jax.devices()) / 1e6,
        "kernels": [
            {"share": round(nanoseconds / busy, 4), "name": name}
            for name, nanoseconds in spent.most_common(SHOWN)
        ],
    }


def kernels(profile) -> Counter:
    """Nanoseconds in each kernel, without those that it has called.

    On GPUs those of their streams, on TPUs those of "XLA Ops", on a CPU what its threads ran.
    """
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    spent = Counter()
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            if devices and not line.name.startswith(("Stream", "XLA Ops")):
                continue
            events = [e for e in line.events if devices or "hlo_op" in dict(e.stats)]
            spent += own_time([(e.start_ns, e.end_ns, named(e)) for e in events])
    return spent


def named(event) -> str:
    """A kernel's name, and the operation it was made for where the profile tells."""
    stats = dict(event.stats)
    operation = stats.get("tf_op") or stats.get("hlo_op") or event.name
    return event.name if operation == event.name else f"{event.name} [{operation}]"


def own_time(events: list[tuple[float, float, str]]) -> Counter:
    """Time in each of the nested (start, end, name), without that of events inside it."""
    spent, around = Counter(), []
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while around and around[-1][0] <= start:
            around.pop()
        spent[name] += end - start
        if around:
            spent[around[-1][1]] -= end - start
        around.append((end, name))
    return +spent
