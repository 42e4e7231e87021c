"""Questions and answers about the same images, the earlier ones remembered."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from big_vlp.api.errors import ModelError
from big_vlp.api.writer import Prompt, Writer, lay_out
from input_pipeline.text import templates
from input_pipeline.text.boxes import BOX_FORM, find_boxes, parse_boxes
from input_pipeline.text.conversations import GROUNDED_QUERY, REGION_QUERY, where_query

GROUNDING = "grounding"


class Answer(NamedTuple):
    """What a model wrote.

    ended: by itself; else there was no more room. forgotten: rounds that the context had no room
    for.
    """

    text: str
    ended: bool
    forgotten: int


class Conversation:
    """Rounds of questions and answers about the same images.

    Args:
      images: encoded.
      template: one of `text.templates`, or "grounding", see `grounding_query`; None is "chat_old"
        with an image and Vicuna's own prompt without.

    Raises:
      ModelError: the template needs an image, or the model takes none.
      ValueError: an image cannot be decoded, or there is no such template.
    """

    def __init__(self, writer: Writer, images: Sequence[bytes], template: str | None = None):
        if template == GROUNDING and not images:
            raise ModelError("The template 'grounding' needs an image.")
        if template not in (None, GROUNDING):
            templates.check_template(template)
        self._writer, self._template, self._count = writer, template, len(images)
        self._features = writer.features(images)
        self.history: list[tuple[str, str]] = []

    def ask(self, query: str, max_new_tokens: int, **options) -> Answer:
        """Answers, remembering the round; `options` are those of `Writer.write`.

        Raises:
          ModelError: the query alone is too long, or names another number of images.
          ValueError: it holds what looks like a box and is none.
        """
        if self._template == GROUNDING:
            query = grounding_query(query)
        history = list(self.history)
        prompt = self._prompt(query, history)
        while history and prompt.text >= self._writer.rows.context_length:
            history = history[1:]
            prompt = self._prompt(query, history)
        text, ended = self._writer.write(prompt, self._features, max_new_tokens, **options)
        forgotten = len(self.history) - len(history)
        self.history = [*history, (query, text.strip())]
        return Answer(text, ended, forgotten)

    def _prompt(self, query: str, history: list[tuple[str, str]]) -> Prompt:
        if self._template is None and not self._count:
            text = templates.text_only_prompt(query, history)
        else:
            template = "chat_old" if self._template in (None, GROUNDING) else self._template
            text = templates.make_prompt(template, query, history)
        return lay_out(self._writer.rows, text, self._count)


def grounding_query(query: str) -> str:
    """The question that models are trained on, in place of a phrase (where is it?), a box (what is
    in it?) or nothing (describe with boxes). Other questions stay as they are.

    Raises:
      ValueError: what stands in double brackets is no box.
    """
    query = query.strip()
    if not query:
        return GROUNDED_QUERY
    for brackets in re.findall(r"\[\[.*?(?:\]\]|$)", query):
        if brackets != BOX_FORM:
            parse_boxes(brackets)  # raises for what only looks like a box
    boxes = find_boxes(query)
    if boxes and boxes[0][:2] == (0, len(query)):
        return REGION_QUERY.format(box=query)
    return query if query.endswith("?") or boxes else where_query(query)
