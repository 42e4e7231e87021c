"""launch/tpu.sh against fake_gcloud.py; and its commands against the parser of the real gcloud."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from big_vlp.run.log import TRAIN, read_log
from tests.launch.fakes import (
    DEMO,
    LAUNCH,
    PYTHON,
    dry_run,
    environment,
    launch,
    program,
    saved_steps,
    words,
)

FAKE_GCLOUD = Path(__file__).with_name("fake_gcloud.py")
WHERE = ("--name", "run-1", "--zone", "us-central2-b")
SPOT = (*WHERE, "--type", "v5litepod-16", "--spot", "--poll", "0")
BUCKET = "gs://bucket/run"


@pytest.fixture
def cloud(tmp_path):
    """A Cloud TPU that does what its files say; `env` for the launcher."""
    folder = tmp_path / "cloud"
    folder.mkdir()
    text = FAKE_GCLOUD.read_text().split("\n", 1)[1]
    program(folder, "gcloud", f"#!{sys.executable} -S\n{text}")
    program(folder, "fake_python", PYTHON)
    (folder / "remote").mkdir()
    program(folder / "remote", "python3", "#!/usr/bin/env bash\nexit 0\n")  # pip and uv

    class Cloud:
        env = environment(folder)

        def says(self, file, *lines):
            (folder / file).write_text("".join(f"{line}\n" for line in lines))

        def calls(self, verb=None):
            lines = (folder / "gcloud.jsonl").read_text().splitlines()
            return [call for call in map(json.loads, lines) if verb in (None, call[3])]

        def starts(self, process):
            path = folder / f"starts.{process}"
            return len(path.read_text().splitlines()) if path.exists() else 0

        def is_empty(self):
            return not (folder / "resource.json").exists()

        def run(self, *options, program=("train", *DEMO, BUCKET)):
            return launch("tpu.sh", *SPOT, *options, "--", *program, env=self.env, timeout=120)

    cloud = Cloud()
    cloud.folder = folder
    return cloud


def test_dry_run_of_two_slices():
    lines = dry_run(
        "tpu.sh", *SPOT, "--slices", 2, "--create=--network=mine", "--", "train", *DEMO, BUCKET
    ).splitlines()
    assert lines[0] == (
        "gcloud compute tpus queued-resources create run-1 --zone us-central2-b --accelerator-type "
        "v5litepod-16 --runtime-version v2-alpha-tpuv5-lite --node-count 2 --node-prefix run-1 "
        "--spot --network=mine"
    )
    verbs = [" ".join(line.split()[3:6]) for line in lines]
    assert verbs[1] == "queued-resources describe run-1"
    assert verbs[2:4] == ["tpu-vm scp tree.tar"] * 2
    assert verbs[4:8] == ["tpu-vm ssh run-1-0", "tpu-vm ssh run-1-1"] * 2
    start = words(lines[6])[-1]
    assert re.search(
        r"worker.sh start [\d.]+ train --config configs/demo.py:method=clip --workdir gs://", start
    )
    assert start.endswith(f"{BUCKET} --config.mesh.slices=2")
    assert lines[-1].endswith("queued-resources delete run-1 --zone us-central2-b --force --quiet")


def test_dry_run_of_an_existing_slice_creates_and_deletes_nothing():
    printed = dry_run("tpu.sh", *WHERE, "--existing", "--", "evaluate", "--follow", *DEMO, BUCKET)
    assert "queued-resources" not in printed
    assert re.search(r"start [\d.]+ evaluate --follow", printed)


def test_a_run_on_all_workers_of_all_slices(cloud):
    cloud.says("states.0", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = cloud.run("--slices", "2", "--setup", "touch set_up")
    assert done.returncode == 0, done.stderr
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"run-1: {state}" in done.stderr
    assert [cloud.starts(i) for i in range(4)] == [1, 1, 1, 1]
    assert "process 0, start 0" in done.stdout and "process 1" not in done.stdout
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=LAUNCH, text=True).strip()
    assert f"big_vlp.train, commit {commit}" in done.stdout
    assert cloud.is_empty()


@pytest.mark.parametrize("end", ["", "; sleep 60"])
def test_after_a_preemption_it_asks_anew_and_goes_on(cloud, end):
    for process in range(2):
        cloud.says(f"{process}.0", f'echo SUSPENDED >"$FAKE/states.0"; kill -KILL $${end}')
    cloud.says("states.1", "WAITING_FOR_RESOURCES", "ACTIVE")
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert "preempted or lost; asking anew" in done.stderr
    assert len(cloud.calls("create")) == len(cloud.calls("delete")) == 2
    assert cloud.starts(0) == 2 and "process 0, start 1" in done.stdout


def test_no_capacity_is_waited_for(cloud):
    cloud.says("creates", "capacity", "capacity")
    cloud.says("states.0", "WAITING_FOR_RESOURCES", "FAILED")
    cloud.says("message.0", 'There is no more capacity in the zone "us-central2-b"')
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no capacity in us-central2-b; asking again") == 2
    assert len(cloud.calls("create")) == 4 and cloud.is_empty()


def test_quota_is_the_users_to_mend(cloud):
    cloud.says("creates", "quota")
    done = cloud.run()
    assert done.returncode == 1 and "Quota limit 'TPUV5s" in done.stderr
    assert len(cloud.calls("create")) == 1 and not cloud.calls("delete")
    cloud.says("states.0", "FAILED")
    cloud.says("message.0", "Quota limit 'TPUV5s' has been exceeded.")
    done = cloud.run()
    assert done.returncode == 1 and "Quota limit 'TPUV5s'" in done.stderr
    assert cloud.is_empty()


@pytest.mark.parametrize("status", [75, 143])
def test_a_crash_starts_again_on_the_same_slice(cloud, status):
    """So does a run that something on the machine told to end, as a maintenance does."""
    cloud.says("0.0", "exit 1")
    cloud.says("1.0", f"exit {status}")
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("create")) == 1 and cloud.starts(0) == cloud.starts(1) == 2


def test_crashes_without_a_checkpoint_are_bounded_and_the_slice_is_deleted(cloud):
    for start in range(5):
        cloud.says(f"0.{start}", "exit 75")
    done = cloud.run("--restarts", "1")
    assert done.returncode == 1 and "gave up" in done.stderr
    assert cloud.starts(0) == 2 and cloud.is_empty()


def test_an_error_of_the_users_ends_it(cloud):
    for process in range(2):
        cloud.says(f"{process}.0", "echo error: no such key; exit 1")
    done = cloud.run()
    assert done.returncode == 1 and "error: no such key" in done.stdout
    assert cloud.starts(0) == 1 and cloud.is_empty()


def test_a_worker_that_stands_still_is_killed(cloud):
    cloud.says("0.0", "exit 75")
    cloud.says("1.0", "kill -STOP $$")
    done = cloud.run("--grace", "1")
    assert done.returncode == 0, done.stderr
    assert "so SIGKILL" in done.stderr and cloud.starts(1) == 2


def test_ctrl_c_saves_and_deletes(cloud):
    for process in range(2):
        cloud.says(
            f"{process}.0",
            "trap 'echo saved; exit 143' TERM; for i in {1..300}; do sleep 0.1; done",
        )
    command = ["bash", LAUNCH / "tpu.sh", *SPOT, "--", "train", *DEMO, BUCKET]
    running = subprocess.Popen(
        command, env=cloud.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (cloud.starts(0) and cloud.starts(1)):
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "saved" in out and cloud.is_empty() and cloud.starts(0) == 1


def test_a_config_that_would_not_be_sent_is_refused(cloud, tmp_path):
    done = cloud.run(program=("train", "--config", "/etc/hosts", "--workdir", BUCKET))
    assert done.returncode == 1 and "give --config as a path within it" in done.stderr
    assert not (cloud.folder / "gcloud.jsonl").exists()


@pytest.mark.slow
def test_a_real_run_goes_on_after_a_preemption(cloud, tmp_path):
    """Two workers train from the tree that was sent, lose their slice, and get another one."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        kept["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free.getsockname()[1]}"
    kept |= {"JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    exports = " ".join(f"{name}={value}" for name, value in kept.items())
    python = f'#!/usr/bin/env bash\nexport {exports}\nexec {sys.executable} "$@"\n'
    program(cloud.folder, "fake_python", python)
    workdir = tmp_path / "run"
    run = ("train", "--config", "tests/tiny_config.py:method=clip", "--workdir", workdir)
    changes = ("--config.total_steps=200", "--config.evals={}")
    command = ["bash", LAUNCH / "tpu.sh", *SPOT, "--poll", "1", "--", *run, *changes]
    running = subprocess.Popen(
        command, env=cloud.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not saved_steps(workdir):
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.1)
    cloud.says("states.0", "SUSPENDED")
    output, _ = running.communicate(timeout=1500)
    assert running.returncode == 0, output
    assert "run-1: SUSPENDED" in output and "asking anew" in output
    assert "Going on from" in output and "Done: 200 steps." in output
    steps = [line["step"] for line in read_log(workdir) if line["split"] == TRAIN]
    assert steps == list(range(200))
    assert cloud.is_empty()


REAL = shutil.which("gcloud")


def assert_parsed(commands: list[str], folder: Path) -> None:
    """That the parser of the real gcloud takes them; no server is asked."""
    file = folder / "commands.json"
    file.write_text(json.dumps([{"command_string": command} for command in commands]))
    env = {**os.environ, "CLOUDSDK_CONFIG": str(folder / "config")}
    env["CLOUDSDK_CORE_CHECK_GCE_METADATA"] = "false"
    answer = subprocess.run(
        [REAL, "meta", "lint-gcloud-commands", "--commands-file", file],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    results = json.loads(answer.stdout)
    assert len(results) == len(commands)
    for result in results:
        assert result["success"], (result["command_string"], result["error_message"])


@pytest.mark.skipif(REAL is None, reason="needs gcloud")
def test_the_real_parser_knows_every_command(tmp_path):
    run = ("--", "train", *DEMO, BUCKET)
    printed = dry_run("tpu.sh", *SPOT, "--slices", 2, "--create=--network=mine", *run)
    printed += dry_run("tpu.sh", *WHERE, "--type", "v6e-8", "--create=--reserved", *run)
    printed += dry_run("tpu.sh", *WHERE, "--existing", *run)
    commands = sorted(set(filter(None, printed.splitlines())))
    commands += [
        f"gcloud storage ls {BUCKET}/checkpoints/ {BUCKET}/evaluate/",
        "gcloud compute tpus queued-resources describe run-1 --zone us-central2-b "
        "--format 'value(state.failedData.error.message)'",
    ]
    assert len(commands) > 12
    assert_parsed(commands, tmp_path)
