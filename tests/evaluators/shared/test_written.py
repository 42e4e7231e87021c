"""Questions of like length are asked together."""

from unittest import mock

import jax
import numpy as np
import pytest

from evaluators.shared import written
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

WORDS = ["ring", "star ring", "ring and star " * 3, "a ring " * 9]


def evaluate(questions, **config):
    """{question: what is written}, where the model writes the prompt that it reads; shapes."""
    shapes, found = [], {}

    def generate(model, batch):
        shapes.append(batch["tokens"].shape)
        return toy_text.echo(model, batch)

    write = written.WritingEvaluator.write

    def kept(self, model, asked, control):
        texts = write(self, model, asked, control)
        found.update(zip([question.prompt for question in asked], texts))
        return texts

    source = toy.ToySource(
        {"caption": [["?"]] * len(questions)},
        question=questions,
        answers=[["x"]] * len(questions),
    )
    with mock.patch.object(written.WritingEvaluator, "write", kept), jax.disable_jit():
        toy_text.evaluate("vqa", source, {}, {"generate": generate}, template="base", **config)
    return found, shapes


def test_lengths():
    assert written.prompt_lengths(512) == [64, 128, 256, 512]
    assert written.prompt_lengths(40) == [5, 10, 20, 40]
    assert written.prompt_lengths(2) == [1, 2]
    assert written.prompt_lengths(100)[-1] == 100


@pytest.mark.parametrize("batch_size, padded_to", [
    (1, [20, 10, 5]),
    (3, [20, 10, 5]),
    (4, [20, 5]),  # three of 10 are too few for a batch
    (50, [20]),
])  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_each_is_answered_in_its_place_with_little_padding(batch_size, padded_to, seed):
    """Three, three and six questions, that need 20, 10 and 5 tokens."""
    questions = np.random.default_rng(seed).permutation([f"{w} {i}" for w in WORDS for i in "abc"])
    questions = [" ".join(question.split()) for question in questions]
    found, shapes = evaluate(questions, batch_size=batch_size)
    assert list(found) == questions
    for question, text in found.items():
        assert text == toy_text.TEXT.decode(toy_text.TEXT.encode(question))
    widths = [shape[1] - 1 - toy_text.SLOTS for shape in shapes]
    # What needs most memory is first; there is one program for each length.
    assert list(dict.fromkeys(widths)) == padded_to and len(set(shapes)) == len(padded_to)
