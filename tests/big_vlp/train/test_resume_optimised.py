"""Exact resume of programs as users run them: other tests leave out XLA's optimisations."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from big_vlp.run.log import read_log
from big_vlp.telemetry.meter import CLOCKED

ROOT = Path(__file__).parents[3]
TIMEOUT = 900


def lines(workdir):
    """All numbers of a run that do not depend on the clock."""
    return [
        (x["step"], x["split"], {k: v for k, v in x["values"].items() if k not in CLOCKED})
        for x in read_log(workdir)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, dtype, optimizer",
    [
        ("cosmos", "float32", "adamw"),
        *((name, "bfloat16", "adamw") for name in ("cosmos", "catlip", "cogvlm")),
        *(("clip", "float32", name) for name in ("adafactor", "lion", "muon")),
    ],
)
def test_a_killed_run_goes_on_to_the_bit(method, dtype, optimizer, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    given = [f"--config={ROOT / 'tests' / 'tiny_config.py'}:method={method},dtype={dtype}"]
    if optimizer != "adamw":
        given += [f"--config.optim.name={optimizer}", "--config.optim.first_moment_dtype=bfloat16"]

    def start(name):
        return subprocess.Popen(
            [sys.executable, "-m", "big_vlp.train", *given, f"--workdir={tmp_path / name}"],
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(process):
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, output
        return output

    finish(start("whole"))
    killed, log = start("killed"), tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT
    while not (log.exists() and '"step": 13,' in log.read_text()):
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=TIMEOUT)
    assert "Going on from" in finish(start("killed"))
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
