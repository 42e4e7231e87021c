"""sweep.py; the dry runs of slurm/submit.sh and docker/build.sh; what reaches other machines."""

import subprocess
import sys
import tarfile

import pytest

from tests.launch.fakes import DEMO, LAUNCH, ROOT, dry_run, environment, launch, program, words

GRID = ("--set", "optim.learning_rate", "1e-3", "3e-4", "--set", "seed", "0", "1")


def sweep(*arguments):
    command = [sys.executable, LAUNCH / "sweep.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_sweep_is_one_job_for_each_point():
    launcher = ["launch/tpu.sh", "--name", "s-{index}", "--", "train", "--workdir", "gs://b/{name}"]
    done = sweep("--dry-run", *GRID, "--", *launcher)
    assert done.returncode == 0, done.stderr
    jobs = [words(line) for line in done.stdout.splitlines()]
    assert [job[2] for job in jobs] == ["s-0", "s-1", "s-2", "s-3"]
    assert jobs[1][6:] == [
        "gs://b/learning_rate=1e-3,seed=1",
        "--config.optim.learning_rate=1e-3",
        "--config.seed=1",
    ]


def test_a_sweep_runs_all_and_says_which_failed(tmp_path):
    program(tmp_path, "job", '#!/bin/sh\necho "$*" >>"$0.log"\n[ "$3" != 1,seed=0 ]\n')
    job = str(tmp_path / "job")
    done = sweep("--set", "x", "1", "2", "--set", "seed", "0", "--", job, "--", "train", "{name}")
    assert done.returncode == 0, done.stderr
    program(tmp_path, "job", '#!/bin/sh\n[ "$3" != x=1 ]\n')
    done = sweep("--set", "x", "1", "2", "--jobs", "2", "--", job, "--", "train", "{name}")
    assert done.returncode == 1 and "sweep: x=1 ended with 1" in done.stderr
    assert "x=2 ended" not in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--", "launch/local.sh", "--", "train"), "give --set KEY VALUE"),
        ((*GRID, "--", "launch/local.sh"), "after -- give a launcher"),
        ((*GRID, "--", "launch/local.sh", "--", "train"), "a directory of its own"),
        ((*GRID, "--set", "seed", "3"), "a key is set twice"),
    ],
)
def test_a_wrong_sweep_is_refused(arguments, message):
    done = sweep(*arguments)
    assert done.returncode == 2 and message in done.stderr


def slurm(*arguments) -> list[str]:
    lines = dry_run("slurm/submit.sh", *arguments, "--", "train", *DEMO, "runs/x").splitlines()
    assert lines[0] == "mkdir -p runs/x" and "the working tree, commit" in lines[1]
    return words(lines[2])


def test_slurm_one_process_for_each_node_gets_all_its_gpus():
    command = slurm("--nodes", 2, "--gpus-per-node", 4, "--sbatch=--time=4:00:00")
    assert command[0] == "sbatch" and "--time=4:00:00" in command
    for flag, value in {"--nodes": "2", "--ntasks-per-node": "1", "--gpus-per-node": "4"}.items():
        assert command[command.index(flag) + 1] == value
    assert command[command.index("--output") + 1] == "runs/x/slurm-%j.log"
    at = command.index("0,1,2,3")
    assert command[at + 1 :] == ["train", *DEMO, "runs/x"]


def test_slurm_one_process_for_each_gpu():
    command = slurm("--gpus-per-node", 4, "--per-gpu")
    assert command[command.index("--ntasks-per-node") + 1] == "4"
    assert command[command.index("train") - 1] == "-"  # jax takes the GPU of the task's number


def test_slurm_refuses_a_wrong_command_line():
    run = ("--", "train", *DEMO, "runs/x")
    for options, message in (
        (("--per-gpu",), "--per-gpu needs --gpus-per-node"),
        (("--gpus-per-node", "2", "--tasks-per-node", "2"), "give --per-gpu instead"),
    ):
        done = launch("slurm/submit.sh", *options, *run)
        assert done.returncode == 1 and message in done.stderr


def test_docker_builds_from_the_working_tree_and_pushes():
    lines = dry_run("docker/build.sh", "cuda", "eu/mine/big_vlp:1").splitlines()
    assert lines[0].startswith("# stdin: the working tree, commit ")
    assert lines[1].endswith(
        " -f launch/docker/Dockerfile --build-arg EXTRAS=cuda13,gcs,s3 -t eu/mine/big_vlp:1 -"
    )
    assert lines[2] == "docker push eu/mine/big_vlp:1"


def test_docker_takes_nothing_after_the_image():
    """Else a `--dry-run` there would build and push."""
    done = launch("docker/build.sh", "cuda", "eu/mine/big_vlp:1", "--dry-run")
    assert done.returncode == 1 and "--dry-run comes first" in done.stderr and not done.stdout


def test_the_tree_that_is_sent_is_what_git_does_not_ignore(tmp_path):
    """Files that are not committed, too, and it says so; nothing that is ignored or deleted."""
    tree = tmp_path / "tree"
    (tree / "launch").mkdir(parents=True)
    (tree / "launch/common.sh").write_text((LAUNCH / "common.sh").read_text())
    (tree / ".gitignore").write_text("/data/\n")
    for name in ("kept", "deleted", "changed"):
        (tree / name).write_text("old")
    git = ["git", "-C", tree, "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()

    def packed(name):
        script = f"source launch/common.sh; pack >{tmp_path / name}"
        subprocess.run(["bash", "-c", script], cwd=tree, check=True, env=environment(tmp_path))
        with tarfile.open(tmp_path / name) as tar:
            return {m: tar.extractfile(m).read().decode() for m in tar.getnames()}

    clean = packed("clean.tar")
    assert clean["COMMIT"] == f"{head}\n" and clean["kept"] == "old"

    (tree / "data").mkdir()
    for name, text in {"data/big": "", "changed": "new", "new file": "n"}.items():
        (tree / name).write_text(text)
    (tree / "deleted").unlink()
    sent = packed("dirty.tar")
    assert set(sent) == {".gitignore", "launch/common.sh", "kept", "changed", "new file", "COMMIT"}
    assert sent["changed"] == "new"
    assert sent["COMMIT"].splitlines()[:2] == [head, "and changes that are not committed:"]
    assert " M changed" in sent["COMMIT"] and '?? "new file"' in sent["COMMIT"]
