"""What benchmarks share: timing side by side, and what a result depends on."""

import contextlib
import importlib
import importlib.metadata
import inspect
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "torch",
    "open_clip_torch",
    "timm",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "libtpu",
)
# Variables that change a result; the others are nobody's business.
VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "XLA_", "OMP_", "JAX_PLATFORMS", "NVIDIA_TF32_OVERRIDE")


class CannotRunError(Exception):
    """A benchmark cannot run here; the message says why, and what to do."""


def load(name: str):
    """(module of a benchmark, {option: default})."""
    module = importlib.import_module(f"tests.benchmarks.{name}")
    options = inspect.signature(module.measure).parameters.values()
    return module, {option.name: option.default for option in options}


def on_the_cpu() -> None:
    """Keeps this process from accelerators; before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def measure(name: str, options: dict) -> list[dict]:
    """Rows of a benchmark, in this process."""
    return load(name)[0].measure(**options)


def environment() -> dict:
    """Versions, processor and settings behind a result; nothing that differs from run to run."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    set_here = {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)}
    return {
        "versions": found,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "variables": set_here,
    }


def cpu_model() -> str:
    """The processor's name; its architecture where the system tells no more."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def interleaved(sides: dict[str, Callable[[], None]], repeats: int) -> dict[str, dict[str, float]]:
    """Runs the sides in turn, `repeats` times. In its turn a side runs twice, and only the second
    counts: memory that another has just given back costs a virtual machine seconds to get again.

    Returns:
      {side: {"wall_s", "cpu_s"}}: the least of each. What else a machine does only adds to a time,
      so the least says most; taking turns gives both sides the same neighbours.
    """
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            run()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: dict(zip(("wall_s", "cpu_s"), (min(values) for values in zip(*taken))))
        for name, taken in times.items()
    }


@contextlib.contextmanager
def one_core():
    """This process on one of its cores. Threads that exist already stay where they are."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
