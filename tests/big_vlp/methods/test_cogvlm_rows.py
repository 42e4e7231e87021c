"""CogVLM's method on rows as they come: several images or none, packed, text alone."""

import dataclasses
import json
import random
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models.layout import LANGUAGE, PADDING, VISION
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from input_pipeline.prepare.filters import Tally
from input_pipeline.prepare.packing import Packer
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views import make_views
from tests.big_vlp.methods.toy_cogvlm_method import (
    EXPERTS,
    MODEL,
    PREPROCESS,
    SLOTS,
    TEXT,
    TEXT_ONLY,
    compiled_loss,
    fast_jit,
    loss_and_gradients,
    make,
    make_batch,
    make_model,
)
from tests.eight_devices import on_eight_devices
from tests.input_pipeline.prepare import prepare_data

IMAGE = "image"
IMAGES, CONTEXT = 2, 12
LENGTH = 1 + IMAGES * SLOTS + CONTEXT
# Examples: what follows a first token; the text behind an image or that token counts.
EXAMPLES = ((IMAGE, 4), (5,), (IMAGE, 2, IMAGE, 3), (1, IMAGE, 1), (7,))


@pytest.fixture(scope="module")
def model():
    return make_model(make())


def example(parts, seed):
    """(tokens, types, loss mask, images) of one."""
    rng = np.random.default_rng(seed)
    types = [LANGUAGE]
    for part in parts:
        types += [VISION] * SLOTS if part == IMAGE else [LANGUAGE] * part
    types = np.array(types, np.int32)
    tokens = rng.integers(3, TEXT["vocab_size"], types.shape, dtype=np.int32)
    tokens[types == VISION] = 0
    mask = types == LANGUAGE
    mask[0] = False
    images = rng.integers(0, 256, (parts.count(IMAGE), 16, 16, 3), dtype=np.uint8)
    return tokens, types, mask, images


def pack(rows, length=LENGTH, images=IMAGES):
    """A batch of rows that are lists of examples."""
    batch = {
        "images": np.zeros((len(rows), images, 16, 16, 3), np.uint8),
        "tokens": np.zeros((len(rows), length), np.int32),
        "token_types": np.full((len(rows), length), PADDING, np.int32),
        "loss_mask": np.zeros((len(rows), length), bool),
        "segments": np.zeros((len(rows), length), np.int32),
    }
    for b, examples in enumerate(rows):
        start = image = 0
        for number, (tokens, types, mask, pixels) in enumerate(examples, 1):
            at = slice(start, start + len(tokens))
            batch["tokens"][b, at], batch["token_types"][b, at] = tokens, types
            batch["loss_mask"][b, at], batch["segments"][b, at] = mask, number
            batch["images"][b, image : image + len(pixels)] = pixels
            start, image = start + len(tokens), image + len(pixels)
    return batch


def without(batch, *names):
    return {name: x for name, x in batch.items() if name not in names}


def close_gradients(found, expected, tolerance=1e-5):
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=tolerance * largest, err_msg=path)


EACH = [example(parts, seed) for seed, parts in enumerate(EXAMPLES)]
PACKED = pack([[EACH[0], EACH[1]], [EACH[2]], [EACH[3], EACH[4]], [EACH[4]]])
CROWDED = pack([[EACH[0], EACH[4], EACH[4]]], length=27)
ALONE = without(pack([[EACH[i]] for i in (0, 1, 2, 3, 4, 4)]), "segments")


@pytest.fixture(scope="module")
def alone(model):
    """Loss and gradients of the examples, each in a row of its own."""
    with jax.default_matmul_precision("highest"):
        return loss_and_gradients(make(layout="general"), model, ALONE)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "general"},
        {"layout": "general", "unroll": True, "remat": "dots"},
        {"layout": "any", "remat": "full", "accumulate_steps": 2},
    ],
)
def test_packed_rows_are_learnt_like_each_example_alone(model, alone, changes):
    """Losses and gradients: the mean over all tokens is the same."""
    method = make(**changes)
    method.check_batch(PACKED)
    with jax.default_matmul_precision("highest"):
        loss, found = loss_and_gradients(method, model, PACKED)
    np.testing.assert_allclose(loss, alone[0], rtol=1e-5)
    close_gradients(found, alone[1])


def test_losses_of_packed_rows(model):
    run = fast_jit(make(layout="general").predict_fns()["token_losses"])
    found, each = run(model, PACKED), run(model, ALONE)
    for of_row, of_examples in zip(found, each):
        expected = [sum(of_examples[i] for i in row) for row in ([0, 1], [2], [3, 4], [5])]
        np.testing.assert_allclose(of_row, expected, rtol=1e-4)
    # Without the segments examples would read those before them.
    other, _ = run(model, without(PACKED, "segments"))
    assert abs(other[0] - found[0][0]) > 1e-3
    np.testing.assert_allclose(other[1::2], found[0][1::2], rtol=1e-4)


def test_packs_of_the_views_have_the_losses_of_their_records():
    """From `prepare --pack` to `Method.loss`."""
    text = {**TEXT, "vocab_size": make_tokenizer("llama:scenes").vocab_size}
    pre = dataclasses.replace(PREPROCESS, context_length=200)
    method = make(pre, layout="general", model={**MODEL, "text": text})
    given = {"context_length": 200, "max_images": 3, "history": "turns"}
    given |= {"tasks": {"conversation": 1.0}, "tokenizer": "llama:scenes"}
    given |= {"image_size": 16, "image_token_size": 8}
    views = make_views("cogvlm", **given)
    method.check_spec(views.spec())

    def record(name, rounds, **images):
        roles = ("user", "assistant") * len(rounds)
        said = [text for both in rounds for text in both]
        messages = [{"role": r, "content": text} for r, text in zip(roles, said)]
        return {"id": name, "captions": {}, "conversation": messages, **images}

    pictures = [prepare_data.image(seed) for seed in range(3)]
    rounds = [("is it red ?", "no"), ("a star <image> ?", "a star")]
    records = [
        record("a", rounds, images=pictures[:2]),
        record("b", rounds[:1]),
        record("c", rounds[:1], image=pictures[2]),
    ]
    packs = [*Packer(given).pack(records, Tally(), Counter())]
    assert [len(one["examples"]) for one in packs] == [3]

    def batch(rows):
        made = [views(row, random.Random(0)) for row in rows]
        stacked = {name: np.stack([row[name] for row in made]) for name in made[0]}
        method.check_batch(stacked)
        return stacked

    own, loss = make_model(method), compiled_loss(method)
    with jax.default_matmul_precision("highest"):
        found, expected = loss(own, batch(packs)), loss(own, batch(records))
        crossed = loss(own, without(batch(packs), "segments"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(crossed - found) > 1e-3


def test_the_static_layout_is_for_one_image():
    spec = {"segments": ((9,), np.dtype(np.int32))}
    with pytest.raises(ValueError, match=r"has max_images: set config\.method\.layout='general'"):
        make().check_spec(spec)
    make(layout="any").check_spec(spec)


def test_no_example_begins_from_the_one_before(model):
    """Whatever the mask says of its first token."""
    method, marked = make(layout="general"), {**PACKED, "loss_mask": PACKED["loss_mask"].copy()}
    begins = np.diff(PACKED["segments"], axis=1, prepend=0) > 0
    marked["loss_mask"][begins] = True
    run = compiled_loss(method)
    assert float(run(model, marked)) == float(run(model, PACKED))


def test_rows_with_and_without_images_in_one_step(model):
    """A mixture's loss is that of its parts, each by the layout of its own."""
    static, text = make_batch(), make_batch(slots=0)
    length = static["tokens"].shape[1]
    rows = {}
    for name, empty in (("tokens", 0), ("token_types", PADDING), ("loss_mask", False)):
        more = length - text[name].shape[1]
        wide = np.pad(text[name], ((0, 0), (0, more)), constant_values=empty)
        rows[name] = np.concatenate([static[name], wide])
    rows["images"] = np.concatenate([static["images"], np.zeros_like(static["images"])])
    method = make(layout="general")
    method.check_batch(rows)
    loss, grads = loss_and_gradients(method, model, rows)
    parts = [loss_and_gradients(make(), model, batch) for batch in (static, text)]
    counts = [batch["loss_mask"].sum() for batch in (static, text)]
    shares = np.array(counts) / sum(counts)
    np.testing.assert_allclose(loss, sum(s * p for s, (p, _) in zip(shares, parts)), rtol=1e-5)
    of_parts = jax.tree.map(lambda a, b: shares[0] * a + shares[1] * b, parts[0][1], parts[1][1])
    close_gradients(grads, of_parts)


TEXT_ROWS = make_batch(slots=0)
NO_PLACES = {**TEXT_ROWS, "images": np.zeros((4, 0, 16, 16, 3), np.uint8)}
# With place for an image that no row has: as much text as there is, and room.
PLACES = {
    name: np.pad(x, ((0, 0), (0, SLOTS)), constant_values=PADDING if name == "token_types" else 0)
    for name, x in TEXT_ROWS.items()
} | {"images": np.zeros((4, 1, 16, 16, 3), np.uint8)}
TEXT_BATCHES = {"no images": TEXT_ROWS, "no places": NO_PLACES, "places": PLACES}


@pytest.mark.parametrize("name", TEXT_BATCHES)
def test_text_alone_trains_the_language_model(model, name):
    """With the loss of the plain one, and nothing for what sees."""
    batch, layout = TEXT_BATCHES[name], "general" if name == "places" else "static"
    method = make(layout=layout)
    method.check_batch(batch)
    loss, grads = loss_and_gradients(method, model, batch)
    plain = make(TEXT_ONLY, model={"text": TEXT, "expert_parts": ()})
    blocks = {k: v for k, v in model["language"]["blocks"].items() if k != "vision"}
    language = {"language": {**model["language"], "blocks": blocks}}
    expected, others = loss_and_gradients(plain, language, TEXT_ROWS)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    flat = trees.flatten(grads)
    seeing = [p for p in flat if p.startswith(("vision/", "adapter/", "language/blocks/vision/"))]
    assert seeing and not any(flat[p].any() for p in seeing)
    for path, value in trees.flatten(others).items():
        size = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(flat[path], value, atol=1e-5 * size, err_msg=path)


@pytest.mark.parametrize("name", TEXT_BATCHES)
def test_a_step_of_text_moves_nothing_where_only_what_sees_is_trained(name):
    """It counts the tokens, and says that there was no image."""
    batch = TEXT_BATCHES[name]
    method = make(layout="general", accumulate_steps=2)
    optimizer = make_optimizer(
        learning_rate=1e-2, total_steps=5, warmup_steps=0, weight_decay=0.0, rules=EXPERTS
    )
    state = fast_jit(step.make_init(method, optimizer))(jax.random.key(0, impl="unsafe_rbg"))
    new, metrics = fast_jit(step.make_train_step(method, optimizer))(
        state, batch, 0, jax.random.key(1)
    )
    assert metrics["bad_steps"] == 0 and metrics["grad_norm"] == 0
    assert metrics["answer_tokens"] == batch["loss_mask"].sum() / 4 and metrics["images"] == 0
    assert np.isfinite(metrics["loss"]) and metrics["loss"] > 0
    jax.tree.map(np.testing.assert_array_equal, new["model"], state["model"])


def test_what_is_counted():
    def loss(batch):
        return make(layout="general").loss(
            make_model(make()), {}, {}, {}, batch, rng=jax.random.key(0), step=0
        )

    shapes, (_, metrics) = jax.eval_shape(loss, ALONE)
    assert shapes.shape == () and metrics.keys() == {"answer_tokens", "images"}
    _, (_, metrics) = fast_jit(loss)(ALONE)
    assert metrics["images"] == pytest.approx(4 / 6)
    assert metrics["answer_tokens"] == pytest.approx(ALONE["loss_mask"].sum() / 6)


def test_text_beside_the_image_loss(model):
    """The ablation whose image tokens predict: without images it adds nothing."""
    method = make(image_loss=0.5)
    own = make_model(method)
    loss, grads = loss_and_gradients(method, own, TEXT_ROWS)
    plain = {k: v for k, v in own.items() if k != "feature_head"}
    np.testing.assert_allclose(loss, loss_and_gradients(make(), plain, TEXT_ROWS)[0], rtol=1e-6)
    assert not grads["feature_head"]["kernel"].any()


@pytest.mark.parametrize(
    "changes, batch, message",
    [
        ({}, ALONE, "use layout='general'"),
        ({"layout": "general"}, CROWDED, "rows of 27 .* room for 17"),
        ({"layout": "general"}, {**ALONE, "images": ALONE["images"][:, :1]}, "1 images a row"),
        ({"layout": "any"}, without(ALONE, "images"), "no image features"),
    ],
)
def test_rows_that_do_not_fit(changes, batch, message):
    with pytest.raises(ValueError, match=message):
        make(**changes).check_batch(batch)


def test_without_visual_experts_rows_need_no_room(model):
    plain = {**MODEL, "expert_parts": ()}
    make(layout="general", model=plain).check_batch(CROWDED)
    blocks = {k: v for k, v in model["language"]["blocks"].items() if k != "vision"}
    language = {**model, "language": {**model["language"], "blocks": blocks}}
    general, any_ = (
        float(compiled_loss(make(layout=kind, model=plain))(language, CROWDED))
        for kind in ("general", "any")
    )
    assert general == any_ and np.isfinite(general)


def test_rows_without_room_never_train_wrongly(model):
    """A compiled step cannot look; what comes out is no number."""
    assert jnp.isnan(compiled_loss(make(layout="general"))(model, CROWDED))
    assert jnp.isfinite(compiled_loss(make(layout="any"))(model, CROWDED))


def test_dropout_of_a_row_is_that_of_the_static_layout(model):
    dropout = {**MODEL, "text": {**TEXT, "dropout": 0.3}}
    static, general = (
        float(compiled_loss(make(model=dropout, layout=kind))(model, make_batch(), 3))
        for kind in ("static", "general")
    )
    assert static == pytest.approx(general, rel=1e-5)


@pytest.mark.slow
def test_rows_stay_on_their_devices():
    """On eight: the numbers of one, nothing is brought together but parameters, and nothing is
    summed but what the static layout sums: gradients, counts and losses. (A gather that is not by
    rows shows as a sum of rows.)"""
    program = Path(__file__).with_name("routing_on_eight_devices.py")
    brought, summed = {}, {}
    for layout, found in json.loads(on_eight_devices(program)).items():
        plain = found.pop("none")
        for mesh, result in found.items():
            moved = {tuple(each) for each in result["moved"] if each[0] != "all-reduce"}
            brought[layout, mesh] = moved
            sums = [arrays for kind, arrays in result["moved"] if kind == "all-reduce"]
            summed[layout, mesh] = set(re.findall(r"\w+\[[\d,]*\]", " ".join(sums)))
            np.testing.assert_allclose(result["loss"], plain["loss"], rtol=1e-5)
            close_gradients(*(jax.tree.map(np.array, r["gradients"]) for r in (result, plain)))
    assert not brought["general", "8,1,1"]
    assert summed["general", "8,1,1"] <= summed["static", "8,1,1"]
    assert brought["general", "2,2,2"] == brought["static", "2,2,2"] != set()
