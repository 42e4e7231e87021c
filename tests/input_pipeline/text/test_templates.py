"""Prompts, to the letter."""

import pytest

from input_pipeline.text.templates import TEMPLATES, make_prompt, text_only_prompt

HISTORY = (("What is it?", "a cat"), ("Where?", "on a mat"))


@pytest.mark.parametrize(
    "template, alone, later",
    [
        ("base", "Which colour?", "Which colour?"),
        (
            "chat_old",
            "Question: Which colour? Answer:",
            "Question: What is it? Answer: a cat\nQuestion: Where? Answer: on a mat\n"
            "Question: Which colour? Answer:",
        ),
        (
            "vqa",
            "Question: Which colour? Short answer:",
            "Question: What is it? Short answer: a cat\nQuestion: Where? Short answer: on a mat\n"
            "Question: Which colour? Short answer:",
        ),
        (
            "chat",
            " [INST] Which colour? [/INST] ",
            " [INST] What is it? [/INST] a cat [INST] Where? [/INST] on a mat"
            " [INST] Which colour? [/INST] ",
        ),
    ],
)
def test_prompts(template, alone, later):
    assert make_prompt(template, "Which colour?") == alone
    assert make_prompt(template, "Which colour?", HISTORY) == later


def test_text_only():
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
    )
    assert text_only_prompt("Hi?") == system + "USER: Hi? ASSISTANT:"
    assert text_only_prompt("And?", [("Hi?", "Hello.")]) == (
        system + "USER: Hi? ASSISTANT: Hello.\nUSER: And? ASSISTANT:"
    )


def test_braces_in_a_query_are_text():
    for template in TEMPLATES:
        assert "{0} {query}" in make_prompt(template, "{0} {query}", [("{}", "{}")])
    assert "{}" in text_only_prompt("{}")


def test_unknown_template():
    with pytest.raises(ValueError, match=r"Unknown template 'llava'.*'base', 'chat_old', 'vqa'"):
        make_prompt("llava", "?")
