"""What models are told to do with boxes: CogVLM's own words (arXiv 2311.03079), and others.

The first of each list is the one that evaluators and the demo use; the others are drawn in training
where `varied` is set. Published are the first ones, but for `REASONED`, and `WHERE[1]`; the rest
are words of ours for what Shikra (arXiv 2306.15195) asks in many ways.
"""

import random
import re
from collections.abc import Sequence

from input_pipeline.text.boxes import BOX_FORM

# {phrase} without its article, {whole} with it.
WHERE = (
    "Where is the {phrase}?",
    f"Where is {{whole}}? answer in {BOX_FORM} format.",
    f"Give the box {BOX_FORM} of the {{phrase}} in this image.",
    f"Find the {{phrase}} and reply with its coordinates, {BOX_FORM}.",
    f"I am looking for the {{phrase}}. Which box {BOX_FORM} holds it?",
    "Point to the {phrase} in the picture with a box.",
)
REGION = (
    "Please describe the region {box} in the picture.",
    "What is inside the box {box}?",
    "Tell me what the region {box} of this image shows.",
    "Name the thing that {box} encloses.",
    "Look at {box}. What can be seen there?",
)
GROUNDED = (
    f"Can you provide a description of the image and include the coordinates {BOX_FORM} for each "
    "mentioned object?",
    f"Describe the picture and put the box {BOX_FORM} behind each thing that you name.",
    f"What does this image show? Mark all objects that you mention with {BOX_FORM}.",
    f"Write a caption in which each object is followed by where it is, as {BOX_FORM}.",
    f"Say what you see, with coordinates {BOX_FORM} for every object.",
)
REASONED = (
    f"{{question}} Reason step by step and give the box {BOX_FORM} of each object that matters, "
    "then the answer.",
    f"{{question}} Before you answer, say what you look at, with its coordinates {BOX_FORM}.",
    f"{{question}} Explain how the image leads to the answer; mark what you name as {BOX_FORM}.",
    f"{{question}} Think aloud, with boxes {BOX_FORM}, and end with the answer.",
)
_ARTICLE = re.compile(r"^(?:a|an|the|some)\s+(?=\S)", re.IGNORECASE)


def chosen(forms: Sequence[str], rng: random.Random, varied: bool) -> str:
    """Any of the forms where they vary, else the first; that draws nothing."""
    return rng.choice(forms) if varied else forms[0]


def where_query(phrase: str, form: str = WHERE[0]) -> str:
    """Asks for the box of a phrase, which loses its article: "the" comes with the question."""
    phrase = phrase.strip()
    return form.format(phrase=without_article(phrase), whole=phrase)


def without_article(phrase: str) -> str:
    """A phrase without the article that it begins with."""
    return _ARTICLE.sub("", phrase)
