"""A run whose parameters are split over processes goes on with other numbers of them, and meshes.

Between them the run has read checkpoints that several hosts wrote in parts.
"""

import signal
import time

import pytest

from big_vlp.storage.checkpoint import Checkpoints
from tests.big_vlp.parallel.clusters import TERMINATED, TIMEOUT, Cluster, assert_same, metrics

STEPS = 24
# So wide that the table of tokens is worth splitting over "fsdp".
OPTIONS = (
    "--config.method.model.text.width=32",
    f"--config.total_steps={STEPS}",
    "--config.evals.retrieval.every_steps=12",
)


def mesh(**sizes):
    return (*OPTIONS, *(f"--config.mesh.{axis}={size}" for axis, size in sizes.items()))


# One part of "fsdp" spans both of two processes: no host has the whole of what it splits.
SPLIT = mesh(data=1, fsdp=4, tensor=2)
OTHER = mesh(data=2, fsdp=2, tensor=2)
SLICES = (*OTHER, "--config.mesh.slices=2")


def wait_until(cluster, is_so):
    deadline = time.monotonic() + TIMEOUT
    while not is_so():
        if time.monotonic() > deadline or cluster.processes[0].poll() is not None:
            cluster.finish()
            pytest.fail("The run did not come so far.")
        time.sleep(0.02)


@pytest.mark.slow
def test_it_goes_on_with_other_numbers_of_processes_and_devices(tmp_path):
    Cluster(1, "train", "clip", tmp_path / "whole", options=OPTIONS).finish()
    workdir = tmp_path / "split"

    def has_logged(step):
        log = workdir / "metrics.jsonl"
        return log.exists() and f'"step": {step},' in log.read_text()

    cluster = Cluster(2, "train", "clip", workdir, devices=4, options=SPLIT)
    wait_until(cluster, (workdir / "checkpoints" / "5").exists)
    cluster.processes[1].kill()
    table = cluster.processes[0].communicate(timeout=TIMEOUT)[0]
    assert cluster.processes[0].returncode != 0
    assert "fsdp on axis" in table and "tensor on axis" in table
    stopped_at = Checkpoints(workdir, read_only=True).latest_step()

    for count, devices, options, until in ((1, 8, SPLIT, 12), (4, 2, OTHER, 18), (2, 4, SLICES, 0)):
        cluster = Cluster(count, "train", "clip", workdir, devices=devices, options=options)
        if until:
            wait_until(cluster, lambda until=until: has_logged(until))
            cluster.processes[-1].send_signal(signal.SIGTERM)
        output = cluster.finish(TERMINATED if until else 0)[0]
        saved = workdir / "checkpoints" / str(stopped_at)
        assert f"Going on from {saved}" in output.replace("\n", "")
        stopped_at = Checkpoints(workdir, read_only=True).latest_step()
    assert_same(metrics(workdir), metrics(tmp_path / "whole"))
