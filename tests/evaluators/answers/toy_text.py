"""The toy world of `toy`, for evaluators of generated text; also a script that evaluates it on
several devices. What the model writes about image i is row i of a table."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

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


def word_losses(model, batch):
    """The same, and more or less by the words, so that choices differ."""
    losses, counts = token_losses(model, batch)
    return losses + jnp.where(batch["loss_mask"], batch["tokens"] % 7, 0).sum(axis=1), counts


PREDICT_FNS = {"generate": generate, "token_losses": token_losses}


def answers(texts, blind="", rest=""):
    """The table: end of sentence and then noise behind every text."""
    table = np.full((128, ANSWER_LENGTH), 77, np.int32)
    texts = dict(enumerate(texts))
    for i in range(128):
        ids = [*TEXT.encode(texts.get(i, blind if i == BLIND else rest)), TEXT.eos_id]
        table[i, : len(ids)] = ids
    return {"answers": table}


def evaluate(
    name, source, model, predict_fns=PREDICT_FNS, preprocess=PREPROCESS, tensor=1, **config
):
    """As `toy.evaluate`."""
    return toy.evaluate(name, source, model, tensor, preprocess, predict_fns, **config)


def worlds(size=11):
    """name of an evaluator -> (source, model, keys of its config): images that divide by no number
    of devices, and models that are right now and then."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (size, 2, 2)).astype(np.float32)
    boxes = list(np.concatenate([low, low + 0.3], axis=2))
    colours = rng.choice(["red", "green", "blue"], size).tolist()
    written = [format_boxes(own[i % 2]) if i % 3 else "?" for i, own in enumerate(boxes)]
    by = {"category": ["odd" if i % 2 else "even" for i in range(size)]}
    asked = by | {"question": [f"what colour is circle {i}?" for i in range(size)]}
    answered = asked | {"answers": [[c] * (1 + 9 * (i % 2)) for i, c in enumerate(colours)]}
    chosen = {"choices": [["red", "green", "blue"][: 2 + i % 2] for i in range(size)]}
    chosen |= asked | {"answer": [i % 2 for i in range(size)]}
    pointed = {"choices": [[*map(format_boxes, own)] for own in boxes], "answer": [0] * size}
    truths = [["yes", "no"][i % 2] for i in range(size)]
    losses = {"losses": rng.uniform(1, 3, 128).astype(np.float32)}

    def source(**fields):
        captions = [["a ring"] if i % 2 else ["a red circle and a star"] for i in range(size)]
        return toy.ToySource({"caption": captions}, **fields)

    place = {"phrases": [["a ring", "a star"]] * size, "boxes": boxes}
    told = [f"a {colour} circle" if i % 3 else "a star" for i, colour in enumerate(colours)]
    said = ["no" if i % 3 else "yes" for i in range(size)]
    found = {
        "vqa": (source(**answered), answers(colours[:-3])),
        "captions": (source(**by), answers(told)),
        "yes_no": (source(**asked, answers=[[t] for t in truths]), answers(said)),
        "multiple_choice": (source(**chosen), answers(colours, rest="A")),
        "choice_loss": (source(**chosen), losses),
        "pointing": (source(**asked, **pointed), answers(written)),
        "referring": (source(**place), answers(written)),
        "caption_loss": (source(), losses),
    }
    more = {name: {"by": "category"} for name in found}
    more["multiple_choice"] |= {"instruction": "", "circular": True}  # the toy's rows are short
    more["choice_loss"] |= {"predict_fns": {"token_losses": word_losses}}
    more |= {"referring": {}, "caption_loss": {}}  # not asked once of each record
    return {name: (*world, more[name]) for name, world in found.items()}


def evaluate_all(tensor=1, batch_size=4, folder=None):
    """The values of all evaluators of text; what is written goes to `folder`."""
    values = {}
    for name, (source, model, more) in worlds().items():
        if folder is not None and "by" in more and "answers" in model:
            more = more | {"predictions": f"{folder}/{name}.json"}
        values[name] = evaluate(
            name,
            source,
            model,
            tensor=tensor,
            batch_size=batch_size,
            controls=["blind", "shuffled"],
            **more,
        )
    return values


if __name__ == "__main__":
    toy.join_processes()
    values = evaluate_all(tensor=int(sys.argv[1]), folder=sys.argv[2])
    print(json.dumps([jax.device_count(), values]))
