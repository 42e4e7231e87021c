"""launch/gke/submit.sh: its manifests, and what it does with a fake kubectl."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.launch.fakes import DEMO, dry_run, environment, launch, program
from tests.launch.jobset_schema import wrong

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which yamllint brings")

FAKE_KUBECTL = Path(__file__).with_name("fake_kubectl.py")
NAME = ("--name", "run-1", "--image", "eu/mine/big_vlp:1")
TPU = (*NAME, "--tpu", "tpu-v5-lite-podslice", "--topology", "4x4")
GPU = (*NAME, "--gpu", "nvidia-h100-80gb", "--nodes", "2")
RUN = ("--", "train", *DEMO, "gs://bucket/run")
FOLLOW = ("--", "evaluate", "--follow", *DEMO, "gs://bucket/run")
OPTIONAL = ("--spot", "--bucket", "mine", "--service-account", "writer")
CASES = {
    "tpu": (*TPU, *RUN),
    "two slices": (*TPU, "--slices", "2", *OPTIONAL, *RUN),
    "gpu": (*GPU, *RUN),
    "gpu with all": (*GPU, *OPTIONAL, *RUN),
    "evaluator": (*NAME[2:], "--name", "run-1-eval", *TPU[4:6], "--topology", "2x2", *FOLLOW),
}


def manifest(*arguments) -> dict:
    return yaml.safe_load(dry_run("gke/submit.sh", *arguments))


def job_of(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(jobset: dict) -> dict:
    return job_of(jobset)["template"]["spec"]


@pytest.mark.parametrize("case", CASES)
def test_manifests_have_the_fields_of_a_jobset(case):
    printed = dry_run("gke/submit.sh", *CASES[case])
    assert "${" not in printed and "# with --" not in printed
    assert wrong(yaml.safe_load(printed)) == []


@pytest.mark.parametrize("case", CASES)
def test_jobs_in_them_are_valid_in_kubernetes(case):
    validate = pytest.importorskip("kubernetes_validate")
    template = manifest(*CASES[case])["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "run"}, **template}
    validate.validate(job, validate.latest_version(), strict=True)


def test_the_schema_refuses():
    bad = manifest(*CASES["tpu"])
    bad["spec"]["failurePolicy"]["maxRestart"] = 3
    bad["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
    bad["spec"]["replicatedJobs"][0]["replicas"] = "2"
    assert [text.split(" ")[0] for text in wrong(bad)] == [
        ".spec.failurePolicy.maxRestart",
        ".spec.failurePolicy.rules[0].action",
        ".spec.replicatedJobs[0].replicas",
    ]


def test_two_slices_are_two_jobs_of_four_hosts():
    jobset = manifest(*CASES["two slices"])
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2
    job, pod = job_of(jobset), pod_of(jobset)
    assert job["parallelism"] == job["completions"] == 4
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    slices = "--config.mesh.slices=2"
    assert pod["containers"][0]["args"] == ["train", *DEMO, "gs://bucket/run", slices]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "mine"
    assert pod["serviceAccountName"] == "writer"
    assert re.match("[0-9a-f]{40}( and changes)?$", jobset["metadata"]["annotations"]["commit"])


def test_processes_on_gpus_are_told_of_each_other():
    env = {e["name"]: e for e in pod_of(manifest(*CASES["gpu"]))["containers"][0]["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == "run-1-run-0-0.run-1:8482"
    assert env["JAX_NUM_PROCESSES"]["value"] == "2"
    assert "job-completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_what_restarts_and_what_does_not():
    jobset = manifest(*TPU, "--restarts", "9", "--grace", "60", *RUN)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 9 and policy["rules"][0]["action"] == "FailJobSet"
    codes = job_of(jobset)["podFailurePolicy"]["rules"][0]
    assert codes["action"] == "FailJob" and codes["onExitCodes"]["values"] == [1]
    assert codes["onExitCodes"]["containerName"] == pod_of(jobset)["containers"][0]["name"]
    assert job_of(jobset)["backoffLimit"] == 0
    assert pod_of(jobset)["restartPolicy"] == "Never"
    assert pod_of(jobset)["terminationGracePeriodSeconds"] == 60


def test_arguments_reach_the_program_as_they_are():
    odd = ["--config.a='$(HOME)'", '--config.b="x\\y"', "--config.c=${NAME} & 1"]
    args = pod_of(manifest(*TPU, *RUN, *odd))["containers"][0]["args"]
    assert [arg.replace("$$(", "$(") for arg in args[-3:]] == odd  # as Kubernetes reads $$(


@pytest.fixture
def cluster(tmp_path):
    text = FAKE_KUBECTL.read_text().split("\n", 1)[1]
    program(tmp_path, "kubectl", f"#!{sys.executable} -S\n{text}")

    class Cluster:
        env = environment(tmp_path)

        def says(self, file, *lines):
            (tmp_path / file).write_text("".join(f"{line}\n" for line in lines))

        def calls(self, verb):
            lines = (tmp_path / "kubectl.jsonl").read_text().splitlines()
            return [call for call in map(json.loads, lines) if call[0] == verb]

        def run(self, *options):
            return launch("gke/submit.sh", *TPU, "--poll", "0", *options, *RUN, env=self.env)

    cluster = Cluster()
    cluster.folder = tmp_path
    return cluster


def test_it_shows_the_log_of_each_start_until_the_end(cluster):
    cluster.says("jobset", "|0", "|0", "|1", "|1", "Completed|1")
    cluster.says(
        "pods", "run-1-run-0-0-a Running", "run-1-run-0-0-a Failed", "run-1-run-0-0-b Running"
    )
    done = cluster.run()
    assert done.returncode == 0, done.stderr
    assert "log of run-1-run-0-0-a" in done.stdout and "log of run-1-run-0-0-b" in done.stdout
    assert "started again (1 of 50)" in done.stderr
    assert yaml.safe_load((cluster.folder / "applied.yaml").read_text())["kind"] == "JobSet"


def test_it_says_why_it_waits(cluster):
    cluster.says("jobset", "|0", "|0", "Completed|0")
    cluster.says("pods", "", "run-1-run-0-0-a Pending", "run-1-run-0-0-a Succeeded")
    cluster.says(
        "events", "run-1-run-0-0-a 0/3 nodes are available: 3 Insufficient google.com/tpu."
    )
    done = cluster.run()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("waiting: 0/3 nodes are available") == 1
    assert "log of run-1-run-0-0-a" in done.stdout


def test_a_run_that_failed_and_one_that_is_gone(cluster):
    cluster.says("jobset", "Failed|0")
    cluster.says("pods", "run-1-run-0-0-a Failed")
    done = cluster.run()
    assert done.returncode == 1 and "jobset failed due to" in done.stderr
    assert "log of run-1-run-0-0-a" in done.stdout
    cluster.says("jobset", "gone")
    done = cluster.run()
    assert done.returncode == 1 and "run-1 is gone" in done.stderr


def test_a_cluster_that_does_not_answer_for_a_while_ends_nothing(cluster):
    cluster.says("jobset", "|0", "unreachable", "unreachable", "Completed|0")
    cluster.says("pods", "run-1-run-0-0-a Running")
    done = cluster.run()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("does not answer now") == 2 and "gone" not in done.stderr


def test_a_quota_is_the_users_to_mend(cluster):
    cluster.says("refused", 'jobsets "run-1" is forbidden: exceeded quota: tpus')
    done = cluster.run()
    assert done.returncode == 1 and "exceeded quota" in done.stderr
    assert len(cluster.calls("get")) == 1  # whether there is one


def test_detached_it_only_submits(cluster):
    assert cluster.run("--detach").returncode == 0
    assert len(cluster.calls("apply")) == 1 and len(cluster.calls("get")) == 1
    assert not cluster.calls("delete")


def test_one_that_has_ended_makes_room_for_the_next_of_its_name(cluster):
    cluster.says("before", "Failed")
    assert cluster.run("--detach").returncode == 0
    assert cluster.calls("delete") == [["delete", "jobset", "run-1"]]


@pytest.mark.parametrize(
    "options, message",
    [
        (NAME, "Give --tpu or --gpu"),
        ((*TPU, "--gpu", "x"), "Give --tpu or --gpu"),
        (TPU[:-2], "--topology is missing"),
        ((*TPU, "--chips", "64"), "less than 64 chips"),
        (("--name", "Run_1"), "small letters"),
    ],
)
def test_a_wrong_command_line_is_one_error(options, message):
    done = launch("gke/submit.sh", *options, *RUN)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
