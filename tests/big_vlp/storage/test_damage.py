"""Damaged checkpoints are named, with what to delete and where the run goes on, or set aside."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from big_vlp.run.log import read_log
from big_vlp.storage import arrays
from big_vlp.storage.checkpoint import (
    CheckpointError,
    Checkpoints,
    UnreadableError,
)
from big_vlp.storage.frozen import restore_frozen, save_frozen
from big_vlp.storage.model_dir import Labels, open_model
from big_vlp.train import train
from tests.big_vlp.train.test_train import tiny_config

ROOT = Path(__file__).parents[3]
NOBODY = 65534


def tree(value=1.0):
    weights = np.random.default_rng(0).normal(size=(64, 64))
    return {"a": {"b": jnp.asarray(weights, jnp.float32) + value}, "n": jnp.float32(value)}


def shapes(tree, dtype=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=x.sharding), tree
    )


STATE = {"model": shapes(tree()), "averaged": {}, "opt": shapes(tree()), "frozen": {}}


def save(checkpoints, step):
    items = {"model": tree(step), "averaged": {}, "opt": tree(2 * step)}
    checkpoints.save(step, items, {"step": step, "config": {}})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run that saved at 5 and 10, and has frozen parameters."""
    workdir = tmp_path_factory.mktemp("stored")
    checkpoints = Checkpoints(workdir, keep_latest=2)
    for step in (5, 10):
        save(checkpoints, step)
    checkpoints.close()
    save_frozen(workdir, tree(3.0))
    return workdir


@pytest.fixture
def run(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "run")
    return tmp_path / "run"


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path):
    path.write_bytes(b"")


def fill(path):
    path.write_bytes(b"\xff\x00 no such thing" * 9)


def replace_by_a_directory(path):
    path.unlink()
    path.mkdir()


PARTS = {
    "everything": lambda step: [p for p in step.iterdir()],
    "model": lambda step: [step / "model"],
    "opt": lambda step: [step / "opt"],
    "meta": lambda step: [step / "meta"],
    "manifest": lambda step: [step / "opt" / "manifest.ocdbt"],
    "data": lambda step: [largest_file(step / "model")],
    "shapes": lambda step: [step / "model" / "_METADATA"],
    "json": lambda step: [step / "meta" / "metadata"],
    "list of items": lambda step: [step / "_CHECKPOINT_METADATA"],
}
FILES = ("manifest", "data", "shapes", "json", "list of items")
DAMAGES = [(part, remove) for part in PARTS]
DAMAGES += [(p, do) for p in FILES for do in (empty, cut, fill, replace_by_a_directory)]
DAMAGES += [("data", flip_a_bit)]


def damage(run, part, do, step=10):
    for path in PARTS[part](run / "checkpoints" / str(step)):
        do(path)


@pytest.mark.parametrize("part, do", DAMAGES, ids=lambda x: getattr(x, "__name__", x))
def test_it_is_named_with_what_to_delete(run, part, do):
    damage(run, part, do)
    before = sorted((run / "checkpoints").rglob("*"))
    with pytest.raises(CheckpointError) as error:
        Checkpoints(run).restore_latest(STATE, print)
    path = run / "checkpoints" / "10"
    message = str(error.value)
    assert message.startswith(f"checkpoint 10 ({path}) is damaged (")
    assert "): delete it, the run goes on from 5." in message
    assert "\n" not in message
    assert sorted((run / "checkpoints").rglob("*")) == before
    shutil.rmtree(path)
    step, state = Checkpoints(run).restore_latest(STATE, print)
    assert step == 5
    assert float(state["opt"]["n"]) == 10


def test_it_is_set_aside_when_asked(run):
    said = []
    damage(run, "data", cut)
    checkpoints = Checkpoints(run, keep_latest=2, on_damage="previous")
    step, state = checkpoints.restore_latest(STATE, said.append)
    assert (step, float(state["model"]["n"])) == (5, 5)
    assert len(said) == 1
    for part in ("checkpoint 10", "damaged (model: ", "set aside as 10.damaged", "goes on from 5"):
        assert part in said[0]
    assert checkpoints.all_steps() == [5]
    # The run comes to that step again; what was set aside counts for nothing and is not deleted.
    save(checkpoints, 10)
    checkpoints.wait()
    assert checkpoints.all_steps() == [5, 10]
    damage(run, "json", empty)
    checkpoints = Checkpoints(run, keep_latest=2, on_damage="previous")
    assert checkpoints.restore_latest(STATE, said.append)[0] == 5
    for step in (10, 15):
        save(checkpoints, step)
    checkpoints.close()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        *("10", "10.damaged", "10.damaged.2", "15")
    ]


def test_one_that_is_whole_is_left_alone(run):
    said = []
    step, _ = Checkpoints(run, on_damage="previous").restore_latest(STATE, said.append)
    assert (step, said) == (10, [])


@pytest.mark.parametrize("on_damage", ["stop", "previous"])
def test_none_can_be_read(run, on_damage):
    damage(run, "opt", remove)
    damage(run, "meta", remove, step=5)
    with pytest.raises(CheckpointError, match="no other checkpoint is left") as error:
        Checkpoints(run, on_damage=on_damage).restore_latest(STATE, print)
    assert "checkpoint 10" in str(error.value)
    assert "checkpoint 5" in str(error.value)
    assert Checkpoints(run).all_steps() == [5, 10]


def test_two_are_damaged(run):
    checkpoints = Checkpoints(run, keep_latest=3)
    save(checkpoints, 15)
    checkpoints.close()
    for step in (10, 15):
        damage(run, "data", flip_a_bit, step)
    with pytest.raises(CheckpointError, match="delete them, the run goes on from 5"):
        Checkpoints(run).restore_latest(STATE, print)


def test_another_model_is_no_damage(run):
    wanted = STATE | {"model": shapes({"a": {"b": jnp.zeros((64, 32))}, "n": jnp.zeros(())})}
    with pytest.raises(CheckpointError, match="another model"):
        Checkpoints(run, on_damage="previous").restore_latest(wanted, print)
    assert Checkpoints(run).all_steps() == [5, 10]


def test_a_checkpoint_that_may_not_be_read(stored):
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        shutil.copytree(stored, run)
        secret = largest_file(run / "checkpoints" / "10" / "opt")
        secret.chmod(0)
        os.chmod(directory, 0o755)
        as_root = os.geteuid() == 0
        if as_root:
            for path in (run, *run.rglob("*")):
                os.chmod(path, path.stat().st_mode | 0o055 if path != secret else 0)
            os.seteuid(NOBODY)
        try:
            with pytest.raises(UnreadableError, match=r"opt: .*needs the right .*goes on from 5"):
                Checkpoints(run, read_only=True).restore(10, {"opt": STATE["opt"]})
        finally:
            if as_root:
                os.seteuid(0)


def test_strangers_beside_checkpoints(run):
    directory = run / "checkpoints"
    for name in ("best", "5 copy", "keep_5", "10.damaged", "007", "-3", "\u0663"):
        shutil.copytree(directory / "5", directory / name)
    (directory / "12").write_text("a file")
    (directory / "notes.txt").touch()
    before = {p.name for p in directory.iterdir()}
    checkpoints = Checkpoints(run, keep_latest=1)
    assert checkpoints.all_steps() == [5, 10]
    assert checkpoints.restore_latest(STATE, print)[0] == 10
    save(checkpoints, 15)
    checkpoints.close()
    assert {p.name for p in directory.iterdir()} == (before | {"15"}) - {"5", "10"}


def test_a_bit_that_flips_in_frozen_parameters(run):
    flip_a_bit(largest_file(run / "frozen"))
    state = STATE | {"frozen": shapes(tree())}
    with pytest.raises(CheckpointError) as error:
        Checkpoints(run, on_damage="previous").restore_latest(state, print)
    assert str(error.value).startswith(f"{run / 'frozen'} is damaged (not as it was written: a/b,")


@pytest.mark.parametrize("do", [empty, cut, fill, remove, replace_by_a_directory])
@pytest.mark.parametrize("part", ["manifest.ocdbt", "_METADATA"])
def test_damaged_frozen_parameters(run, part, do):
    do(run / "frozen" / part)
    with pytest.raises(CheckpointError, match=r"frozen is damaged .*from a copy"):
        restore_frozen(run, shapes(tree()))


def test_a_dtype_that_changes_is_said(run):
    said = []
    restored = restore_frozen(run, shapes(tree(), jnp.bfloat16), said.append)
    assert restored["a"]["b"].dtype == jnp.bfloat16
    assert said == [f"{run / 'frozen'}: what is stored in float32 is read as bfloat16 (arrays: 2)."]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        ValueError("RESOURCE_EXHAUSTED: Error opening file: Too many open files"),
    ],
)
def test_a_machine_at_its_limits_is_no_damage(run, monkeypatch, error):
    def fail(*_, **__):
        raise Exception("Encountered error while reading array index: ...") from error

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    with pytest.raises(CheckpointError, match="nothing is wrong with it"):
        Checkpoints(run, on_damage="previous").restore_latest(STATE, print)
    assert Checkpoints(run).all_steps() == [5, 10]


def test_sums_do_not_depend_on_the_mesh_and_see_every_dtype():
    """The sum of bits, by hand."""
    values = {
        "f": np.array([1.5, -0.0, np.nan, np.inf], np.float32),
        "h": np.array([1.5, -2], jnp.bfloat16),
        "i": np.array([-1, 7], np.int32),
        "b": np.array([True, False, True]),
        "u": np.arange(300, dtype=np.uint8),
    }
    words = {name: x.view(f"u{x.dtype.itemsize}").astype(object) for name, x in values.items()}
    args = arrays.to_save(jax.tree.map(jnp.asarray, values))
    expected = {name: int(word.sum()) % 2**32 for name, word in words.items()}
    assert args.custom_metadata == {"checksums": expected}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"names": 3, "keys": null}', "\xff"])
def test_damaged_labels(tmp_path, text):
    (tmp_path / "labels.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"labels\.json is damaged"):
        Labels.load(tmp_path)


def test_a_model_directory_that_is_damaged(run):
    for part, do in (("json", fill), ("list of items", cut)):
        damage(run, part, do)
        with pytest.raises(CheckpointError, match=r"checkpoint 10 .* is damaged"):
            open_model(run)
    damage(run, "json", lambda path: path.write_text("{}"), step=5)
    with pytest.raises(CheckpointError, match="lacks config or preprocess"):
        open_model(run, at_step=5)


READ_AND_FAIL = """
import sys
import jax, jax.numpy as jnp
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints

many = {f"w{i}": jnp.zeros((40, 30)) + i for i in range(60)}
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), many)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"model": many}, {})
checkpoints.wait()
for path in checkpoints.directory.glob("1/model/**/d/*"):
    path.write_bytes(b"")
for _ in range(10):
    try:
        checkpoints.restore(1, {"model": shapes})
    except CheckpointError as error:
        print(error)
"""


def test_nothing_else_is_printed(tmp_path):
    """Orbax reads arrays at the same time, and gives up the others when one fails."""
    run = subprocess.run(
        [sys.executable, "-c", READ_AND_FAIL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.count("is damaged") == 10, run.stderr
    assert "Traceback" not in run.stderr
    assert "never" not in run.stderr


@pytest.mark.slow
def test_a_run_goes_on_from_the_one_before(tmp_path, capsys):
    """And comes to the same state as before the damage."""
    changes = dict(total_steps=4, checkpoint__every_steps=2, evals={})
    config = tiny_config("method=clip", **changes)
    train(config, tmp_path)
    whole = tmp_path / "checkpoints" / "4"
    shutil.copytree(whole, tmp_path / "before")
    cut(largest_file(whole / "opt"))
    with pytest.raises(CheckpointError, match="delete it, the run goes on from 2"):
        train(config, tmp_path)
    config.checkpoint.on_damage = "previous"
    train(config, tmp_path)
    assert "set aside as 4.damaged, the run goes on from 2." in capsys.readouterr().err
    assert Checkpoints(tmp_path, read_only=True).all_steps() == [2, 4]
    assert [line["step"] for line in read_log(tmp_path)] == [0, 1, 2, 3]
    for item in ("model", "opt"):
        sums = [
            arrays.metadata(path / item).custom_metadata for path in (tmp_path / "before", whole)
        ]
        assert sums[0] == sums[1]


def test_what_one_process_cannot_read_none_takes(tmp_path):
    """The decision is the same, whichever process finds the damage, and none waits for another."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    program = Path(__file__).with_name("reading_together.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / "run [1]")],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], outputs
    for index, (said, errors) in enumerate(outputs):
        assert "Traceback" not in errors
        lines = said.splitlines()
        assert [x for x in lines if x.startswith("read")] == ["read 2"]
        assert "refused: not now, True" in lines
        assert "previous: 2, 44.0" in lines
        assert eval(lines[-1]) == ["1", "2", "3.damaged"]
        why = "meta/metadata: not the JSON" if index else "process 1 cannot read it"
        for start in ("stop: checkpoint 3 (", "checkpoint 3 ("):
            (line,) = [x for x in lines if x.startswith(start)]
            assert f"is damaged ({why}" in line
            assert "the run goes on from 2" in line
    passed = "Passed over step 1: checkpoint 1 ("
    assert passed in outputs[0][0]
    assert passed not in outputs[1][0]  # the first says it
