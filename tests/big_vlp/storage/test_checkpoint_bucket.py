"""Checkpoints in a bucket: complete when their last object is there, set aside, removed."""

import asyncio
import importlib.metadata
import itertools

import jax
import jax.numpy as jnp
import pytest

from big_vlp.parallel import processes, watchdog
from big_vlp.storage import agreement, arrays, frozen, objects
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints
from input_pipeline.files import outages
from tests.bucket_server import SERVERS

META = {"config": {}}


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request):
    return request.param


def tree(step: int) -> dict:
    return {"a": {"kernel": jnp.arange(500.0).reshape(50, 10) + step}, "b": jnp.full((3,), step)}


def shapes() -> dict:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree(0)
    )


def save(workdir, *steps: int, **options) -> None:
    checkpoints = Checkpoints(workdir, **options)
    for step in steps:
        checkpoints.save(step, {"model": tree(step), "averaged": {}, "opt": {}}, META)
    checkpoints.close()


def restored(workdir, **options) -> tuple[int, list[str]]:
    """The step that is restored, and what is said; its arrays are compared."""
    said, wanted = [], {"model": shapes(), "averaged": {}, "frozen": {}}
    checkpoints = Checkpoints(workdir, keep_latest=9, **options)
    step, state = checkpoints.restore_latest(wanted, said.append)
    checkpoints.close()
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state["model"], tree(step)))
    return step, said


def test_the_latest_are_kept_and_restored(bucket):
    save(bucket, 1, 2, 3, keep_latest=2)
    assert sorted(path.name for path in (bucket / "checkpoints").iterdir()) == ["2", "3"]
    assert restored(bucket) == (3, [])
    assert Checkpoints(bucket, read_only=True).meta(2) == META


def test_one_without_its_last_object_does_not_count_and_goes(bucket):
    save(bucket, 1, 2, keep_latest=2)
    (bucket / "checkpoints" / "2" / outages.COMMITTED).unlink()
    assert Checkpoints(bucket, read_only=True).all_steps() == [1]
    assert restored(bucket) == (1, [])
    assert [path.name for path in (bucket / "checkpoints").iterdir()] == ["1"]


def test_a_damaged_one_is_set_aside_and_stays(bucket):
    save(bucket, 1, 2, keep_latest=2)
    (bucket / "checkpoints" / "2" / "model" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged .*on_damage='previous' sets it aside"):
        restored(bucket)
    step, said = restored(bucket, on_damage="previous")
    assert step == 1 and "set aside as 2.damaged" in said[0]
    save(bucket, 2, keep_latest=2)
    names = sorted(path.name for path in (bucket / "checkpoints").iterdir())
    assert names == ["1", "2", "2.damaged"]
    assert restored(bucket) == (2, [])


def test_one_whose_deletion_is_interrupted_counts_no_more(bucket, bucket_server):
    """What deletes the old step is forbidden to, after the first request."""
    save(bucket, 1)

    def deletions(number, method, path):
        others = method in ("POST", "DELETE") and "/upload/" not in path
        return 403 if others and outages.COMMITTED not in path else None

    with bucket_server.faults.spoiling(deletions), pytest.raises(CheckpointError):
        save(bucket, 2)
    assert 1 not in Checkpoints(bucket, read_only=True).all_steps()
    assert "1" in {path.name for path in (bucket / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    "uploads", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_wherever_writing_is_cut_off_no_half_counts(bucket, bucket_server, uploads):
    save(bucket, 1, keep_latest=9)
    of_model = itertools.count()

    def spoil(number, method, path):
        is_one = method in ("PUT", "POST") and "model" in path
        return 403 if is_one and next(of_model) >= uploads else None

    with (
        bucket_server.faults.spoiling(spoil),
        pytest.raises(CheckpointError, match=r"the last complete one is step 1\. Mend that"),
    ):
        save(bucket, 2, keep_latest=9)
    assert Checkpoints(bucket, read_only=True).all_steps() == [1]
    assert restored(bucket) == (1, [])


def test_what_was_frozen(bucket):
    frozen.save_frozen(bucket, tree(7))
    frozen.save_frozen(bucket, tree(8))  # a run that begins again
    found = frozen.restore_frozen(bucket, shapes())
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found, tree(8)))


def test_what_cannot_be_reached_is_not_called_damaged(bucket, bucket_server, monkeypatch):
    save(bucket, 1)

    async def at_once(_):
        return None

    monkeypatch.setattr(asyncio, "sleep", at_once)
    checkpoints = Checkpoints(bucket, read_only=True)

    def of_metadata(number, method, path):
        return 503 if "metadata" in path else None

    spoiling = bucket_server.faults.spoiling(of_metadata)
    with spoiling, pytest.raises(CheckpointError, match="cannot be reached now") as error:
        checkpoints.meta(1)
    assert not isinstance(error.value, agreement.UnreadableError)
    assert processes.status_of(error.value) == watchdog.STATUS


@pytest.mark.parametrize("doing", [arrays.reading, lambda: arrays.writing("there", str)])
def test_an_outage_that_tensorstore_meets_is_told_as_one(doing):
    with pytest.raises(CheckpointError, match="503") as error, doing():
        raise ValueError("UNAVAILABLE: HTTP response code: 503 [source locations='a']")
    assert processes.status_of(error.value) == watchdog.STATUS


@pytest.fixture
def untaught():
    """As before the first use of s3://; what Orbax was taught before stays."""
    objects.teach_orbax.cache_clear()
    yield
    objects.teach_orbax.cache_clear()


@pytest.mark.parametrize("change", ["gone", "another"])
def test_another_orbax_is_one_error(untaught, monkeypatch, change):
    gcs_utils = pytest.importorskip("orbax.checkpoint._src.path.gcs_utils")
    if change == "gone":
        monkeypatch.delattr(gcs_utils, "is_gcs_path")
    else:
        monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", lambda path, options: {})
    version = importlib.metadata.version("orbax-checkpoint")
    with pytest.raises(CheckpointError, match=f"inside in 0.12.8, and {version} is another"):
        objects.teach_orbax()
