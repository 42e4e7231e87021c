"""An evaluation that was ended goes on, and takes nothing that is of another."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from evaluators.shared import resuming, written
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
    assert read == 2 * SIZE and not resuming.directory_of(file).exists()
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
    settings = "twelve tokens"

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
        {"predict_fns": {"generate": Settled()}},
        {"preprocess": dataclasses.replace(toy_text.PREPROCESS, mean=(0.4, 0.4, 0.4))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_of_another_evaluation_is_taken(change, tmp_path):
    file = tmp_path / "file.json"
    killed_after(3, file)
    _, read = evaluate(file, **change)
    assert read == SIZE and [path.name for path in tmp_path.iterdir()] == ["file.json"]


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
    with pytest.raises(resuming.PartsError, match=r"file\.json\.parts cannot be used"):
        evaluate(tmp_path / "file.json")


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
