"""Retrieval metrics against a direct computation, and what must not win."""

import numpy as np
import pytest

from tests.evaluators.pairs.toy_matrix import retrieval_metrics
from tests.evaluators.shared import toy

CAPTIONS = [[f"{word} one", f"{word} two"] for word in toy.WORDS]


def evaluate(captions, model, **config):
    source = toy.ToySource({"raw": [["?"]] * len(captions), "caption": captions})
    return toy.evaluate("retrieval", source, model, caption_field="caption", **config)


def by_sorting(similarity, owner):
    """The metrics, one query at a time, without ties or shared captions."""
    image_ranks = [
        np.flatnonzero(owner[np.argsort(-row)] == i).min() for i, row in enumerate(similarity)
    ]
    text_ranks = [
        int(np.flatnonzero(np.argsort(-column) == owner[t])[0])
        for t, column in enumerate(similarity.T)
    ]
    out = {}
    for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        for k in (1, 5, 10):
            out[f"{name}_R@{k}"] = np.mean(np.array(ranks) < k)
        out[f"{name}_mean_rank"] = np.mean(ranks) + 1
        out[f"{name}_median_rank"] = np.floor(np.median(ranks)) + 1
    out["mean_R@1"] = (out["image_to_text_R@1"] + out["text_to_image_R@1"]) / 2
    return out


@pytest.mark.parametrize("seed", range(3))
def test_a_matrix_gives_the_metrics_of_sorting_it(seed):
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.arange(12), rng.integers(0, 12, 20)]))
    similarity = rng.normal(size=(12, 32)).astype(np.float32)
    similarity[owner, np.arange(32)] += 1
    metrics = retrieval_metrics(similarity, owner)
    expected = by_sorting(similarity, owner)
    assert {k: v for k, v in metrics.items() if "chance" not in k} == pytest.approx(expected)


def test_the_evaluator_gives_the_metrics_of_its_features():
    model = toy.random_model()
    texts = toy.text_features(model, [text for own in CAPTIONS for text in own])
    similarity = model["image"][:16] @ texts.T
    expected = retrieval_metrics(similarity, np.arange(32) // 2)
    assert evaluate(CAPTIONS, model) == pytest.approx(expected)


def test_scores_are_ranked_in_chunks(monkeypatch):
    model = toy.random_model()
    whole = evaluate(CAPTIONS, model)
    monkeypatch.setattr("evaluators.pairs.retrieval.SCORES_PER_DEVICE", 40)
    assert evaluate(CAPTIONS, model, batch_size=5) == whole


def test_a_model_that_knows_everything_is_perfect():
    metrics = evaluate([[c[0]] for c in CAPTIONS], toy.knowing_model([c[0] for c in CAPTIONS]))
    for direction in ("image_to_text", "text_to_image"):
        assert metrics[f"{direction}_R@1"] == 1
        assert metrics[f"{direction}_mean_rank"] == metrics[f"{direction}_median_rank"] == 1


def test_a_caption_is_right_for_every_image_that_carries_it():
    captions = [["red cat"], ["red cat", "blue dog"], ["green tree"], ["red cat", "red cat"]]
    metrics = evaluate(
        captions, toy.knowing_model(["red cat", "blue dog", "green tree", "red cat"])
    )
    assert metrics["image_to_text_R@1"] == 1
    # "red cat", four times, finds images 0 and 3, both right; they tie with each other only.
    assert metrics["text_to_image_R@1"] == 1
    confused = evaluate(
        captions, toy.knowing_model(["green tree", "blue dog", "red cat", "blue dog"])
    )
    # Right: image 1 only. Image 0 has four right captions among six, all four tied in last place
    # but one; image 3 the same; image 2 has its own behind the four copies of "red cat".
    assert metrics != confused
    assert confused["image_to_text_R@1"] == 0.25
    assert confused["image_to_text_R@1_chance"] == pytest.approx((4 + 5 + 1 + 4) / 24)
    assert confused["text_to_image_R@1_chance"] == pytest.approx((4 * 3 + 1 + 1) / 24)


def test_the_rule_of_the_reference_knows_one_image_for_a_caption():
    """The metrics of the matrix of all captions, where equal ones tie."""
    captions = [["red cat"], ["red cat", "blue dog"], ["green tree"], ["red cat", "red cat"]]
    model = toy.knowing_model(["red cat", "blue dog", "green tree", "red cat"])
    found = evaluate(captions, model, equal_captions="reference")
    texts = [text for own in captions for text in own]
    owner = np.array([i for i, own in enumerate(captions) for _ in own])
    similarity = model["image"][:4] @ toy.text_features(model, texts).T
    assert found == pytest.approx(retrieval_metrics(similarity, owner))
    assert found["text_to_image_R@1"] == 2 / 6 < evaluate(captions, model)["text_to_image_R@1"]
    with pytest.raises(ValueError, match="equal_captions='both'"):
        evaluate(captions, model, equal_captions="both")


def test_where_no_captions_are_equal_both_rules_are_one():
    model = toy.random_model()
    assert evaluate(CAPTIONS, model) == evaluate(CAPTIONS, model, equal_captions="reference")


def test_copies_of_a_wrong_caption_all_stand_ahead():
    captions = [["red cat"] * 3, ["blue dog"]]
    metrics = evaluate(captions, toy.knowing_model(["blue dog", "red cat"]))
    assert metrics["image_to_text_mean_rank"] == (2 + 4) / 2


@pytest.mark.parametrize("width", [1, 7, 512])
def test_a_constant_encoder_comes_last(width):
    rng = np.random.default_rng(0)
    feature = rng.normal(size=width).astype(np.float32)
    model = {
        "image": np.tile(feature / np.linalg.norm(feature), (128, 1)),
        "word": np.tile(np.abs(feature), (49408, 1)),
    }
    metrics = evaluate(CAPTIONS, model)
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert metrics[f"{direction}_R@{k}"] == 0
    assert metrics["image_to_text_mean_rank"] == 31  # 30 of the 32 captions are not its own
    assert metrics["text_to_image_median_rank"] == 16


@pytest.mark.parametrize("part", ["image", "word"])
@pytest.mark.parametrize("count", [1, 16])
def test_nan_scores_nothing(part, count):
    model = toy.knowing_model([c[0] for c in CAPTIONS])
    model[part][:] = np.nan
    metrics = evaluate(CAPTIONS[:count], model)
    for direction, worst in (("image_to_text", 2 * count), ("text_to_image", count)):
        for k in (1, 5, 10):
            assert metrics[f"{direction}_R@{k}"] == 0
        assert metrics[f"{direction}_mean_rank"] == worst + 1


def test_one_image_of_nan_does_not_touch_the_others():
    model = toy.knowing_model([c[0] for c in CAPTIONS])
    model["image"][3] = np.nan
    metrics = evaluate([[c[0]] for c in CAPTIONS], model)
    assert metrics["image_to_text_R@1"] == 15 / 16
    assert metrics["text_to_image_R@1"] == 0  # every caption has a NaN among its candidates


def test_chance_is_the_mean_over_random_orders():
    rng = np.random.default_rng(1)
    owner = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8])
    orders = [by_sorting(rng.random((9, 12)), owner) for _ in range(300)]
    metrics = retrieval_metrics(rng.random((9, 12)).astype(np.float32), owner)
    for name in metrics:
        if name.endswith("_chance"):
            mean = np.mean([order[name.removesuffix("_chance")] for order in orders])
            assert mean == pytest.approx(metrics[name], abs=0.03), name


def test_an_unknown_field_is_an_error_that_lists_the_fields():
    with pytest.raises(ValueError, match=r"'long'.*\['raw', 'caption'\]"):
        source = toy.ToySource({"raw": [["a"]], "caption": [["b"]]})
        toy.evaluate("retrieval", source, toy.random_model(), caption_field="long")
