"""Training and evaluation jobs that are killed while a model writes go on with what is written."""

import time

import pytest

from tests.big_vlp.parallel.clusters import TIMEOUT, Cluster

SCRIPT = """
import sys
from absl import flags
from big_vlp.evaluate import evaluate
from big_vlp.parallel import cluster, processes
from big_vlp.train import train
from evaluators.shared import resuming
from tests import tiny_config

flags.FLAGS.mark_as_parsed()
resuming.PART_SECONDS = 0.0
config = tiny_config.get_config("method=cogvlm")
config.total_steps = 6
config.preprocess.context_length = 40
config.evals = dict(questions=config.evals.questions.to_dict())
config.evals.questions.data.size = 100
config.evals.questions.predictions = f"{sys.argv[1]}/answers.json"
try:
    cluster.connect_processes()
    JOB(config, sys.argv[1])
except Exception as error:
    sys.exit(processes.end(error))
"""
SAID = "answers are there already"


def start(job, workdir, count=1):
    return Cluster(count, job, "cogvlm", workdir, SCRIPT.replace("JOB", job))


def kill_while_it_writes(job, workdir, count=1):
    cluster, deadline = start(job, workdir, count), time.monotonic() + TIMEOUT
    while not list(workdir.glob("answers.json.parts/*.jsonl")):
        if time.monotonic() > deadline or cluster.processes[0].poll() is not None:
            cluster.finish()
            pytest.fail("It wrote nothing.")
        time.sleep(0.005)
    for process in cluster.processes:
        process.kill()
        process.communicate()
    assert not (workdir / "answers.json").exists()


@pytest.mark.slow
def test_a_killed_job_goes_on(tmp_path):
    """In training, in an evaluation of its last checkpoint, and there also by two processes."""
    file, parts = tmp_path / "answers.json", tmp_path / "answers.json.parts"
    kill_while_it_writes("train", tmp_path)
    assert SAID in start("train", tmp_path).finish()[0]
    whole = file.read_bytes()
    assert whole.count(b"question_id") == 100 and not parts.exists()
    file.unlink()

    assert SAID not in start("evaluate", tmp_path).finish()[0]
    assert file.read_bytes() == whole
    for count in (1, 2):
        file.unlink()
        kill_while_it_writes("evaluate", tmp_path)
        found = start("evaluate", tmp_path, count).finish()
        assert SAID in found[0] and not any(SAID in output for output in found[1:])
        assert file.read_bytes() == whole and not parts.exists()
