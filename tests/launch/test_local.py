"""launch/local.sh, with a stand-in for Python that ends as a test says; once with real runs."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from big_vlp.run.log import TRAIN, read_log
from input_pipeline.files.whole import write_whole
from tests.launch.fakes import (
    DEMO,
    LAUNCH,
    PYTHON,
    ROOT,
    dry_run,
    environment,
    launch,
    program,
    saved_steps,
)


@pytest.fixture
def fake(tmp_path):
    """Tells the stand-in what a start of a process does: fake(process, start, text)."""
    folder = tmp_path / "fake"
    folder.mkdir()
    python = program(folder, "fake_python", PYTHON)

    class Fake:
        env = environment(folder, PYTHON=str(python))
        workdir = tmp_path / "run"

        def __call__(self, process, start, text):
            (folder / f"{process}.{start}").write_text(text)

        def starts(self, process=0):
            path = folder / f"starts.{process}"
            return len(path.read_text().splitlines()) if path.exists() else 0

        def run(self, *options):
            return launch("local.sh", *options, "--", "train", *DEMO, self.workdir, env=self.env)

    return Fake()


def test_dry_run_prints_the_commands():
    run = ("--", "train", *DEMO, "runs/a b")
    env = {**os.environ, "PYTHONPATH": "", "PYTHON": "python"}
    printed = dry_run("local.sh", "--processes", 2, "--per-gpu", *run, env=env)
    port = re.search(r"127.0.0.1:(\d+)", printed)[1]
    assert printed.splitlines() == [
        f"PYTHONPATH={ROOT} "
        f"JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={i} JAX_COORDINATOR_ADDRESS=127.0.0.1:{port} "
        f"JAX_LOCAL_DEVICE_IDS={i} python -m big_vlp.train --config configs/demo.py:method=clip "
        "--workdir 'runs/a b'"
        for i in range(2)
    ]
    assert "-m big_vlp.evaluate --follow" in dry_run(
        "local.sh", "--", "evaluate", "--follow", *DEMO, "runs/a"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--bogus",), "--bogus is no option"),
        (("--processes", "two"), "--processes needs a whole number, not 'two'"),
        (("--processes",), "--processes needs a value"),
        (("--", "compile"), "give train or evaluate"),
        (("--", "train", "--config", "configs/demo.py"), "train needs --workdir"),
    ],
)
def test_a_wrong_command_line_is_one_error(arguments, message):
    done = launch("local.sh", *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_processes_are_told_of_each_other_and_say_who_they_are(fake):
    done = fake.run("--processes", "2")
    assert done.returncode == 0, done.stderr
    assert "process 0, start 0, of 2" in done.stdout.splitlines()
    assert "[1] process 1, start 0, of 2" in done.stdout.splitlines()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert f"commit {commit.strip()}" in done.stderr


@pytest.mark.parametrize("status", ["exit 75", "kill -KILL $$", "exit 2"])
def test_a_crash_starts_all_again(fake, status):
    fake(1, 0, status)
    fake(0, 0, "sleep 1; exit 1")  # takes the other with it
    done = fake.run("--processes", "2")
    assert done.returncode == 0, done.stderr
    assert fake.starts(0) == fake.starts(1) == 2


def test_both_killed_at_once(fake, tmp_path):
    """Of which bash tells once."""
    for process in range(2):
        fake(process, 0, f"echo $$ >{tmp_path}/pid.{process}; exec sleep 60")
    files = [tmp_path / f"pid.{process}" for process in range(2)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(fake.run, "--processes", "2")
        while not all(file.exists() and file.read_text().endswith("\n") for file in files):
            time.sleep(0.05)
        for file in files:
            os.kill(int(file.read_text()), signal.SIGKILL)
        done = running.result()
    assert done.returncode == 0 and "in order of their ends: 137 137" in done.stderr
    assert fake.starts(0) == fake.starts(1) == 2


def test_an_error_of_the_users_ends_it(fake):
    fake(0, 0, "exit 1")
    fake(1, 0, "exit 1")
    assert fake.run("--processes", "2").returncode == 1
    assert fake.starts() == 1


def test_restarts_without_a_checkpoint_are_bounded(fake):
    for start in range(9):
        fake(0, start, "exit 75")
    done = fake.run("--restarts", "1")
    assert done.returncode == 1 and "gave up: 1 restarts in a row" in done.stderr
    assert fake.starts() == 2


def test_those_with_a_checkpoint_are_not(fake):
    for start in range(3):
        fake(0, start, f"mkdir -p {fake.workdir}/checkpoints/{start}; exit 75")
    done = fake.run("--restarts", "1")
    assert done.returncode == 0, done.stderr
    assert fake.starts() == 4


def test_checkpoints_in_a_bucket_are_seen(bucket):
    for name in ("checkpoints/20/commit_success.txt", "checkpoints/5/x", "evaluate/20.json"):
        write_whole(bucket / name, b"")
    script = f"source {LAUNCH}/common.sh; workdir={bucket}; progress"
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["20", "20.json", "5"], done.stderr


def test_a_process_that_stands_still_is_killed(fake):
    """Also one that SIGTERM does not reach: it was stopped."""
    fake(0, 0, "exit 75")
    fake(1, 0, "kill -STOP $$")
    begin = time.monotonic()
    done = fake.run("--processes", "2", "--grace", "1")
    assert done.returncode == 0, done.stderr
    assert "so SIGKILL" in done.stderr and fake.starts(1) == 2
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_go_to_all_processes_and_nothing_starts_again(fake, number, status):
    for process in range(2):
        fake(
            process,
            0,
            "trap 'exit 143' TERM; trap 'exit 130' INT; for i in {1..99}; do sleep 0.1; done",
        )
    command = ["bash", LAUNCH / "local.sh", "--processes", "2", "--", "train", *DEMO, fake.workdir]
    running = subprocess.Popen(command, env=fake.env, stdout=subprocess.DEVNULL)
    while not (fake.starts(0) and fake.starts(1)):
        time.sleep(0.05)
    time.sleep(0.3)
    running.send_signal(number)
    assert running.wait(timeout=20) == status
    assert fake.starts() == 1


def test_a_run_that_was_told_to_end_by_itself_is_not_started_again(fake):
    fake(0, 0, "exit 143")
    assert fake.run().returncode == 143
    assert fake.starts() == 1


@pytest.mark.slow
def test_a_killed_process_of_a_real_run(tmp_path):
    """kill -9 of one of two processes: the launcher starts both again, to the same end."""
    command = ["bash", LAUNCH / "local.sh", "--processes", "2", "--", "train"]
    command += ["--config", "tests/tiny_config.py:method=clip", "--workdir", tmp_path / "run"]
    command += ["--config.total_steps=200", "--config.evals={}"]
    env = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    running = subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not saved_steps(tmp_path / "run"):
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.1)
    for pid in map(int, subprocess.check_output(["pgrep", "-P", str(running.pid)]).split()):
        with open(f"/proc/{pid}/environ", "rb") as environ:
            if b"JAX_PROCESS_ID=1" in environ.read():
                os.kill(pid, signal.SIGKILL)
    output, _ = running.communicate(timeout=1200)
    assert running.returncode == 0, output
    assert (
        "starting again (1 of 3" in output
        and "Going on from" in output
        and "Done: 200 steps." in output
    )
    steps = [line["step"] for line in read_log(tmp_path / "run") if line["split"] == TRAIN]
    assert steps == list(range(200))
