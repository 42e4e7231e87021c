"""Programs that run as one process or as a cluster of several on this machine."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from big_vlp.run.log import read_log
from big_vlp.telemetry.meter import CLOCKED

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "tests" / "tiny_config.py"
TIMEOUT = 300  # seconds
TERMINATED = 128 + signal.SIGTERM  # exit status after SIGTERM


class Cluster:
    """`count` processes of one program on this machine.

    Args:
      program: `big_vlp.<program>`, run on tiny_config.py with this method and workdir.
      source: runs this Python text instead, with the workdir as its argument.
      devices: of each process.
      options: further arguments of the program.
    """

    def __init__(self, count, program, method, workdir, source=None, devices=1, options=()):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", f"big_vlp.{program}"]
        command += [f"--config={CONFIG}:method={method}", f"--workdir={workdir}", *options]
        if source is not None:
            command = [sys.executable, "-c", source, str(workdir)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)

        def joined(index):
            if count == 1:
                return {}
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            return dict(zip(names, (f"localhost:{port}", str(count), str(index))))

        self.processes = [
            subprocess.Popen(
                command,
                env={**environment, **joined(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(count)
        ]

    def finish(self, returncode=0):
        outputs = []
        try:
            for process in self.processes:
                outputs.append(process.communicate(timeout=TIMEOUT)[0])
        finally:
            for process in self.processes:
                process.kill()
        assert {p.returncode for p in self.processes} == {returncode}, "\n".join(outputs)
        return outputs


def metrics(workdir):
    return [
        (x["step"], x["split"], {k: v for k, v in x["values"].items() if k not in CLOCKED})
        for x in read_log(workdir)
    ]


def assert_same(found, expected):
    assert [x[:2] for x in found] == [x[:2] for x in expected]
    for (step, split, ours), (_, _, reference) in zip(found, expected):
        assert ours.keys() == reference.keys()
        for name, value in reference.items():
            where = f"step {step}, {split}, {name}"
            np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=where)
