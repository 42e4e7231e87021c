"""Programs that tests run on eight devices of a CPU, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path


def on_eight_devices(program: str | os.PathLike, *words: str) -> str:
    """What the program prints; it must end well."""
    done = subprocess.run(
        [sys.executable, str(program), *words],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "JAX_NUM_CPU_DEVICES": "8",
            "NPROC": "64",  # threads: collectives block several on each device
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
