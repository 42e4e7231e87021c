"""The toy world of `toy`, for evaluators of generated text; also a script that evaluates it on
several devices. What the model writes about image i is row i of a table."""

import contextlib
import json
import os
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.shared import resuming
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.boxes import format_boxes
from input_pipeline.text.tokenizers import make_tokenizer
from tests.evaluators.shared import toy

PREPROCESS = Preprocess(
    8, tokenizer="llama:scenes", context_length=40, resize="squash", image_token_size=4
)
SLOTS = 6  # 2 x 2 patches, boi and eoi
TEXT = make_tokenizer("llama:scenes")
ANSWER_LENGTH = 40
# The mean colour, which blind runs see, has the level of this image.
BLIND = round(255 * PREPROCESS.mean[0]) // 2


def index_of(batch):
    assert batch["images"].dtype == jnp.uint8 and batch["images"].shape[1:] == (1, 8, 8, 3)
    return batch["images"][:, 0, 0, 0, 0].astype(jnp.int32) // 2


def generate(model, batch):
    assert batch.keys() == {"images", "tokens", "token_types"}
    return model["answers"][index_of(batch)]


generate.settings = "the table"


def echo(model, batch):
    """What follows the image in the prompt, then end of sentence."""
    first = 1 + SLOTS
    text = batch["token_types"][:, first:] == 0
    return jnp.where(text, batch["tokens"][:, first:], TEXT.eos_id)


def token_losses(model, batch):
    """A loss for each image, the same at each of its tokens."""
    assert batch.keys() == {"images", "tokens", "token_types", "loss_mask"}
    counts = batch["loss_mask"].sum(axis=1, dtype=jnp.int32)
    return model["losses"][index_of(batch)] * counts, counts


def losses_of_words(model, batch):
    """As `token_losses`, but some answers are likelier than others."""
    losses, counts = token_losses(model, batch)
    return losses + (batch["tokens"] * batch["loss_mask"]).sum(axis=1) % 5 * counts, counts


PREDICT_FNS = {"generate": generate, "token_losses": token_losses}


def answers(texts, blind="", rest=""):
    """The table: end of sentence and then noise behind every text."""
    table = np.full((128, ANSWER_LENGTH), 77, np.int32)
    texts = dict(enumerate(texts))
    for i in range(128):
        ids = [*TEXT.encode(texts.get(i, blind if i == BLIND else rest)), TEXT.eos_id]
        table[i, : len(ids)] = ids
    return {"answers": table}


class Ended(Exception):
    pass


@contextlib.contextmanager
def ending_after(parts):
    """Within it an evaluation ends after so many batches, each of which is kept."""
    add, count = resuming.Parts.add, iter(range(parts))

    def add_or_end(self, texts, is_last):
        if next(count, None) is None:
            raise Ended
        add(self, texts, is_last)

    kept_at_once = mock.patch.object(resuming, "PART_SECONDS", 0.0)
    counted = mock.patch.object(resuming.Parts, "add", add_or_end)
    with kept_at_once, counted, contextlib.suppress(Ended):
        yield
        raise AssertionError("it did not end")


def evaluate(
    name, source, model, predict_fns=PREDICT_FNS, preprocess=PREPROCESS, tensor=1, **config
):
    """As `toy.evaluate`."""
    return toy.evaluate(name, source, model, tensor, preprocess, predict_fns, **config)


def world(size=11):
    """Images that divide by no number of devices, questions of several lengths, and a model that is
    right now and then."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (size, 2, 2)).astype(np.float32)
    boxes = list(np.concatenate([low, low + 0.3], axis=2))
    colours = rng.choice(COLOURS, size).tolist()
    source = toy.ToySource(
        {"caption": [["a ring"] if i % 2 else ["a red circle and a star"] for i in range(size)]},
        question=[f"what colour is circle {i}?" if i % 2 else "what?" for i in range(size)],
        answers=[[colour] * (1 + 9 * (i % 2)) for i, colour in enumerate(colours)],
        category=["ab"[i % 2] for i in range(size)],
        phrases=[["a ring", "a star"] for _ in range(size)],
        boxes=boxes,
    )
    model = answers(
        [colour if i % 3 else format_boxes(boxes[i][0]) for i, colour in enumerate(colours)]
    )
    return source, model | {"losses": rng.uniform(1, 3, 128).astype(np.float32)}


COLOURS = ["red", "green", "blue"]
WRITTEN = ("captions", "vqa", "yes_no", "multiple_choice", "pointing", "referring")


def evaluate_all(tensor=1, batch_size=4, folder=None):
    """Values of every evaluator; what is written for each goes into a file of a folder."""
    source, model = world()
    size, right = len(source), [answers[0] for answers in source.more["answers"]]
    named = {"choices": [COLOURS] * size, "answer": [COLOURS.index(colour) for colour in right]}
    pointed = {
        "choices": [[format_boxes(box) for box in own] for own in source.more["boxes"]],
        "answer": [0] * size,
    }
    yes = {"answers": [["yes" if i % 4 else "no"] for i in range(size)]}
    found = {}
    for name, fields, config in (
        ("captions", {}, {"by": "category"}),
        ("vqa", {}, {"by": "category"}),
        ("yes_no", yes, {}),
        ("multiple_choice", named, {"circular": True, "instruction": ""}),
        ("pointing", pointed, {}),
        ("referring", {}, {"by": "category"}),
        ("caption_loss", {}, {}),
        ("choice_loss", named, {"predict_fns": {"token_losses": losses_of_words}}),
    ):
        config |= {"controls": ["blind", "shuffled"], "tensor": tensor, "batch_size": batch_size}
        if folder is not None and name in WRITTEN:
            config["predictions"] = os.path.join(folder, f"{name}.json")
        data = toy.ToySource(source.captions, **(source.more | fields))
        found[name] = evaluate(name, data, model, **config)
    return found


if __name__ == "__main__":
    toy.join_processes()
    tensor, *folder = sys.argv[1:]
    print(json.dumps([jax.device_count(), evaluate_all(int(tensor), folder=(folder or [None])[0])]))
