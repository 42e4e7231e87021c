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


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_is_answered_in_its_place_with_little_padding(batch_size, seed):
    questions = np.random.default_rng(seed).permutation([f"{w} {i}" for w in WORDS for i in "abc"])
    questions = [" ".join(question.split()) for question in questions]
    found, shapes = evaluate(questions, batch_size=batch_size)
    assert list(found) == questions
    for question, text in found.items():
        assert text == toy_text.TEXT.decode(toy_text.TEXT.encode(question))
    tokens = [len(toy_text.TEXT.encode(question)) for question in questions]
    lengths = written.prompt_lengths(toy_text.PREPROCESS.context_length)
    needed = {min(n for n in lengths if n >= own) for own in tokens}
    widths = [shape[1] - 1 - toy_text.SLOTS for shape in shapes]
    assert set(widths) == needed and len(needed) > 1
    assert widths == sorted(widths, reverse=True)  # what needs most memory is first
    assert len(set(shapes)) == len(needed)  # one program for each length
