"""Beam search against all that can be written and transformers' beam search."""

import functools
import itertools

import jax
import numpy as np
import pytest

from big_vlp.convert.cogvlm import names as convert
from big_vlp.generation.beams import Beams
from big_vlp.generation.sampling import generate
from big_vlp.models.cogvlm import CogVLM
from tests.big_vlp.generation.toy_generation import (
    IMAGE,
    MIXED,
    TEXT,
    VOCAB,
    P,
    forward,
    make_features,
    make_model,
    make_rows,
)


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def tiny():
    return make_model()


def all_scores(model, params, tokens, types, length, eos):
    """{sequence: summed log probability} of all that can be written after one prompt."""
    scores = {}

    @functools.cache
    def log_probs(ids):
        row = np.array([[*tokens[0], *ids]])
        return np.asarray(jax.nn.log_softmax(run(row, np.zeros_like(row))[0, -1]))

    run = jax.jit(lambda tokens, types: forward(model, params, tokens, types, None))

    for ids in itertools.product(range(VOCAB), repeat=length):
        if eos in ids:
            ids = ids[: ids.index(eos) + 1]
        if ids not in scores:
            scores[ids] = sum(log_probs(ids[:i])[t] for i, t in enumerate(ids))
    return scores


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_sequences(tiny, length_penalty):
    model, params = tiny
    tokens, types = make_rows("LLL")
    greedy = generate(model, params, tokens, types, max_new_tokens=2, eos_id=-1)
    eos = int(greedy[0, 1])  # so that ending soon is tempting
    scores = all_scores(model, params, tokens, types, 2, eos)
    best = max(scores, key=lambda ids: scores[ids] / len(ids) ** length_penalty)
    found = generate(
        *(model, params, tokens, types),
        **dict(max_new_tokens=2, eos_id=eos, pad_id=1, strategy=Beams(VOCAB, length_penalty)),
    )
    np.testing.assert_array_equal(found[0], [*best, 1][:2])


def llama(kv_heads):
    """Weights with the names of transformers, and a CogVLM that has them as its language model."""
    _, params = make_model(kv_heads)
    arguments = {"image": IMAGE, "text": {**TEXT, "kv_heads": kv_heads}, "adapter_mlp_dim": 16}
    state, rng, weights = convert.to_reference(params, arguments), np.random.default_rng(0), {}

    def weight(key, shape):
        values = rng.normal(0, 0.4, shape).astype(np.float32)
        weights[key] = 1 + values / 4 if "norm" in key else values
        return weights[key]

    head_dim = TEXT["width"] // TEXT["heads"]
    heads = {"q": TEXT["heads"], "k": kv_heads, "v": kv_heads}
    for key, value in sorted(state.items()):
        if "language_expert_query_key_value" in key:
            start, end = key.split("language_expert_query_key_value")
            state[key] = np.concatenate(
                [
                    weight(f"{start}{x}_proj{end}", (n * head_dim, TEXT["width"]))
                    for x, n in heads.items()
                ]
            )
        elif not any(part in key for part in ("vision", "inv_freq")):
            name = key.replace("language_expert_dense", "o_proj").replace("language_mlp.", "")
            state[key] = weight(name, value.shape)
    params, arguments, _ = convert.from_reference(state, convert.to_config(arguments))
    return weights, CogVLM(**arguments), params


SEARCHES = {  # name -> beams, end of sentence, length penalty
    "4 beams": (4, 2, 1.0),
    "4 beams, another end": (4, 5, 1.0),
    "2 beams": (2, 7, 0.5),
    "3 beams": (3, 9, 2.0),
}
PROMPTS = ("LLLL", "LL", "LLLLLL", "LLL", "LLLLL", "LLL")


def searched(model, params, name):
    tokens, types = make_rows(*PROMPTS, left=True)
    count, eos, penalty = SEARCHES[name]
    strategy = Beams(count, penalty)
    options = dict(max_new_tokens=8, eos_id=eos, pad_id=1, strategy=strategy)
    return np.asarray(generate(model, params, tokens, types, **options))


# What transformers 5.23.0 writes; 1 is padding.
RECORDED = {
    (4, "4 beams, another end"): [
        [7, 11, 5, 1, 1, 1, 1, 1],
        [11, 11, 18, 8, 2, 18, 11, 19],
        [21, 4, 21, 20, 9, 3, 20, 10],
        [20, 20, 9, 9, 9, 13, 18, 13],
        [18, 8, 18, 8, 2, 18, 23, 19],
        [14, 21, 5, 1, 1, 1, 1, 1],
    ],
    (2, "2 beams"): [
        [13, 18, 5, 19, 12, 21, 18, 5],
        [3, 14, 7, 1, 1, 1, 1, 1],
        [21, 21, 21, 21, 6, 5, 9, 21],
        [6, 6, 6, 6, 6, 6, 6, 6],
        [20, 3, 9, 6, 8, 19, 7, 1],
        [6, 6, 9, 6, 18, 7, 1, 1],
    ],
}


@pytest.mark.parametrize("kv_heads, name", RECORDED)
def test_recorded_beams(kv_heads, name):
    _, model, params = llama(kv_heads)
    np.testing.assert_array_equal(searched(model, params, name), RECORDED[kv_heads, name])


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["mha", "gqa"])
def test_beams_are_those_of_transformers(kv_heads):
    torch = pytest.importorskip("torch")
    # Where torch and torchvision do not fit together it cannot be imported either.
    theirs = pytest.importorskip(
        "transformers.models.llama.modeling_llama", exc_type=(ImportError, RuntimeError)
    )
    weights, model, params = llama(kv_heads)
    config = theirs.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=TEXT["width"],
        intermediate_size=TEXT["mlp_dim"],
        num_hidden_layers=TEXT["layers"],
        num_attention_heads=TEXT["heads"],
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    reference = theirs.LlamaForCausalLM(config).eval()
    reference.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    tokens, types = make_rows(*PROMPTS, left=True)
    for name, (count, eos, penalty) in SEARCHES.items():
        expected = reference.generate(
            input_ids=torch.tensor(tokens, dtype=torch.int64),
            attention_mask=torch.tensor((types != P).astype(np.int64)),
            **dict(max_new_tokens=8, num_beams=count, do_sample=False, length_penalty=penalty),
            **dict(eos_token_id=eos, pad_token_id=1),
        )[:, tokens.shape[1] :].numpy()
        expected = np.pad(expected, ((0, 0), (0, 8 - expected.shape[1])), constant_values=1)
        np.testing.assert_array_equal(searched(model, params, name), expected, name)


def test_beams_of_rows_with_images_do_not_depend_on_the_batch(tiny):
    model, params = tiny
    tokens, types = make_rows(*MIXED)
    features = make_features(model, params, len(tokens), images=2)
    options = dict(max_new_tokens=5, eos_id=2, strategy=Beams(3))
    together = generate(model, params, tokens, types, features, **options)
    for i in range(len(tokens)):
        alone = generate(
            *(model, params, tokens[i : i + 1], types[i : i + 1], features[i : i + 1]), **options
        )
        np.testing.assert_array_equal(alone[0], together[i])
