"""launch/slurm on a real SLURM of one node, which slurm_cluster.sh sets up; needs root."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from big_vlp.run.log import TRAIN, read_log
from tests.launch.fakes import PYTHON, program, saved_steps

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("slurm_cluster.sh")
SUBMIT = ROOT / "launch/slurm/submit.sh"
STEPS = 300
MINUTES = 12  # for any one thing to happen, on a machine that does others, too

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
        reason="needs root, and Debian's slurmctld, slurmd, slurm-client and munge",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Runs a command of SLURM's, and gives what it printed."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run(["bash", CLUSTER, "start", folder], check=True, timeout=120)
    environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PYTHON": sys.executable}

    def run(*command, **more) -> str:
        env = {**environment, **more}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    run("scancel", "--user=root")
    time.sleep(3)
    subprocess.run(["bash", CLUSTER, "stop", folder], check=True, timeout=60)


def submit(slurm, workdir, *changes) -> str:
    """The number of a job of two tasks."""
    said = slurm(
        *("bash", SUBMIT, "--tasks-per-node", "2", "--sbatch=--partition=low", "--", "train"),
        *("--config", "tests/tiny_config.py:method=clip", "--workdir", workdir),
        *(f"--config.total_steps={STEPS}", "--config.checkpoint.every_steps=20", *changes),
    )
    return said.split()[-1]


def job(slurm, number) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", slurm("scontrol", "show", "job", "-o", number)))


def until(what, message):
    deadline = time.monotonic() + 60 * MINUTES
    while not (found := what()):
        assert time.monotonic() < deadline, message()
        time.sleep(0.3)
    return found


def test_a_run_that_is_preempted_is_requeued_and_goes_on_to_the_end(slurm, tmp_path):
    workdir = tmp_path / "run"
    number = submit(slurm, workdir)

    def log():
        return (workdir / f"slurm-{number}.log").read_text(errors="replace")

    def goes_on(restarts):
        """Once it waits: SLURM gives the node two minutes, of which it needs some seconds."""
        until(
            lambda: (
                (state := job(slurm, number))["Restarts"] == str(restarts)
                and state["JobState"] == "PENDING"
            ),
            log,
        )
        time.sleep(5)
        slurm("scontrol", "update", f"JobId={number}", "StartTime=now")

    until(lambda: saved_steps(workdir), log)
    slurm("scancel", "--signal=TERM", number)
    goes_on(restarts=1)

    before = saved_steps(workdir)[-1]
    until(lambda: saved_steps(workdir)[-1] > before, log)
    slurm("sbatch", "--partition=high", "-n2", "--output=/dev/null", "--wrap=sleep 2")
    goes_on(restarts=2)

    until(lambda: job(slurm, number)["JobState"] == "COMPLETED", log)
    text = log()
    if kept := os.environ.get("BIG_VLP_SLURM_LOG"):
        Path(kept).write_text(text)
    assert text.count("SIGTERM: step ") == 2
    assert text.count("requeued; it goes on from its checkpoint") == 2
    assert "start 0, commit" in text and "start 2, commit" in text
    assert f"Done: {STEPS} steps." in text
    assert [line["step"] for line in read_log(workdir) if line["split"] == TRAIN] == list(
        range(STEPS)
    )


def test_after_a_crash_all_tasks_start_again_in_the_same_job(slurm, tmp_path):
    """The watchdog ends one; the other stands still, and is killed."""
    python = program(tmp_path, "fake_python", PYTHON)
    (tmp_path / "0.0").write_text("exit 75")
    (tmp_path / "1.0").write_text("kill -STOP $$")
    said = slurm(
        *("bash", SUBMIT, "--tasks-per-node", "2", "--grace", "3", "--", "train"),
        *("--config", "tests/tiny_config.py", "--workdir", tmp_path / "run"),
        PYTHON=str(python),
        FAKE=str(tmp_path),
    )
    number = said.split()[-1]
    until(
        lambda: job(slurm, number)["JobState"] in ("COMPLETED", "FAILED"),
        lambda: str(job(slurm, number)),
    )
    text = (tmp_path / "run" / f"slurm-{number}.log").read_text()
    assert job(slurm, number)["JobState"] == "COMPLETED", text
    assert job(slurm, number)["Restarts"] == "0"
    assert "starting again (1 of 3" in text and "process 1, start 1" in text


def test_what_a_user_must_mend_is_not_started_again(slurm, tmp_path):
    number = submit(slurm, tmp_path / "run", "--config.global_batch=-1")
    until(lambda: job(slurm, number)["JobState"] == "FAILED", lambda: str(job(slurm, number)))
    assert job(slurm, number)["ExitCode"] == "1:0" and job(slurm, number)["Restarts"] == "0"
    text = (tmp_path / "run" / f"slurm-{number}.log").read_text()
    assert text.count("launch: ended with") == 1 and "config.global_batch" in text


def test_a_cancelled_job_is_not_requeued(slurm, tmp_path):
    number = submit(slurm, tmp_path / "run")
    log = tmp_path / "run" / f"slurm-{number}.log"
    until(log.exists, lambda: str(job(slurm, number)))
    slurm("scancel", number)
    until(lambda: not slurm("squeue", "-h", "-j", number).strip(), lambda: slurm("squeue", "-h"))
    assert job(slurm, number)["JobState"] == "CANCELLED"
    assert job(slurm, number)["Restarts"] == "0"
