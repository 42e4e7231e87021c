"""Several sources as one: ids, errors, and the order in which a weighted mixture is shown."""

import itertools
import json
import pickle
import random
from collections import Counter

import ml_collections
import numpy as np
import pytest

from big_vlp.recipes import SCENES_VOCABULARY
from input_pipeline import order
from input_pipeline.order import MixedOrder
from input_pipeline.sources import make_source


def scenes(size, **more):
    return {"name": "scenes", "size": size, "image_size": 32, **more}


def mixture(*components, **more):
    return make_source("mixture", sources=components, **more)


def test_records_follow_each_other():
    source = mixture(scenes(3), scenes(2, split="val"))
    assert len(source) == 5
    found = [source[i]["id"] for i in range(5)]
    assert found[:3] == [f"0:scenes-train-{i}" for i in range(3)]
    assert found[3:] == ["1:scenes-val-0", "1:scenes-val-1"]
    alone = make_source(**scenes(2, split="val"))[1]
    assert {**source[4], "id": alone["id"]}.keys() == alone.keys()
    assert source[4]["image"] == alone["image"]


def test_what_tells_about_stored_labels_is_passed_on():
    """Where all parts were prepared with one vocabulary."""
    words = {"name": "mined_labels", "vocabulary": SCENES_VOCABULARY}
    labelled = [{**words, "data": scenes(n)} for n in (3, 4)]
    source = mixture(*labelled)
    assert source.label_rule == make_source(**labelled[0]).label_rule
    assert source.label_rule["size"] == len(source.class_names) == 37
    assert mixture(labelled[0], scenes(2)).label_rule is None


def test_equal_components_have_different_ids():
    source = mixture(scenes(3), scenes(3))
    assert len({source[i]["id"] for i in range(6)}) == 6


def test_fractions_of_components_and_of_the_whole():
    part = make_source(**scenes(200), fraction=0.1)
    assert len(mixture(scenes(200, fraction=0.1), scenes(5))) == len(part) + 5
    whole = mixture(scenes(200), scenes(5), fraction=0.1)
    assert 0 < len(whole) < 60
    assert whole.weights is None


def test_class_names_are_there_if_all_agree(tmp_path):
    assert mixture(scenes(1), scenes(2)).class_names == make_source(**scenes(1)).class_names
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a.jpg", "caption": "a"}]))
    nameless = {"name": "coco", "annotations": tmp_path / "a.json", "images": tmp_path}
    assert mixture(scenes(1), nameless).class_names is None
    assert mixture(nameless, scenes(1)).class_names is None


def test_the_fingerprint_covers_components_order_and_weights():
    variants = [
        mixture(scenes(3), scenes(2)),
        mixture(scenes(2), scenes(3)),
        mixture(scenes(3), scenes(2), scenes(1)),
        mixture(scenes(3, weight=1), scenes(2, weight=2)),
        mixture(scenes(3, weight=1), scenes(2, weight=3)),
    ]
    assert len({source.fingerprint() for source in variants}) == len(variants)
    assert mixture(scenes(3), scenes(2)).fingerprint() == variants[0].fingerprint()


def test_the_section_of_a_config_is_enough():
    """As a config holds it; the dicts are not changed, so it can be built again."""
    data = ml_collections.ConfigDict(
        {"name": "mixture", "sources": [scenes(3, weight=1), scenes(2, weight=2)]}
    ).to_dict()
    first = make_source(**data)
    assert first.weights == [1, 2]
    assert make_source(**data).fingerprint() == first.fingerprint()


def test_pickling_keeps_what_the_loader_reads():
    source = mixture(scenes(3, weight=1), scenes(2, weight=0.5))
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.weights, copy.lengths) == ([1, 0.5], [3, 2])
    assert copy[4]["image"] == source[4]["image"]
    assert copy.fingerprint() == source.fingerprint()


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range.*5 records"):
        mixture(scenes(3), scenes(2))[index]


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([], "needs at least one source"),
        ([scenes(1), {"size": 3}], "Source 1 of the mixture has no `name`"),
        ([scenes(1, weight=1), scenes(1), scenes(1)], r"Sources \[1, 2\] .* have no weight"),
        ([scenes(1, weight=0), scenes(1, weight=1)], "Source 0.*weight=0 must be above 0"),
        ([scenes(1, weight=-2.5)], "weight=-2.5 must be above 0"),
        ([scenes(1, weight=float("inf"))], "weight=inf must be above 0"),
        ([scenes(1, weight=float("nan"))], "weight=nan must be above 0"),
        ([scenes(1, weight="3")], "weight='3' is no number"),
        ([scenes(1), scenes(-1)], "Source 1 of the mixture: scenes: size is -1"),
        ([{"name": "no_such"}], "Source 0 of the mixture: Unknown data source 'no_such'"),
        (
            [{"name": "mixture", "sources": [scenes(1, weight=1)]}],
            "Source 0 of the mixture is a weighted mixture itself",
        ),
    ],
)
def test_errors(components, message):
    with pytest.raises(ValueError, match=message):
        mixture(*components)


def test_errors_of_components_keep_their_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="Source 1 of the mixture:"):
        mixture(scenes(1), {"name": "prepared", "path": tmp_path})
    with pytest.raises(TypeError, match=r"Source 0 of the mixture:.*colour"):
        mixture(scenes(1, colour="red"))


def test_a_weighted_mixture_takes_no_fraction():
    with pytest.raises(ValueError, match="give `fraction` to each of its sources"):
        mixture(scenes(3, weight=1), fraction=0.5)


def random_weights(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 8)
    if seed % 2:
        return [rng.randint(1, 40) for _ in range(count)]
    # From even to one that dwarfs the others.
    return [round(10 ** rng.uniform(-2, rng.choice([-1.5, 1.5])), 3) for _ in range(count)]


@pytest.mark.parametrize("seed", range(30))
def test_every_component_has_its_share_of_any_prefix_to_less_than_one(seed):
    weights = random_weights(seed)
    component, rank, counts = order._interleave(tuple(weights))
    shares = np.array(weights) / sum(weights)
    shown = np.stack([np.cumsum(component == k) for k in range(len(weights))], axis=1)
    expected = np.arange(1, len(component) + 1)[:, None] * shares
    assert len(component) <= order.MAX_PERIOD
    assert np.abs(shown - expected).max() < 1
    np.testing.assert_array_equal(shown[-1], counts)
    np.testing.assert_array_equal(rank, shown[np.arange(len(component)), component] - 1)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([3, 12.4, 15], [15, 62, 75]),
        ([2e6, 1e6], [2, 1]),
        ([5], [1]),
        # Shares by 1/100,000 where the exact period would be longer.
        ([2823019, 10009225, 14065827], [10495, 37212, 52293]),
        ([1, 1e-9], [100_000, 1]),
    ],
)
def test_weights_become_whole_numbers(weights, parts):
    assert order._whole_parts(weights) == parts


LENGTHS, WEIGHTS = [20, 50, 30], [0.5, 0.2, 0.3]


def test_no_record_is_shown_again_before_its_epoch_is_over():
    mixed = MixedOrder(LENGTHS, WEIGHTS, seed=3)
    shown = [mixed[p] for p in range(400)]
    for first, length in zip((0, 20, 70), LENGTHS):
        own = [index for index in shown if first <= index < first + length]
        epochs = [own[i : i + length] for i in range(0, len(own), length)]
        full = [epoch for epoch in epochs if len(epoch) == length]
        assert len(full) >= 1
        for epoch in full:
            assert sorted(epoch) == list(range(first, first + length))
        assert len(set(map(tuple, full))) == len(full)
        assert len(set(epochs[-1])) == len(epochs[-1])
    assert Counter(np.searchsorted([20, 70], shown, side="right").tolist()) == {
        0: 200,
        1: 80,
        2: 120,
    }


def test_positions_can_be_asked_for_in_any_order():
    mixed, again = (MixedOrder(LENGTHS, WEIGHTS, seed=3) for _ in range(2))
    positions = [*range(150), 10**12, 10**12 + 1]
    expected = [mixed[p] for p in positions]
    random.Random(0).shuffle(shuffled := list(range(len(positions))))
    for i in shuffled:
        assert again[positions[i]] == expected[i]


def test_seeds_and_components_are_shuffled_differently():
    one, other = (MixedOrder([40, 40], [1, 1], seed=s) for s in (1, 2))
    shown = [[mixed[p] for p in range(80)] for mixed in (one, other)]
    assert shown[0] != shown[1]
    first, second = ([i % 40 for i in shown[0] if i // 40 == k] for k in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_neighbours_in_time_come_from_different_components():
    """Interleaved, not drawn in blocks: a batch is a sample of the mixture."""
    component, _, _ = order._interleave((1, 1))
    assert all(a != b for a, b in itertools.pairwise(component))
