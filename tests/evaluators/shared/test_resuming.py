"""An evaluation that was ended goes on, and takes nothing that is of another."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.parallel import processes, signals, watchdog
from evaluators.shared import resuming, written
from input_pipeline.files.outages import Unreachable
from input_pipeline.files.whole import temporary_name
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

ROOT = pathlib.Path(__file__).parents[3]
SIZE = 10


def source_of(slow=0.0, **changes):
    fields = {
        "question": [("what colour is it in this picture?" if i % 3 else "?") for i in range(SIZE)],
        "answers": [["red"]] * SIZE,
    }

    class Source(toy.ToySource):
        def record(self, i):
            time.sleep(slow)
            return super().record(i)

        def identity(self):
            return [str(changes)]

    return Source({"caption": [["?"]] * SIZE}, **(fields | changes))


def model_of(*texts):
    return toy_text.answers(texts or [f"a{i}" for i in range(SIZE)])


def evaluate(file, source=None, model=None, **config):
    """(values, how many images were read, whether the file is whole)."""
    read = []

    def image_for(*args):
        read.append(args)
        return image(*args)

    image = written.image_for
    config = {"batch_size": 2, "predictions": str(file)} | config
    with mock.patch.object(written, "image_for", image_for):
        values = toy_text.evaluate("vqa", source or source_of(), model or model_of(), **config)
    return values, len(read)


def killed_after(parts, file, **config):
    with toy_text.ending_after(parts):
        evaluate(file, **config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "file.json"
    values, read = evaluate(file, controls=["blind"])
    assert read == 2 * SIZE and not file.with_name("file.json.parts").exists()
    return values, file.read_bytes()


@pytest.mark.parametrize("parts", [0, 1, 3, 6, 8])
def test_it_goes_on_with_the_batches_that_are_left(parts, whole, tmp_path):
    """Six questions of one length, four of another: three and two batches; then those of a
    control."""
    file = tmp_path / "file.json"
    killed_after(parts, file, controls=["blind"])
    assert file.exists() == (parts >= 5)
    assert len(list(tmp_path.glob("file.json.parts/*.jsonl"))) == parts
    values, read = evaluate(file, controls=["blind"])
    assert (values, file.read_bytes()) == whole and read == 2 * (SIZE - parts)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_batches_of_another_size_are_done_again_where_they_are_not_whole(whole, tmp_path):
    file = tmp_path / "file.json"
    killed_after(1, file)
    _, read = evaluate(file, batch_size=4)
    assert file.read_bytes() == whole[1] and read == SIZE


class Settled:
    def __init__(self, settings):
        self.settings = settings

    def __call__(self, model, batch):
        return toy_text.generate(model, batch)


def test_circular_evaluation_goes_on_too(tmp_path):
    choices = [["red", "blue", "green"]] * 3
    source = toy.ToySource(
        {"caption": [["?"]] * 3}, question=["?"] * 3, choices=choices, answer=[0, 1, 2]
    )
    asked = dict(model=model_of("red", "B", "green"), circular=True, instruction="", batch_size=1)

    def run(folder):
        return toy_text.evaluate("multiple_choice", source, predictions=f"{folder}/f", **asked)

    with toy_text.ending_after(5):
        run(tmp_path / "ended")
    read = iter(range(4))  # so many answers are left
    image_for = written.image_for
    with mock.patch.object(written, "image_for", lambda *a: (next(read), image_for(*a))[1]):
        values = run(tmp_path / "ended")
    assert values == run(tmp_path / "whole") and values["accuracy_circular"] == 2 / 3
    files = [(tmp_path / name / "f").read_bytes() for name in ("ended", "whole")]
    assert files[0] == files[1] and next(read, None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": model_of(*[f"a{i}" for i in range(SIZE - 1)], "b")},
        {"source": source_of(answers=[["blue"]] * SIZE)},
        {"template": "chat"},
        {"predict_fns": {"generate": Settled("twelve tokens")}},
        {"preprocess": dataclasses.replace(toy_text.PREPROCESS, mean=(0.4, 0.4, 0.4))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_of_another_evaluation_is_taken(change, tmp_path):
    file = tmp_path / "file.json"
    killed_after(3, file)
    _, read = evaluate(file, **change)
    assert read == SIZE and [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_nothing_of_another_tokenizer_is_taken(tmp_path):
    """The tokenizer has its name still; its file is another."""
    file, model = tmp_path / "file.json", tmp_path / "tokenizer.model"
    contents = pathlib.Path(toy_text.TEXT.path).read_bytes()
    model.write_bytes(contents)
    named = dataclasses.replace(toy_text.PREPROCESS, tokenizer=f"llama:{model}")
    killed_after(3, file, preprocess=named)
    model.write_bytes(contents + b"\x0a\x00")
    killed_after(3, file, preprocess=named)
    parts = {path.name.partition("-")[0] for path in tmp_path.glob("file.json.parts/*")}
    assert len(parts) == 2


def test_nothing_is_kept_where_it_is_unknown_what_answers_depend_on(tmp_path):
    def unknown(model, batch):
        return toy_text.generate(model, batch)

    file = tmp_path / "file.json"
    with mock.patch.object(written, "Parts", side_effect=AssertionError):
        evaluate(file, predict_fns={"generate": unknown})
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("is_signal", [True, False])
def test_what_was_written_is_kept_where_it_ends_early(is_signal, whole, tmp_path, monkeypatch):
    """By a signal or an image that cannot be read, long before the next part."""
    file, images, image_for = tmp_path / "file.json", iter(range(5)), written.image_for
    monkeypatch.setattr(signals, "_received", 0)

    def last(*args):
        if next(images, None) is None:
            if not is_signal:
                raise ValueError("broken")
            monkeypatch.setattr(signals, "_received", signal.SIGTERM)
        return image_for(*args)

    ends = pytest.raises(signals.Stop if is_signal else ValueError)
    with mock.patch.object(written, "image_for", last), ends:
        toy_text.evaluate("vqa", source_of(), model_of(), batch_size=1, predictions=str(file))
    monkeypatch.setattr(signals, "_received", 0)
    kept = sum(len(p.read_bytes().splitlines()) for p in tmp_path.glob("file.json.parts/*"))
    assert kept
    _, read = evaluate(file, batch_size=1)
    assert read == SIZE - kept and file.read_bytes() == whole[1]


def test_weights_and_data_are_looked_at_once(tmp_path):
    source, seen = source_of(), []
    with (
        mock.patch.object(source, "identity", lambda: seen.append("data") or ["x"]),
        mock.patch.object(written, "weights_digest", lambda *_: seen.append("weights") or "y"),
    ):
        evaluate(tmp_path / "file.json", source, controls=["blind", "shuffled"])
    assert sorted(seen) == ["data", "weights"]


SCRIPT = """
import sys
from tests.evaluators.shared import test_resuming
from evaluators.shared import resuming

resuming.PART_SECONDS = 0.0
test_resuming.evaluate(sys.argv[1], test_resuming.source_of(slow=0.3))
"""


def test_sigkill(whole, tmp_path):
    file = tmp_path / "file.json"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(file)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        cwd=ROOT,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("file.json.parts/*.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not file.exists()
    _, read = evaluate(file)
    assert file.read_bytes() == whole[1] and read < SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_place_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file.json.parts").write_text("")
    with pytest.raises(resuming.PartsError, match=r"\.parts cannot be used: Not a dir") as raised:
        evaluate(tmp_path / "file.json")
    assert isinstance(raised.value.__cause__, NotADirectoryError)


def test_what_storage_does_not_give_may_be_there_later(tmp_path):
    away = mock.patch.object(resuming, "in_directory", side_effect=Unreachable("no answer"))
    with away, pytest.raises(resuming.PartsError, match="no answer") as raised:
        evaluate(tmp_path / "file.json")
    assert processes.status_of(raised.value) == watchdog.STATUS


@pytest.mark.parametrize("damage", [b'{"number": 0, "te', b'{"number": 0}\n', b"[1]\n", b"\xff"])
def test_a_damaged_part_is_named(damage, whole, tmp_path):
    file = tmp_path / "file.json"
    killed_after(2, file)
    part = min(tmp_path.glob("file.json.parts/*"))
    part.write_bytes(damage)
    with pytest.raises(resuming.PartsError, match=f"{part.name} is damaged: delete it"):
        evaluate(file)
    part.unlink()
    _, read = evaluate(file)
    assert file.read_bytes() == whole[1] and read == SIZE - 2


def test_what_the_data_say_of_themselves_is_no_fault_of_the_parts(tmp_path):
    source = source_of()
    missing = mock.patch.object(source, "identity", side_effect=FileNotFoundError("no such shard"))
    with missing, pytest.raises(FileNotFoundError, match="no such shard"):
        evaluate(tmp_path / "file.json", source)


def test_what_cannot_be_removed_is_told_and_counts_for_nothing(whole, tmp_path, caplog):
    """A folder that somebody else made; the parts are gone and the scores there."""
    file = tmp_path / "file.json"
    killed_after(2, file)
    (tmp_path / "file.json.parts" / ".AppleDouble").mkdir()
    with caplog.at_level("WARNING", logger="absl"):
        values, _ = evaluate(file, controls=["blind"])
    assert (values, file.read_bytes()) == whole
    assert [path.name for path in tmp_path.glob("file.json.parts/*")] == [".AppleDouble"]
    assert "file.json.parts can be deleted" in caplog.text
    _, read = evaluate(file)
    assert read == SIZE and file.read_bytes() == whole[1]


def test_half_a_file_of_a_killed_job_goes_away(whole, tmp_path):
    file = tmp_path / "file.json"
    (tmp_path / temporary_name("file.json")).write_bytes(b"half")
    other = tmp_path / temporary_name("other.json")
    other.write_bytes(b"half")
    evaluate(file)
    assert {path.name for path in tmp_path.iterdir()} == {"file.json", other.name}


def test_parts_and_file_lie_beside_each_other_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    killed_after(2, "~/new/file.json")
    assert (tmp_path / "new" / "file.json.parts").is_dir()
    evaluate("~/new/file.json")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "new",
        "new/file.json",
    ]


def fail_in_the_first():
    """A script of one of two processes: says what each kind of failure in process 0 comes to."""
    toy.join_processes()
    said = []

    def fail(error):
        def act():
            with resuming.using("there"):
                raise error

        return act

    with jax.set_mesh(toy.mesh()):
        for error in (OSError("full"), Unreachable("away"), TypeError("odd"), MemoryError()):
            try:
                resuming.by_first(toy.mesh(), fail(error))
            except Exception as found:
                said.append([type(found).__name__, str(found), processes.status_of(found)])
    print(json.dumps(said))


def test_what_fails_in_the_first_process_ends_both():
    script = f"from {__name__} import fail_in_the_first; fail_in_the_first()"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    started = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "COORDINATOR": place}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | started | {"PROCESS": str(i)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [json.loads(one.communicate(timeout=120)[0].splitlines()[-1]) for one in both]
    finally:
        for one in both:
            one.kill()
    statuses = [1, watchdog.STATUS, processes.CRASH, processes.CRASH]
    assert said[0] == [
        ["PartsError", "there cannot be used: full.", statuses[0]],
        ["PartsError", "there cannot be used: away.", statuses[1]],
        ["TypeError", "odd", statuses[2]],
        ["MemoryError", "", statuses[3]],
    ]
    why = "process 0 stopped; its own output says why."
    assert said[1] == [["ProcessError", why, status] for status in statuses]


def test_the_digest_sees_every_value_and_its_place():
    rng = np.random.default_rng(0)
    model = {
        "a": rng.normal(size=(3, 4, 5)).astype(np.float32),
        "b": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.bfloat16),
        "c": rng.integers(0, 9, 7).astype(np.int32),
        "d": np.array([True, False]),
        "e": np.float32(2),
    }

    def digest(**changes):
        return resuming.weights_digest(model | changes, toy.mesh())

    first = digest()
    assert first == digest() and len(first) == 16
    found = {first}
    for name, value in model.items():
        array = np.array(value)
        flat = array.reshape(-1)
        flat[-1] = not flat[-1] if array.dtype == bool else flat[-1] + 1
        found.add(digest(**{name: jnp.asarray(array)}))
    moved = np.roll(model["a"], 1, axis=1)
    found |= {digest(a=moved), digest(a=np.swapaxes(moved, 0, 1)), digest(a=-model["a"])}
    found |= {digest(a=model["a"][::-1]), digest(a=model["a"].reshape(4, 3, 5))}
    found |= {digest(a=np.float32(model["b"]), b=jnp.asarray(model["a"], jnp.bfloat16))}
    found |= {digest(f=model["c"])}
    assert len(found) == 6 + 6 + 1
