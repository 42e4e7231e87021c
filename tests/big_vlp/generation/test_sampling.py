"""Generation against the model run without a cache and the fixtures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.convert.cogvlm import names as convert
from big_vlp.generation.beams import Beams
from big_vlp.generation.cache import Settings, hashable, make_prompts, prefill, settings_for
from big_vlp.generation.sampling import Sampling, choose, generate, stream
from big_vlp.models import layout
from big_vlp.models.cogvlm import CogVLM
from tests.big_vlp.generation.toy_generation import (
    MIXED,
    SLOTS,
    TEXT,
    L,
    P,
    V,
    forward,
    make_features,
    make_model,
    make_rows,
)
from tests.parity.fixtures import fixtures

ROOT = Path(__file__).parents[3]
NEW = 7


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def tiny():
    return make_model()


def greedy_without_cache(model, params, tokens, types, features, steps):
    """The most probable continuation of each row, by running all of it for every token."""
    results = []
    run = jax.jit(lambda *arrays: forward(model, params, *arrays))
    for i in range(len(tokens)):
        own = None if features is None else features[i : i + 1]
        real = types[i] != P
        row, kinds = list(tokens[i][real]), list(types[i][real])
        for _ in range(steps):
            # Rows of one length, to compile once; nobody sees what follows.
            more = tokens.shape[1] + steps - len(row)
            x = run(np.array([row + [0] * more]), np.array([kinds + [L] * more]), own)
            row.append(int(x[0, len(kinds) - 1].argmax()))
            kinds.append(L)
        results.append(row[-steps:])
    return np.array(results)


def cut(ids, eos, pad=0):
    """Padding behind the first end of sentence."""
    ended = np.cumsum(ids == eos, axis=1) - (ids == eos) > 0
    return np.where(ended, pad, ids)


def test_rows_of_all_kinds_as_without_a_cache(tiny):
    model, params = tiny
    tokens, types = make_rows(*MIXED)
    features = make_features(model, params, len(tokens), images=2)
    expected = greedy_without_cache(model, params, tokens, types, features, NEW)
    assert len({tuple(row) for row in expected.tolist()}) > 2
    eos = int(expected[0, 3])  # a token that does come up
    options = dict(max_new_tokens=NEW, eos_id=eos, pad_id=1)
    found = generate(model, params, tokens, types, features, **options)
    np.testing.assert_array_equal(found, cut(expected, eos, pad=1))
    assert (np.asarray(found) == 1).any()
    streamed = np.stack(list(stream(model, params, tokens, types, features, **options)), axis=1)
    np.testing.assert_array_equal(streamed, np.asarray(found)[:, : streamed.shape[1]])
    left = make_rows(*MIXED, left=True)
    again = generate(model, params, *left, features, multiple=32, **options)
    np.testing.assert_array_equal(again, found)


def test_both_layouts(tiny):
    model, params = tiny
    tokens, types = make_rows("LILLLL", "LI", "LIL")
    features = make_features(model, params, 3)
    static, general = (
        generate(
            *(model, params, tokens, types, features),
            **dict(max_new_tokens=NEW, eos_id=-1, layout=kind),
        )
        for kind in ("static", "general")
    )
    np.testing.assert_array_equal(static, general)
    expected = greedy_without_cache(model, params, tokens, types, features, NEW)
    np.testing.assert_array_equal(static, expected)


def test_prompts_with_several_images_cost_what_text_costs(tiny):
    model, params = tiny
    tokens, types = make_rows("LILLILLLL", "LILIL", "LIL")
    features = make_features(model, params, 3, images=2)

    def flops(types, features):
        settings = Settings(hashable(model), "general", NEW, -1, 0)
        prompts = make_prompts(tokens, types, features, "general", 1)
        run = jax.jit(prefill, static_argnums=0).lower(settings, params, prompts, features)
        return run.cost_analysis()["flops"]

    assert flops(types, features) < 1.15 * flops(np.full_like(types, L), None)


def test_prompts_get_the_room_that_they_need(tiny):
    """The second row has more text than is left beside two images."""
    model, params = tiny
    tokens, types = make_rows("LILILL", "LILLLLLLLL", "LLLLLLLLLL")
    features = make_features(model, params, 3, images=2)
    length = make_prompts(tokens, types, features, "general", 1).types.shape[1]
    assert length == layout.room(types, 2, SLOTS) > types.shape[1]
    expected = greedy_without_cache(model, params, tokens, types, features, NEW)
    for kind in ("general", "any"):
        options = dict(max_new_tokens=NEW, eos_id=-1, layout=kind)
        found = generate(model, params, tokens, types, features, **options)
        np.testing.assert_array_equal(found, expected, kind)


def test_prompts_that_nobody_can_look_at_get_room_too(tiny):
    """In a compiled program; no beam and no token comes of rows without room."""
    model, params = tiny
    tokens, types = make_rows("LILILL", "LILLLLLLLL", "LLLLLLLLLL")
    features = make_features(model, params, 3, images=2)
    for strategy in (None, Beams(2)):
        options = dict(max_new_tokens=NEW, eos_id=-1, strategy=strategy)
        run = jax.jit(lambda *args, options=options: generate(model, *args, **options))
        expected = generate(model, params, tokens, types, features, **options)
        np.testing.assert_array_equal(run(params, tokens, types, features), expected)


def test_prompts_of_models_without_experts_need_no_room(tiny):
    model, _ = tiny
    _, types = make_rows("LILILL", "LILLLLLLLL")
    kinds = [
        settings_for(given, types, "general", NEW, -1, 0).layout
        for given in (model, model.clone(expert_parts=()))
    ]
    assert kinds == ["general", "any"]


def test_generation_ends_when_all_rows_have(tiny):
    model, params = tiny
    tokens, types = make_rows("LLL")
    first = int(generate(model, params, tokens, types, max_new_tokens=1, eos_id=-1)[0, 0])
    tokens_of = list(stream(model, params, tokens, types, max_new_tokens=NEW, eos_id=first))
    assert len(tokens_of) == 1 and tokens_of[0] == [first]


@pytest.mark.parametrize("path", fixtures("cogvlm*_*.npz"), ids=lambda path: path.stem)
def test_the_reference_writes_the_same(path):
    arrays = dict(np.load(path))
    state = {k.removeprefix("sd/"): v for k, v in arrays.items() if k.startswith("sd/")}
    params, arguments, _ = convert.from_reference(state, json.loads(bytes(arrays["config_json"])))
    model = CogVLM(**arguments)
    names = [k.split("/")[0] for k in arrays if k.endswith("/generated_ids")]
    if not names:
        pytest.skip("this fixture has no generated tokens")
    for name in names:
        found = {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(name)}
        types = layout.token_types(found["token_type_ids"], found["attention_mask"])
        features = None
        if "pixel_values" in found:
            images = np.moveaxis(found["pixel_values"], 1, -1)[:, None]
            features = model.apply({"params": params}, images, method="encode_images")
        expected = found["generated_ids"]
        options = dict(max_new_tokens=expected.shape[1], eos_id=2)
        inputs = model, params, found["input_ids"], types, features
        np.testing.assert_array_equal(generate(*inputs, **options), expected, name)
        streamed = np.stack(list(stream(*inputs, multiple=16, **options)), axis=1)
        np.testing.assert_array_equal(streamed, expected, name)


# Sampling


def test_limits_that_leave_one_token_are_greedy(tiny):
    model, params = tiny
    tokens, types = make_rows("LLL", "LLLLL")
    options = dict(max_new_tokens=NEW, eos_id=2, key=jax.random.key(0))
    greedy, *others = (
        generate(model, params, tokens, types, strategy=strategy, **options)
        for strategy in (None, Sampling(5.0, top_k=1), Sampling(5.0, top_p=0.0), Sampling(1e-4))
    )
    for other in others:
        np.testing.assert_array_equal(other, greedy)


def test_samples_depend_on_the_key_and_the_place_alone(tiny):
    model, params = tiny
    tokens, types = make_rows("LLL", "LLLLL", "LL")

    def sample(rows, seed):
        options = dict(max_new_tokens=NEW, eos_id=2, strategy=Sampling(3.0))
        tokens_, types_ = tokens[rows], types[rows]
        key = jax.random.key(seed)
        return np.asarray(generate(model, params, tokens_, types_, key=key, **options))

    first = sample([0, 1, 2], 0)
    np.testing.assert_array_equal(sample([0, 1, 2], 0), first)
    assert (sample([0, 1, 2], 1) != first).any()
    np.testing.assert_array_equal(sample([0, 2], 0)[0], first[0])
    np.testing.assert_array_equal(sample([2, 1], 0)[1], first[1])
    same = sample([0, 0], 0)
    assert (same[0] != same[1]).any()
    streamed = stream(
        *(model, params, tokens, types),
        **dict(max_new_tokens=NEW, eos_id=2, strategy=Sampling(3.0), key=jax.random.key(0)),
    )
    found = np.stack(list(streamed), axis=1)
    np.testing.assert_array_equal(found, first[:, : found.shape[1]])


# The probabilities of five tokens after temperature 2.
PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (3, 1.0, [1, 3, 4]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (0, 0.39, [1]),  # reached by the first one
        (0, 0.41, [1, 3]),
        (0, 0.64, [1, 3]),
        (0, 0.66, [1, 3, 4]),
        (0, 1e-6, [1]),
        (3, 0.5, [1, 3]),  # of the three, renormalised: 0.47, 0.29, 0.24
        (3, 0.75, [1, 3]),
        (3, 0.77, [1, 3, 4]),
    ],
)
def test_the_distribution_of_samples(top_k, top_p, kept):
    count = 4000
    logits = jnp.broadcast_to(2 * jnp.log(PROBABILITIES), (count, 5))
    keys = jax.random.split(jax.random.key(3), count)
    tokens = jax.jit(choose)(logits, Sampling(2.0, top_k, top_p), keys)
    found = np.bincount(tokens, minlength=5) / count
    expected = np.where(np.isin(range(5), kept), PROBABILITIES, 0)
    expected /= expected.sum()
    np.testing.assert_array_equal(np.flatnonzero(found), kept)
    assert np.abs(found - expected).max() < 4 * 0.5 / count**0.5


def test_of_equal_tokens_the_first_is_taken():
    logits = jnp.array([[0.0, 1.0, 1.0, 1.0]])
    keys = jax.random.split(jax.random.key(0), 1)
    assert choose(logits, Sampling(top_k=1), keys) == choose(logits, None, None) == 1


# Meshes


@pytest.mark.slow
def test_the_same_on_every_mesh():
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "big_vlp" / "generation" / "generation_on_meshes.py"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": "8",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    plain = found.pop("none")
    assert plain["moved"] == 0
    assert set(found) == {"2,2,2", "1,1,2"}
    for mesh, results in found.items():
        assert results["ids"] == plain["ids"], mesh
    assert found["2,2,2"]["cache"] == [2, 1]  # of 8 rows and 2 heads
    assert found["1,1,2"]["cache"] == [8, 1]
    assert found["1,1,2"]["split"] > 0 and found["2,2,2"]["split"] > 0
    # What travels with every token are rows; the smallest kernel of a layer has 64 x 64 numbers.
    assert all(0 < results["moved"] <= 8 * 3 * 64 for results in found.values())


# What cannot be


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_new_tokens": 0}, "1 or more"),
        ({"strategy": Sampling(0.0)}, "temperature must be above 0"),
        ({"strategy": Sampling(top_p=1.5)}, r"top_p in 0\.\.1"),
        ({"strategy": Sampling(top_k=-1)}, "top_k 0 or more"),
        ({"strategy": Sampling(), "key": None}, "needs a random key"),
        ({"strategy": Beams(0)}, "1 beam or more"),
        ({"features": None}, "no image features"),
        ({"layout": "ragged"}, "layout='ragged'; choose one of"),
        ({"layout": "ragged", "features": None}, "layout='ragged'; choose one of"),
        ({"types": [[L, V, V, V, V, V, L, L]]}, "takes 6 slots"),
        ({"types": [[L, L, P, L, L, L, L, L]]}, "one side"),
        ({"types": [[P] * 8]}, "Row 0 is empty"),
        ({"types": [[L, L, *[V] * 6]], "layout": "static"}, "use layout='general'"),
        ({"types": [[L, *[V] * 12, L]], "tokens": np.zeros((1, 14), np.int32)}, "between it"),
    ],
)
def test_what_cannot_be_generated(tiny, change, message):
    model, params = tiny
    arguments = {
        "tokens": np.zeros((1, 8), np.int32),
        "types": [[L, *[V] * 6, L]],
        "features": np.zeros((1, 2 if "between" in message else 1, SLOTS, TEXT["width"])),
        "max_new_tokens": 1,
        "eos_id": 2,
        "key": jax.random.key(0),
        **change,
    }
    arguments["types"] = np.array(arguments["types"])
    with pytest.raises(ValueError, match=message):
        generate(model, params, **arguments)


def test_beams_cannot_be_streamed(tiny):
    with pytest.raises(ValueError, match="cannot be streamed"):
        stream(*tiny, *make_rows("LL"), max_new_tokens=2, eos_id=2, strategy=Beams(2))
