"""Loss per token over all captions, and its controls."""

import dataclasses

import numpy as np
import pytest

from tests.big_vlp.methods.toy_cogvlm_method import make, make_model, mean_loss
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

CAPTIONS = [["a ring"], ["a red circle and a star", "unused"], ["we see a cross"]]


def evaluate(losses, captions=CAPTIONS, **config):
    table = np.full(128, 9.0, np.float32)
    table[: len(losses)] = losses
    table[toy_text.BLIND] = 5
    source = toy.ToySource({"caption": captions})
    return toy_text.evaluate("caption_loss", source, {"losses": table}, **config)


def counts(captions):
    return np.array([len(toy_text.TEXT.encode(own[0])) + 1 for own in captions])


def test_loss_is_the_mean_over_tokens():
    losses, tokens = np.array([1.0, 2.0, 4.0]), counts(CAPTIONS)
    assert len(set(tokens)) > 1  # or it could be a mean over captions
    values = evaluate(losses)
    assert values["loss"] == pytest.approx((losses * tokens).sum() / tokens.sum())
    assert values["loss_blind"] == 5
    shuffled = losses[[1, 2, 0]]
    assert values["loss_shuffled"] == pytest.approx((shuffled * tokens).sum() / tokens.sum())
    assert evaluate(losses, batch_size=1) == pytest.approx(values)
    assert evaluate(losses, controls=()).keys() == {"loss"}


def test_only_the_first_caption_of_the_field_counts():
    source = toy.ToySource({"short": [["a"]] * 2, "long": [["a ring", "x"]] * 2})
    rows = []

    def token_losses(model, batch):
        rows.append((np.asarray(batch["tokens"]), np.asarray(batch["loss_mask"])))
        return toy_text.token_losses(model, batch)

    with toy_text.jax.disable_jit():
        toy_text.evaluate(
            "caption_loss",
            source,
            {"losses": np.ones(128, np.float32)},
            {"token_losses": token_losses},
            caption_field="long",
            controls=(),
        )
    expected = [*toy_text.TEXT.encode("a ring"), toy_text.TEXT.eos_id]
    for tokens, mask in zip(*rows[0]):
        first = 1 + toy_text.SLOTS
        assert np.flatnonzero(mask).tolist() == list(range(first, first + len(expected)))
        assert tokens[mask].tolist() == expected


def test_long_captions_are_cut_as_in_training():
    values = evaluate([1.0, 2.0], [["red " * 60], ["a ring"]], controls=())
    tokens = np.array([toy_text.PREPROCESS.context_length, counts([["a ring"]])[0]])
    assert values["loss"] == pytest.approx((tokens * [1, 2]).sum() / tokens.sum())


def test_a_language_model_is_asked_without_images():
    """Its loss is the mean over the words of captions, by the formula; there are no controls."""
    preprocess = dataclasses.replace(toy_text.PREPROCESS, image_token_size=None)
    text = {"vocab_size": toy_text.TEXT.vocab_size, "width": 16, "layers": 1, "heads": 2}
    method = make(preprocess, model={"text": {**text, "mlp_dim": 8}, "expert_parts": ()})
    model, batches = make_model(method), []

    def token_losses(model, batch):
        assert batch.keys() == {"tokens", "token_types", "loss_mask"}
        batches.append(batch["tokens"].shape)
        return method.predict_fns()["token_losses"](model, batch)

    source = toy.ToySource({"caption": CAPTIONS})
    values = toy_text.evaluate(
        "caption_loss", source, model, {"token_losses": token_losses}, preprocess, batch_size=2
    )
    assert values.keys() == {"loss"} and all(shape[1] == 41 for shape in batches)
    rows = [[*toy_text.TEXT.encode(own[0]), toy_text.TEXT.eos_id] for own in CAPTIONS]
    batch = {
        "tokens": np.zeros((3, 41), np.int32),
        "token_types": np.zeros((3, 41), np.int32),
        "loss_mask": np.zeros((3, 41), bool),
    }
    for i, ids in enumerate(rows):
        batch["tokens"][i, : len(ids) + 1] = [toy_text.TEXT.bos_id, *ids]
        batch["loss_mask"][i, 1 : len(ids) + 1] = True
    assert values["loss"] == pytest.approx(mean_loss(method, model, batch), rel=1e-5)


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="no caption field 'long'"):
        evaluate([1.0], caption_field="long")
    with pytest.raises(ValueError, match=r"predict functions \['token_losses'\]"):
        source = toy.ToySource({"caption": CAPTIONS})
        toy_text.evaluate("caption_loss", source, {}, {"generate": None})
    with pytest.raises(ValueError, match="two records or more"):
        evaluate([1.0], CAPTIONS[:1])
