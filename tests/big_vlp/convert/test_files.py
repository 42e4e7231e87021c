"""Files of weights: shards, one file, parts of one, and what is said of files that do not fit."""

import json
import sys
import tracemalloc
import types

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from big_vlp.convert.common import ConversionError, Tensor
from big_vlp.convert.files import (
    INDEX,
    read_of_run,
    read_parts,
    read_state,
    write_file,
    write_parts,
    write_state,
)


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        np.testing.assert_array_equal(np.asarray(found[key]), value, err_msg=key)


def big_state(count=40, rows=256):
    """10 MB in tensors of 256 KB, which exist one at a time."""

    def make(i):
        return Tensor(
            (rows, 256), np.dtype(np.float32), lambda: np.full((rows, 256), i, np.float32)
        )

    return {f"layer.{i}.weight": make(i) for i in range(count)}


def test_shards_are_written_and_read_a_tensor_at_a_time(tmp_path):
    state = big_state()
    tracemalloc.start()
    write_state(tmp_path, state, shard_bytes=2**20)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    found = read_state(tmp_path)
    total = sum(float(np.asarray(value).mean()) for value in found.values())
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == sum(range(40))
    assert max(written, read) < 2 * 2**20  # of 10
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 40 * 256 * 256 * 4
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i:05d}-of-00010.safetensors" for i in range(1, 11)]
    # Others read the files too.
    first = safetensors.numpy.load_file(tmp_path / names[0])
    assert sorted(first) == [f"layer.{i}.weight" for i in range(4)]
    assert (first["layer.3.weight"] == 3).all()


def test_one_file_needs_no_index(tmp_path):
    state = {"a": np.arange(6, dtype=np.int64).reshape(2, 3)}
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        same(read_state(path), state)


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ConversionError, match="has none of"):
        read_state(tmp_path)
    write_state(tmp_path, big_state(8), shard_bytes=2**20)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(tmp_path.glob("*.safetensors"))
    index["weight_map"] |= {"layer.0.weight": shards[1].name, "extra": shards[1].name}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConversionError) as error:
        read_state(tmp_path)
    assert f"missing in {shards[1].name}: extra" in str(error.value)
    assert f"in {shards[0].name} but not in the index: layer.0.weight" in str(error.value)
    shards[1].write_bytes(b"nonsense")
    with pytest.raises(ConversionError, match=f"{shards[1].name} is no safetensors file"):
        read_state(tmp_path)
    for shard in shards:
        shard.unlink()
    with pytest.raises(ConversionError) as error:
        read_state(tmp_path)
    assert "names 2 files, of which these are missing" in str(error.value)
    assert all(shard.name in str(error.value) for shard in shards)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ConversionError, match="is no index of shards"):
        read_state(tmp_path)


def test_a_file_of_every_type(tmp_path):
    types = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.uint8)
    state = {np.dtype(t).name: np.arange(6).reshape(3, 2).astype(t).T for t in types}
    state |= {"scalar": np.array(7, np.int64), "empty": np.zeros((0, 2), np.float32)}
    path = tmp_path / "all.safetensors"
    write_file(path, state)
    same(read_state(path), state)
    same(safetensors.numpy.load_file(path), state)
    with pytest.raises(ConversionError, match=r"Cannot write these types: \['a complex64'\]"):
        write_file(path, {"a": np.zeros(2, np.complex64)})


def test_parts_of_a_file(tmp_path):
    parts = {"student": {"a.b": np.ones(2), "c": np.zeros(1)}, "teacher": {"a.b": np.full(2, 3.0)}}
    path = tmp_path / "nets.safetensors"
    write_file(path, {f"{net}.{k}": v for net, part in parts.items() for k, v in part.items()})
    found = read_parts(path, "teacher", "student")
    assert list(found) == ["teacher", "student"]
    for net, part in parts.items():
        same(found[net], part)
    with pytest.raises(ConversionError, match=r"has no 'averaged', 'x'; found .*'student'"):
        read_parts(path, "student", "averaged", "x")


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_parts_that_are_written_can_be_read(tmp_path, suffix):
    parts = {"student": {"a.b": np.ones(2, "f4")}, "teacher": {"a.b": np.full(2, 3, "f4")}}
    write_parts(tmp_path / f"nets.{suffix}", parts)
    found = read_parts(tmp_path / f"nets.{suffix}", *parts)
    for net, part in parts.items():
        same(found[net], part)


def test_a_file_is_what_its_name_says(tmp_path):
    for name in ("x.bin", "x.pth", "x"):
        with pytest.raises(ConversionError, match=r"give a file named \*\.safetensors, \*\.npz"):
            write_file(tmp_path / name, WEIGHTS)
    assert not [*tmp_path.iterdir()]


def test_damaged_npz_files(tmp_path):
    """Whatever byte is another: one error, or the right numbers."""
    path, state = tmp_path / "x.npz", {"a": np.arange(40.0), "b": np.ones((3, 2))}
    np.savez_compressed(path, **state)
    data, refused = path.read_bytes(), 0
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            found = {key: np.asarray(value) for key, value in read_state(path).items()}
            same({k: found[k] for k in found.keys() & state.keys()},
                 {k: state[k] for k in found.keys() & state.keys()})  # fmt: skip
        except ConversionError:
            refused += 1
    assert refused > len(data) // 6


def test_torch_that_executes_what_it_reads(tmp_path, monkeypatch):
    old = types.ModuleType("torch")
    old.__version__ = "2.5.1+cu121"
    monkeypatch.setitem(sys.modules, "torch", old)
    (tmp_path / "x.pt").write_bytes(b"x")
    with pytest.raises(ConversionError, match=r"needs torch 2.6 or later, .* not 2.5.1"):
        read_state(tmp_path / "x.pt")


def torch_weights(torch):
    return {"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b": torch.ones(2)}


WEIGHTS = {"a": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16), "b": np.ones(2, np.float32)}


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_files(tmp_path, new_format):
    torch = pytest.importorskip("torch")

    def save(value, name):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=new_format)
        return tmp_path / name

    weights = torch_weights(torch)
    save(weights, "pytorch_model.bin")
    same(read_state(tmp_path), WEIGHTS)
    same(read_state(tmp_path / "pytorch_model.bin"), WEIGHTS)
    path = save({"module": weights, "step": 3}, "sat.pt")
    same(read_parts(path, "module")["module"], WEIGHTS)
    parameters = {k: torch.nn.Parameter(v) for k, v in weights.items()}
    same(read_state(save(parameters, "parameters.pt")), WEIGHTS)
    run = {"ema_state_dict": None, "state_dict": weights, "epoch": 3, "optimizer": {}}
    state, rest = read_of_run(save(run, "run.pt"))
    same(state, WEIGHTS)
    assert rest == ["ema_state_dict, epoch, optimizer beside state_dict"]
    assert read_of_run(tmp_path)[1] == []
    other = {"a": torch.zeros(1)}
    for names in (["ema_state_dict", "model_state_dict"], ["model_state_dict"], ["state_dict"]):
        states = dict.fromkeys(names, other) | {names[0]: weights}
        same(read_state(save({**states, "epoch": 3}, "run.pt")), WEIGHTS)


def test_torch_files_keep_types(tmp_path):
    """bf16, too, which a frozen tower is kept in."""
    torch = pytest.importorskip("torch")
    state = {**WEIGHTS, "scalar": np.array(7, np.int64), "turned": np.ones((2, 3), "f2").T}
    write_file(tmp_path / "x.pt", state)
    same(read_state(tmp_path / "x.pt"), state)
    assert torch.load(tmp_path / "x.pt", weights_only=True)["a"].dtype == torch.bfloat16


def test_torch_files_that_do_not_fit(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    with pytest.raises(ConversionError, match="a is no ordinary array"):
        read_state(path)
    for content, message in (
        ({**torch_weights(torch), "step": 3}, r"no flat dict of weights; others are \['step'\]"),
        ([torch.ones(2)], "holds a list, no dict of weights"),
        ({"state_dict": 3}, "holds a int, no dict of weights"),
    ):
        torch.save(content, path)
        with pytest.raises(ConversionError, match=message):
            read_state(path)
    torch.save(torch_weights(torch), path)
    with pytest.raises(ConversionError, match="has no 'module'; found"):
        read_parts(path, "module")
    path.write_bytes(b"nonsense")
    for read in (read_state, lambda path: read_parts(path, "module")):
        with pytest.raises(ConversionError, match="is no file of weights"):
            read(path)
