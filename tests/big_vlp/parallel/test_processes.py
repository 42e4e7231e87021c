"""Two processes do what one does: training, evaluation, resume from either, SIGTERM to one."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from big_vlp.parallel import processes
from big_vlp.storage.checkpoint import Checkpoints
from tests.big_vlp.parallel.clusters import (
    TERMINATED,
    TIMEOUT,
    Cluster,
    assert_same,
    metrics,
)

METHODS = ["clip", pytest.param("cosmos", marks=pytest.mark.slow)]


@pytest.fixture(scope="session", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="session")
def one_process(method, tmp_path_factory):
    """A whole run. It evaluates 10 records and trains on 100, by 4 and by 8: neither divides."""
    workdir = tmp_path_factory.mktemp("one_process")
    Cluster(1, "train", method, workdir).finish()
    return workdir


@pytest.mark.slow
def test_sigterm_to_one_of_two_then_one_goes_on(method, one_process, tmp_path):
    cluster = Cluster(2, "train", method, tmp_path)
    log, deadline = tmp_path / "metrics.jsonl", time.monotonic() + TIMEOUT
    while not (log.exists() and '"step": 6,' in log.read_text()):
        if time.monotonic() > deadline or cluster.processes[0].poll() is not None:
            cluster.finish()
            pytest.fail("The run did not reach step 6.")
        time.sleep(0.02)
    cluster.processes[1].send_signal(signal.SIGTERM)
    outputs = cluster.finish(TERMINATED)
    stopped_at = Checkpoints(tmp_path, read_only=True).latest_step()
    assert 6 < stopped_at < 30
    assert f"step {stopped_at} is saved" in outputs[0]
    assert_same(metrics(tmp_path), metrics(one_process)[:stopped_at])

    Cluster(1, "train", method, tmp_path).finish()
    assert_same(metrics(tmp_path), metrics(one_process))


@pytest.fixture(scope="session")
def resumed_by_two(method, one_process, tmp_path_factory):
    """The last steps of that run, by two processes."""
    workdir = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(one_process, workdir)
    shutil.rmtree(workdir / "checkpoints" / "30")
    assert Checkpoints(workdir, read_only=True).latest_step() == 25
    outputs = Cluster(2, "train", method, workdir).finish()
    assert "Going on from" in outputs[0]
    return workdir


@pytest.mark.slow
def test_two_go_on_where_one_stopped(one_process, resumed_by_two):
    assert_same(metrics(resumed_by_two), metrics(one_process))


@pytest.mark.slow
def test_two_evaluate_as_one_does(method, one_process, resumed_by_two):
    Cluster(2, "evaluate", method, resumed_by_two).finish()
    found = json.loads((resumed_by_two / "evaluate" / "30.json").read_text())["retrieval"]
    expected = metrics(one_process)[-1][2]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


FAILING = """
import os, sys
from absl import flags
from big_vlp.parallel import processes, cluster
from big_vlp.run import log
from big_vlp.train import train
from input_pipeline.loader import Loader
from tests.big_vlp.train.test_train import tiny_config

flags.FLAGS.mark_as_parsed()
load, write = Loader.batch, log.MetricLog.write

def batch(self, step, part):
    if step == 5 and os.environ["JAX_PROCESS_ID"] == "1":
        raise ValueError("Record 'x7' is broken.")
    return load(self, step, part)

def full_disk(self, step, *rest):
    if step == 5 and os.environ["JAX_PROCESS_ID"] == "0":
        raise log.LogError("No room is left.")
    write(self, step, *rest)

if KIND == "record":
    Loader.batch = batch
else:
    log.MetricLog.write = full_disk
try:
    cluster.connect_processes()
    train(tiny_config("method=clip", evals={}), sys.argv[1])
except Exception as error:
    sys.exit(processes.end(error))
"""


@pytest.mark.parametrize(
    "kind, failing, reason",
    [
        ("record", 1, "process 1 stopped: ValueError: Record 'x7' is broken."),
        pytest.param("log", 0, "process 0 stopped: No room is left.", marks=pytest.mark.slow),
    ],
)
def test_the_failure_of_one_ends_both_with_its_reason(kind, failing, reason, tmp_path):
    """What all are asked together, and what fails in one process alone."""
    start = time.monotonic()
    cluster = Cluster(2, "train", "clip", tmp_path, FAILING.replace("KIND", repr(kind)))
    # Both end with the status of the one that failed: no user's error, or one to be mended.
    outputs = cluster.finish({"record": processes.CRASH, "log": 1}[kind])
    assert time.monotonic() - start < TIMEOUT / 2  # no timeout of a collective was waited for
    assert f"error: {reason}" in outputs[failing]
    assert f"error: process {failing} stopped" in outputs[1 - failing]
    assert "Traceback" not in outputs[1 - failing]
    assert not (tmp_path / "lease").exists()
    if kind == "record":
        assert Checkpoints(tmp_path, read_only=True).latest_step() == 5


DIFFERENT = """
import os, sys
from absl import flags
from big_vlp.parallel import processes, cluster
from big_vlp.train import train
from tests.big_vlp.train.test_train import tiny_config

flags.FLAGS.mark_as_parsed()
config = tiny_config("method=clip")
if os.environ["JAX_PROCESS_ID"] == "1":
    config.evals = {}
try:
    cluster.connect_processes()
    train(config, sys.argv[1])
except Exception as error:
    sys.exit(processes.end(error))
"""


@pytest.mark.slow
def test_two_that_would_evaluate_different_things_end_at_once(tmp_path):
    outputs = Cluster(2, "train", "clip", tmp_path, DIFFERENT).finish(1)
    for output in outputs:
        assert "differ in config.evals.retrieval. Give" in output
        assert output.count("error: ") == 1 and "Traceback" not in output
    assert not (tmp_path / "checkpoints").exists()
