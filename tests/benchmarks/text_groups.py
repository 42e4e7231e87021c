"""FLOPs of COSMOS' text side with captions in groups by length, against all of them whole.

The text towers of configs/cosmos.py: the student's forward and backward over eight captions of a
sample, the teacher's forward over the two global ones, which stay whole. The image tower is a
block of width 8 that sees one patch, so that what is counted is text. Local captions are as long
as one sentence: of tars (`tars='data/openclipart/*.tar',fields=raw_caption`), or drawn from
log-normal distributions like those of long-caption sets, a few times as long as their mean. Groups
are those that `input_pipeline.text.lengths` proposes for half of the lengths; batches of the other
half tell how many texts are too long for their groups, and are encoded again.

Counted as XLA counts lowered programs, before any optimisation, elementwise work included, nothing
recomputed; a tower's cost is linear in its layers, so one and two of them tell it. Nothing runs.
"""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import recipes
from big_vlp.methods import make_method
from big_vlp.methods.shared import text_groups
from input_pipeline.doctor.command import open_data_set
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.captions import sample_captions
from input_pipeline.text.lengths import positions, propose_groups
from input_pipeline.text.tokenizers import make_tokenizer

GLOBAL, CAPTIONS, WHOLE, IMAGE_SIZE = 2, 8, 77, 8
TARGETS = {"tars": 0.5, "drawn": 0.35}
BATCHES = 200  # drawn to see how often captions do not fit
DRAWN = 200_000


def measure(
    batch: int = 4096,
    devices: int = 16,
    groups: int = 3,
    tars: str = "",
    fields: str = "raw_caption",
    means: str = "20+22.5+25",
    spread: float = 0.6,
) -> list[dict]:
    """Args: samples of a batch; devices that hold it; groups, with that of whole captions; a
    pattern of tars and their caption fields, separated by +; mean tokens of drawn lengths, and the
    standard deviation of their logarithm."""
    cases = {}
    if tars:
        cases["tars"] = lengths_of_tars(tars, tuple(fields.split("+")))
    for mean in map(float, means.split("+")):
        cases[f"mean {mean:g}"] = drawn_lengths(mean, spread)
    samples = batch // devices
    whole = flops((), samples)
    rows = []
    for name, lengths in cases.items():
        known, others = np.array_split(np.random.default_rng(0).permutation(lengths), 2)
        texts = samples * (CAPTIONS - GLOBAL)
        chosen = propose_groups(known, WHOLE, texts, groups)
        turns = turns_of(others, chosen, texts, devices)
        grouped, turn = flops(chosen, samples), flops_of_a_turn(chosen, samples)
        rows.append(
            {
                "case": name,
                "tokens": {"mean": float(lengths.mean()), "fit 32": float((lengths <= 32).mean())},
                "groups": [list(group) for group in chosen],
                "positions": positions(chosen, WHOLE) / WHOLE,
                "whole_gflops": whole / samples / 1e9,
                "grouped_gflops": grouped / samples / 1e9,
                "turns": float(turns.mean()),
                "a_turn_gflops": turn / samples / 1e9,
                "saved": 1 - (grouped + turns.mean() * turn) / whole,
                "target": TARGETS["tars" if name == "tars" else "drawn"],
            }
        )
    return rows


def lengths_of_tars(pattern: str, fields: tuple[str, ...]) -> np.ndarray:
    """Tokens of the local captions that COSMOS draws of the samples in some tars."""
    data = open_data_set(pattern, fields, 10**6)
    tokenizer, rng, lengths = make_tokenizer("clip"), random.Random(0), []
    for index in range(data.readable):
        captions = data.read(index).captions
        captions = {k: [v] if isinstance(v, str) else v for k, v in captions.items()}
        local = sample_captions(captions, "textcrop", CAPTIONS, rng)[GLOBAL:]
        lengths.append(text_groups.lengths_of(tokenizer(local, WHOLE)))
    return np.concatenate(lengths)


def drawn_lengths(mean: float, spread: float) -> np.ndarray:
    """Tokens of drawn captions, both ends included."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, DRAWN)
    return np.clip(np.round(drawn), 3, WHOLE).astype(int)


def turns_of(lengths, groups, texts: int, devices: int) -> np.ndarray:
    """How many turns of the loop each of some batches takes, with lengths drawn from these."""
    drawn = np.random.default_rng(1).choice(lengths, (BATCHES, devices, texts))
    parts = text_groups.sizes(texts, WHOLE, groups)
    limits = np.repeat([length for _, length in parts], [size for size, _ in parts])
    too_long = (np.sort(drawn, axis=2) > limits).sum(axis=2).max(axis=1)
    turn = -(-texts // text_groups.TURNS)
    return -(-too_long // turn)


def flops_of_a_turn(groups, samples: int) -> float:
    """FLOPs of what a turn of the loop computes, forward and backward: XLA counts a loop once."""
    return counted(groups, samples, text_groups.TURNS) - counted(groups, samples, None)


def flops(groups, samples: int) -> float:
    """FLOPs of one forward and backward pass over so many samples, without any turn."""
    return counted(groups, samples, None)


def counted(groups, samples: int, turns: int | None) -> float:
    """FLOPs of 12 layers; of turns that take a part of the texts, None: of one text."""
    one, two = (_counted(groups, samples, turns, layers) for layers in (1, 2))
    return one + (recipes.TEXT_TOWER["layers"] - 1) * (two - one)


def _counted(groups, samples: int, turns: int | None, layers: int) -> float:
    method = make_method(
        "cosmos",
        preprocess=Preprocess(image_size=IMAGE_SIZE, tokenizer="clip", context_length=WHOLE),
        model={
            "image": {"patch_size": IMAGE_SIZE, "width": 8, "layers": 1, "heads": 1},
            "text": {**recipes.TEXT_TOWER, "layers": layers},
            "embed_dim": 512,
        },
        ema_decay=0.99,
        dtype="float32",
        unroll=True,
    )
    method = dataclasses.replace(method, text_groups=groups)
    student, teacher = method.shapes
    image = (samples, GLOBAL, IMAGE_SIZE, IMAGE_SIZE, 3)
    batch = {
        "global_images": jax.ShapeDtypeStruct(image, jnp.float32),
        "local_images": jax.ShapeDtypeStruct((samples, 0, *image[2:]), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((samples, CAPTIONS, WHOLE), jnp.int32),
    }

    def features(student, teacher, batch):
        return method.features(student, teacher, batch, jax.random.key(0))

    def forward_and_backward(student, teacher, batch, gradients):
        found, backward, of_teacher = jax.vjp(
            lambda student: features(student, teacher, batch), student, has_aux=True
        )
        return found, of_teacher, backward(gradients)

    before = text_groups.TURNS
    text_groups.TURNS = samples * CAPTIONS if turns is None else turns
    try:
        gradients, _ = jax.eval_shape(features, student, teacher, batch)
        lowered = jax.jit(forward_and_backward).lower(student, teacher, batch, gradients)
    finally:
        text_groups.TURNS = before
    return lowered.cost_analysis()["flops"]
