"""Answers are compared as the published scripts of VQA do: cases worked by hand from them, and
answers given by EvalAIAnswerProcessor (lmms-eval 0.7.3, which has it of MMF)."""

import pytest

from evaluators.answers.shared.agreement import NORMALISATIONS, normalise, normalise_textvqa, plain


@pytest.mark.parametrize(
    "answer, vqa, textvqa",
    [
        ("dog's", "dog's", "dog 's"),
        ("black,white", "black white", "blackwhite"),
        ("what?now", "what now", "whatnow"),
        ("1,,000", "1000", "1000"),
        ("The Two, dogs", "2 dogs", "2 dogs"),
        ("somebody'd", "somebodyd", "somebodyd"),  # the scripts' slip
        ("Im", "im", "im"),  # they know "Im", but have lower case by then
        ("let's", "let's", "let 's"),
        ("10:30 p.m.", "10:30 pm", "10:30 pm"),
        (".5", ".5", ".5"),
        ("a.b" + "." * 33, "ab..", "ab.."),  # no more than 32 stops vanish
    ],
)
def test_the_two_scripts(answer, vqa, textvqa):
    assert normalise(answer) == vqa
    assert normalise_textvqa(answer) == textvqa


def test_plain_compares_letters():
    assert plain(" The Red\n") == "the red"
    assert plain("a, b.") == "a, b."
    assert NORMALISATIONS.keys() == {"vqa", "textvqa", "plain"}
