"""Prompts of CogVLM (arXiv 2311.03079): the text between an image and the model's answer.

A prompt and its answer are tokenized each by itself, so a prompt needs no trailing space; "chat"
has one all the same. History is (query, answer) pairs, the oldest first.
"""

from collections.abc import Callable, Sequence

History = Sequence[tuple[str, str]]

_TEXT_ONLY = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)


def make_prompt(template: str, query: str, history: History = ()) -> str:
    """The text that follows the image.

    Args:
      template: one of TEMPLATES:
        "base": the query itself; history is left out, as in the released code.
        "chat_old": "Question: ... Answer:", of CogVLM-Chat (its Hugging Face form says "chat").
        "vqa": "Question: ... Short answer:". Of the two released forms, the one that keeps history.
        "chat": "[INST] ... [/INST]", of CogAgent-Chat.
      query: what is asked now.
      history: earlier rounds.

    Raises:
      ValueError: unknown template.
    """
    check_template(template)
    return TEMPLATES[template](query, history)


def text_only_prompt(query: str, history: History = ()) -> str:
    """Vicuna's prompt for a conversation without an image: "... USER: ... ASSISTANT:"."""
    rounds = "".join(f"USER: {q} ASSISTANT: {a}\n" for q, a in history)
    return f"{_TEXT_ONLY}{rounds}USER: {query} ASSISTANT:"


def check_template(template: str) -> None:
    """Raises ValueError unless there is such a template."""
    if template not in TEMPLATES:
        raise ValueError(f"Unknown template {template!r}; choose one of {list(TEMPLATES)}.")


def _base(query: str, history: History) -> str:
    del history
    return query


def _question(call: str) -> Callable[[str, History], str]:
    def prompt(query: str, history: History) -> str:
        rounds = "".join(f"Question: {q} {call} {a}\n" for q, a in history)
        return f"{rounds}Question: {query} {call}"

    return prompt


def _instruction(query: str, history: History) -> str:
    rounds = "".join(f"{q} [/INST] {a} [INST] " for q, a in history)
    return f" [INST] {rounds}{query} [/INST] "


TEMPLATES: dict[str, Callable[[str, History], str]] = {
    "base": _base,
    "chat_old": _question("Answer:"),
    "vqa": _question("Short answer:"),
    "chat": _instruction,
}
