"""A run with workdir and data in a bucket leaves what one on a disk leaves, to the last digit."""

import collections
import os
import signal
import time

import pytest

from big_vlp.evaluate import evaluate
from big_vlp.storage.checkpoint import COMMITTED, CheckpointError, Checkpoints
from big_vlp.storage.model_dir import open_model
from big_vlp.train import train
from input_pipeline.prepare.command import main as prepare_command
from tests.big_vlp.train.test_train import (
    CONFIG,
    TIMEOUT,
    command,  # noqa: F401
    evaluations,
    tiny_config,
    training_metrics,
)

METHOD = "method=clip"
DATA = "scenes:size=100,image_size=48"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["gs", "s3"])
def scheme(request):
    return request.param


def options_of(workdir):
    """Of the tiny config; the data lie beside the run."""
    return f"{METHOD},data={workdir.parent / 'data'}"


def config_of(workdir, **changes):
    return tiny_config(options_of(workdir), **changes)


def prepare(workdir):
    data = os.fspath(workdir.parent / "data")
    assert prepare_command(["source", "--input", DATA, "--output", data]) == 0


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("on_disk") / "run"
    prepare(workdir)
    train(config_of(workdir), workdir)
    return workdir


@pytest.fixture(scope="module")
def going_on():
    """The requests of the run from step 10 to the end."""
    return []


@pytest.fixture(scope="module")
def in_bucket(bucket_server, scheme, command, going_on):  # noqa: F811
    """A run that was killed after its checkpoint of step 10, and goes on."""
    from input_pipeline.files.buckets import storage_path

    workdir = storage_path(f"{scheme}://bucket/killed")
    prepare(workdir)
    process = command(workdir, f"--config={CONFIG}:{options_of(workdir)}")
    deadline = time.monotonic() + TIMEOUT
    while not (workdir / "checkpoints" / "10" / COMMITTED).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    before = len(bucket_server.faults.requests)
    train(config_of(workdir), workdir)
    going_on[:] = bucket_server.faults.requests[before:]
    return workdir


def test_it_leaves_the_same(on_disk, in_bucket):
    assert training_metrics(in_bucket) == training_metrics(on_disk)
    assert evaluations(in_bucket) == evaluations(on_disk)
    names, expected = ({path.name for path in run.iterdir()} for run in (in_bucket, on_disk))
    assert names == expected - {"evaluate"}  # of the test of an evaluator
    assert Checkpoints(in_bucket, read_only=True).all_steps() == [25, 30]
    for picture in ("curves.png", "contact_sheet.png"):
        assert (in_bucket / picture).read_bytes()[:4] == b"\x89PNG"
    boards = [path.name for path in (in_bucket / "tensorboard").iterdir()]
    assert len(boards) == 2  # of the two starts


def test_it_asks_no_more_than_it_must(in_bucket, going_on, scheme, capsys):
    kinds = ("lease", "checkpoints", "metrics", "tensorboard", "data")
    found = collections.Counter(
        next((kind for kind in kinds if kind in line), "other") for line in going_on
    )
    steps = len([step for step, _ in training_metrics(in_bucket) if step >= 10])
    assert steps == 20  # each is logged; of checkpoints there are 4, and 1 is read
    with capsys.disabled():
        print(f"\nRequests of {steps} steps and 4 checkpoints on {scheme}://: {dict(found)}")
    writes = collections.Counter(
        kind for line in going_on for kind in kinds if kind in line and line[:3] in ("POS", "PUT")
    )
    # A line of the log is one request, and so are its numbers for TensorBoard.
    logged = steps + len([step for step, _ in evaluations(in_bucket) if step >= 10])
    assert writes["tensorboard"] == logged
    assert writes["metrics"] == logged + 2  # the lines of lost steps are dropped, the log is opened
    # What is read at the start and for the curves: the parts are looked for each time.
    assert found["metrics"] - writes["metrics"] <= 45
    assert found["checkpoints"] <= 5 * 300
    # A record each: 8 rows of a step, and of those made ahead; the first, to look at; and where.
    assert 20 * 8 <= found["data"] <= 24 * 8 + 20


def test_an_evaluator_follows_it(in_bucket, on_disk):
    evaluate(config_of(in_bucket), in_bucket, follow=True)
    evaluate(config_of(on_disk), on_disk)
    found, expected = (path / "evaluate" / "30.json" for path in (in_bucket, on_disk))
    assert found.read_text() == expected.read_text()
    assert open_model(in_bucket).load().keys() == open_model(on_disk).load().keys()


def test_a_checkpoint_counts_when_its_last_object_is_there(in_bucket):
    """Also one that is damaged is set aside, and the run goes on from the one before."""
    last = in_bucket / "checkpoints" / "30"
    (last / COMMITTED).unlink()
    assert Checkpoints(in_bucket, read_only=True).all_steps() == [25]
    with pytest.raises(CheckpointError, match="no checkpoint of step 30; it has"):
        evaluate(config_of(in_bucket), in_bucket, at_step=30)
    before = training_metrics(in_bucket)
    train(config_of(in_bucket), in_bucket)
    assert training_metrics(in_bucket) == before
    (last / "meta" / "metadata").unlink()
    train(config_of(in_bucket, checkpoint__on_damage="previous"), in_bucket)
    assert training_metrics(in_bucket) == before
    names = {path.name for path in (in_bucket / "checkpoints").iterdir()}
    assert {"25", "30", "30.damaged"} <= names
    assert Checkpoints(in_bucket, read_only=True).all_steps() == [25, 30]
    # What was set aside stays when the run starts again.
    train(config_of(in_bucket), in_bucket)
    assert "30.damaged" in {path.name for path in (in_bucket / "checkpoints").iterdir()}
