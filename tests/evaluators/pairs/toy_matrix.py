"""The evaluator `retrieval` on a matrix of scores, which images and texts are made of."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tests.evaluators.shared import toy


def retrieval_metrics(similarity, owner):
    """All that the evaluator yields where image i and caption t score similarity[i, t].

    Caption t is of image owner[t] and has t + 1 words; its feature is one-hot.
    """
    size = similarity.shape[1]

    def encode_text(model, batch):
        num_words = (batch["tokens"] > 0).sum(axis=1) - 2  # without the two special tokens
        return jnp.eye(size)[num_words - 1]

    captions = [
        [" ".join(["a"] * (t + 1)) for t in np.flatnonzero(owner == i)]
        for i in range(len(similarity))
    ]
    return toy.evaluate(
        "retrieval",
        toy.ToySource({"caption": captions}),
        {"image": similarity},
        preprocess=dataclasses.replace(toy.PREPROCESS, context_length=size + 2),
        predict_fns=toy.PREDICT_FNS | {"encode_text": encode_text},
        caption_field="caption",
    )
