"""Prompts of CogVLM (arXiv 2311.03079): the text between an image and the model's answer.

A prompt and its answer are tokenized each by itself, so a prompt needs no trailing space; "chat"
has one all the same. History is (query, answer) pairs, the oldest first.
"""

from collections.abc import Sequence
from typing import NamedTuple

History = Sequence[tuple[str, str]]


class _Form(NamedTuple):
    """How a round is asked.

    query: with {} in its place. first: what comes before it in the first round; between: in each
    other one. joint: what is put between it and an earlier answer in one text. None as `between`:
    there are no earlier rounds.
    """

    query: str
    first: str = ""
    between: str | None = "\n"
    joint: str = " "


_TEXT_ONLY = _Form(
    "USER: {} ASSISTANT:",
    first="A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions. ",
)
TEMPLATES = {
    "base": _Form("{}", between=None),
    "chat_old": _Form("Question: {} Answer:"),
    "vqa": _Form("Question: {} Short answer:"),
    "chat": _Form(" [INST] {} [/INST] ", between="", joint=""),
}


def make_prompt(template: str | None, query: str, history: History = ()) -> str:
    """The text that follows the image.

    Args:
      template: one of TEMPLATES:
        "base": the query itself; history is left out, as in the released code.
        "chat_old": "Question: ... Answer:", of CogVLM-Chat (its Hugging Face form says "chat").
        "vqa": "Question: ... Short answer:". Of the two released forms, the one that keeps history.
        "chat": "[INST] ... [/INST]", of CogAgent-Chat.
        None: Vicuna's for a conversation without an image, see `text_only_prompt`.
      query: what is asked now.
      history: earlier rounds.

    Raises:
      ValueError: unknown template.
    """
    form = _form(template)
    if form.between is None:
        history = ()
    *earlier, last = openings(template, [q for q, _ in (*history, (query, ""))])
    rounds = (f"{start}{form.joint}{answer}" for start, (_, answer) in zip(earlier, history))
    return "".join((*rounds, last))


def openings(template: str | None, queries: Sequence[str]) -> list[str]:
    """What stands before the answer of each round of a conversation.

    Args:
      template: as of `make_prompt`.
      queries: one or more.

    Raises:
      ValueError: unknown template, or one that knows no second round.
    """
    form = _form(template)
    if form.between is None and len(queries) > 1:
        raise ValueError(f"The template {template!r} has no rounds: it takes one query.")
    starts = (form.between if number else form.first for number in range(len(queries)))
    return [start + form.query.format(query) for start, query in zip(starts, queries)]


def text_only_prompt(query: str, history: History = ()) -> str:
    """Vicuna's prompt for a conversation without an image: "... USER: ... ASSISTANT:"."""
    return make_prompt(None, query, history)


def check_template(template: str) -> None:
    """Raises ValueError unless there is such a template."""
    if template not in TEMPLATES:
        raise ValueError(f"Unknown template {template!r}; choose one of {list(TEMPLATES)}.")


def has_rounds(template: str) -> bool:
    """Whether a template knows more than one round."""
    return TEMPLATES[template].between is not None


def _form(template: str | None) -> _Form:
    if template is None:
        return _TEXT_ONLY
    check_template(template)
    return TEMPLATES[template]
