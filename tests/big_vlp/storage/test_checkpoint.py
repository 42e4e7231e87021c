"""Checkpoints: round trip, what is kept, and what is said when they do not fit."""

import errno
import os
import resource
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from big_vlp.storage import arrays
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints
from big_vlp.storage.frozen import restore_frozen, save_frozen

ROOT = Path(__file__).parents[3]


def tree(value=1.0):
    return {"a": {"b": jnp.full((3, 4), value)}, "scalar": jnp.asarray(value)}


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(checkpoints, step, value=1.0):
    items = {"model": tree(value), "averaged": {}, "opt": tree(2 * value)}
    checkpoints.save(step, items, {"step": step})


def test_round_trip(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 7, 3.0)
    checkpoints.close()
    reopened = Checkpoints(tmp_path, read_only=True)
    assert reopened.latest_step() == 7
    assert reopened.meta(7) == {"step": 7}
    restored = reopened.restore(7, {"model": shapes(tree()), "averaged": {}, "opt": shapes(tree())})
    assert restored["averaged"] == {}
    np.testing.assert_array_equal(restored["model"]["a"]["b"], 3.0)
    np.testing.assert_array_equal(restored["opt"]["scalar"], 6.0)


def test_keep_rules(tmp_path):
    checkpoints = Checkpoints(tmp_path, every_steps=2, keep_latest=2, keep_every_steps=8)
    for step in range(20):
        if checkpoints.is_due(step):
            save(checkpoints, step)
    checkpoints.wait()
    assert checkpoints.all_steps() == [8, 16, 18]


def test_another_model(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.wait()
    other = {"a": {"c": jnp.zeros(2)}, "scalar": jnp.zeros(5)}
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(1, {"model": shapes(other)})
    for part in ("missing: a/c (2,)", "unexpected: a/b (3, 4)", "scalar is (), should be (5,)"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match="no item 'averaged'"):
        checkpoints.restore(1, {"averaged": shapes(tree())})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2; it has \[1\]"):
        checkpoints.restore(2, {"model": shapes(tree())})


def test_an_unfinished_save_does_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.close()
    (checkpoints.directory / "2.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).latest_step() == 1


def test_frozen_parameters_are_those_of_the_run_that_begins(tmp_path):
    save_frozen(tmp_path, tree(1.0))
    save_frozen(tmp_path, tree(2.0))
    # A run that was stopped before its first checkpoint, and began again from other weights.
    np.testing.assert_array_equal(restore_frozen(tmp_path, shapes(tree()))["a"]["b"], 2.0)
    with pytest.raises(CheckpointError, match="missing: x"):
        restore_frozen(tmp_path, shapes({"x": jnp.zeros(1)}))
    with pytest.raises(CheckpointError, match="frozen"):
        restore_frozen(tmp_path / "elsewhere", shapes(tree()))
    assert restore_frozen(tmp_path / "elsewhere", {}) == {}


def test_disk_full_keeps_the_previous_checkpoint(tmp_path):
    """A limit on the size of files makes writes fail as a full disk does."""
    script = textwrap.dedent(
        f"""
        import resource
        import jax.numpy as jnp
        from big_vlp.storage.checkpoint import CheckpointError, Checkpoints

        checkpoints = Checkpoints({str(tmp_path)!r}, keep_latest=1)
        big = {{"w": jnp.arange(1_000_000.0)}}
        checkpoints.save(1, {{"model": big}}, {{}})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoints.save(2, {{"model": {{"w": big["w"] + 1}}}}, {{}})
            checkpoints.wait()
        except CheckpointError as error:
            print("CheckpointError:", error)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CheckpointError: Writing a checkpoint" in result.stdout, result.stderr
    assert "the last complete one is step 1" in result.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    survivors = Checkpoints(tmp_path)
    assert survivors.all_steps() == [1]
    wanted = shapes({"w": jnp.zeros(1_000_000)})
    restored = survivors.restore(1, {"model": wanted})["model"]["w"]
    np.testing.assert_array_equal(restored[:3], [0, 1, 2])


NAMES = ("a b%?#", "ü[1]*", "back\\slash", "new\nline", "gs:", os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_work_directory_of_any_name(tmp_path, name):
    workdir = tmp_path / name / "run"
    checkpoints = Checkpoints(workdir, keep_latest=1, on_damage="previous")
    for step in (1, 2):
        save(checkpoints, step, step)
    checkpoints.close()
    save_frozen(workdir, tree(3.0))
    assert sorted(p.name for p in workdir.iterdir()) == ["checkpoints", "frozen"]
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["2"]
    assert [p.name for p in tmp_path.iterdir()] == [name]
    reader = Checkpoints(workdir, read_only=True)
    state = {"model": shapes(tree()), "averaged": {}, "opt": shapes(tree())}
    step, restored = Checkpoints(workdir).restore_latest(
        state | {"frozen": shapes(tree())}, lambda _: None
    )
    assert step == 2
    found = [restored[part]["scalar"] for part in ("model", "opt", "frozen")]
    np.testing.assert_array_equal(found, [2, 4, 3])
    assert reader.meta(2) == {"step": 2}
    (workdir / "checkpoints/2/opt/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        reader.restore(2, state)
    assert str(workdir) in str(error.value)
    assert str(arrays.orbax_path(workdir)) == str(workdir) or "big_vlp_" not in str(error.value)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be made"):
        Checkpoints(tmp_path / "file")
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoints(tmp_path, read_only=True).all_steps()


@pytest.mark.parametrize(
    "error, remedy",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "Make room"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "Make room"),
        (
            ValueError(f"RESOURCE_EXHAUSTED: Failed to write: {os.strerror(errno.ENOSPC)} [x"),
            "Make room",
        ),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Mend that"),
        (ValueError("ABORTED: Error writing local file 'x': Stale file handle"), "Mend that"),
        (TypeError("a handler's own fault"), "a fault of the program"),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory"), "a fault of the program"),
    ],
)
def test_what_a_failed_write_says(tmp_path, monkeypatch, caplog, error, remedy):
    checkpoints = Checkpoints(tmp_path)

    def fail(*_, **__):
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("in the background") from cause

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(CheckpointError) as raised:
        save(checkpoints, 1)
    message = str(raised.value)
    assert remedy in message
    assert str(error).split(" [")[0] in message
    assert ("Make room" in message) == (remedy == "Make room")
    assert raised.value.__cause__.__cause__ is error
    # A fault of the program is for a developer to see.
    assert ("Traceback" in caplog.text) == ("fault of the program" in remedy)


def test_strangers_do_not_hide_why_a_write_failed(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "keep_5").mkdir()
    save(checkpoints, 3)
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=r"already exists.*last complete one is step 3"):
        save(checkpoints, 3)


def test_time_is_up_once_in_every_minutes(tmp_path, monkeypatch):
    now = [100.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("big_vlp.storage.checkpoint.time", clock)
    checkpoints = Checkpoints(tmp_path, every_steps=100, every_minutes=2)
    found = []
    for now[0] in (219.0, 220.0, 221.0, 340.0):
        found.append(checkpoints.is_time())
    assert found == [False, True, False, True]
    checkpoints.save(3, {"model": {"a": np.zeros(2, np.float32)}}, {})
    checkpoints.wait()
    assert checkpoints.seconds_of_last_save() is not None
    assert checkpoints.seconds_of_last_save() is None
    assert not checkpoints.is_time()
    checkpoints.close()
    assert not Checkpoints(tmp_path, read_only=True).is_time()
