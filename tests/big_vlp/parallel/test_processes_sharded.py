"""Two processes of four devices, with parameters split over both, are killed; one of eight goes on.

Between them the run has read a checkpoint that several hosts wrote in parts.
"""

import time

import pytest

from big_vlp.storage.checkpoint import Checkpoints
from tests.big_vlp.parallel.clusters import TIMEOUT, Cluster, assert_same, metrics

STEPS = 12
# So wide that the table of tokens is worth splitting over "fsdp".
OPTIONS = (
    "--config.method.model.text.width=32",
    f"--config.total_steps={STEPS}",
    "--config.evals.retrieval.every_steps=6",
)
# One part of "fsdp" spans both processes: no host has the whole of what it splits.
SPLIT = (*OPTIONS, "--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.mesh.tensor=2")


@pytest.mark.slow
def test_killed_and_resumed_on_another_layout(tmp_path):
    Cluster(1, "train", "clip", tmp_path / "whole", options=OPTIONS).finish()

    workdir = tmp_path / "split"
    cluster = Cluster(2, "train", "clip", workdir, devices=4, options=SPLIT)
    deadline = time.monotonic() + TIMEOUT
    while not (workdir / "checkpoints" / "5").exists():
        assert time.monotonic() < deadline and cluster.processes[0].poll() is None
        time.sleep(0.02)
    for process in cluster.processes:
        process.kill()
    table = cluster.processes[0].communicate()[0]
    assert "fsdp on axis" in table and "tensor on axis" in table
    stopped_at = Checkpoints(workdir, read_only=True).latest_step()
    assert stopped_at in (5, 10)

    (output,) = Cluster(1, "train", "clip", workdir, devices=8, options=SPLIT).finish()
    assert f"Going on from {workdir / 'checkpoints' / str(stopped_at)}" in output.replace("\n", "")
    assert_same(metrics(workdir), metrics(tmp_path / "whole"))
