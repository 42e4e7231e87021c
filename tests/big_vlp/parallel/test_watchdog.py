"""What stands still is told of and ended; what takes its time is not."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from big_vlp.parallel import watchdog
from big_vlp.storage.checkpoint import Checkpoints
from tests.big_vlp.parallel.clusters import ROOT, TIMEOUT, Cluster

ALONE = """
import sys, time
from big_vlp.parallel import watchdog

def waits_for_a_device():
    time.sleep(60)

said = []
with watchdog.watching(0.5 / 60, print):
    watchdog.started("step 0")
    for i in range(10):
        time.sleep(0.2)  # longer than allowed, in all
        watchdog.progress(f"step {i + 1}")
    with watchdog.longer("evaluating"):
        time.sleep(1.2)
    print("was not ended", flush=True)
    waits_for_a_device()
"""


def test_a_process_that_stands_still_is_ended_and_shows_where():
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == watchdog.STATUS == 75
    assert done.stdout.startswith("was not ended\nno progress for ")  # and told the others
    assert "in: step 10 (config.watchdog_minutes=0.00833333)" in done.stderr
    assert "waits_for_a_device" in done.stderr
    assert time.monotonic() - start < 50


def test_nothing_watches_without_minutes_nor_after_the_end():
    def watching():
        return [thread for thread in threading.enumerate() if thread.name == "watchdog"]

    with watchdog.watching(None, print):
        assert not watching()
    with watchdog.watching(0.05, print):
        [thread] = watching()
    thread.join(10)
    assert not watching()


HANGING = """
import os, sys, time
from absl import flags
from big_vlp.parallel import cluster, processes
from big_vlp.train import train
from input_pipeline.loader import Loader
from tests.big_vlp.train.test_train import tiny_config

flags.FLAGS.mark_as_parsed()
load = Loader.batch

def batch(self, step, part):
    if step == 12 and os.environ.get("JAX_PROCESS_ID", "0") == LAST:
        time.sleep(3600)
    return load(self, step, part)

Loader.batch = batch
try:
    cluster.connect_processes()
    train(tiny_config("method=clip", evals={}, watchdog_minutes=0.2), sys.argv[1])
except Exception as error:
    sys.exit(processes.end(error))
"""


@pytest.mark.slow
def test_a_run_whose_data_stand_still_goes_on_when_it_is_started_again(tmp_path):
    cluster = Cluster(1, "train", "clip", tmp_path, HANGING.replace("LAST", "'0'"))
    [output] = cluster.finish(watchdog.STATUS)
    assert "no progress for" in output and " in batch" in output
    assert Checkpoints(tmp_path, read_only=True).latest_step() == 10


@pytest.mark.slow
def test_a_process_that_is_stopped_ends_the_others(tmp_path):
    """It is suspended and cannot see it itself; who started it has to kill it."""
    cluster = Cluster(2, "train", "clip", tmp_path, HANGING.replace("LAST", "'none'"))
    log, deadline = tmp_path / "metrics.jsonl", time.monotonic() + TIMEOUT
    while not (log.exists() and '"step": 6,' in log.read_text()):
        assert time.monotonic() < deadline and cluster.processes[0].poll() is None
        time.sleep(0.02)
    cluster.processes[1].send_signal(signal.SIGSTOP)
    assert cluster.processes[0].wait(120) not in (0, 1)
    cluster.processes[1].kill()
