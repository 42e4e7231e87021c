"""Which rows of a pretrained classifier stand for the classes of another task."""

import collections
import importlib.resources

import pytest

from input_pipeline.words import matching, synsets

NOUNS = synsets.load()
DOG, CAT, ANIMAL, KITCHEN, RESTAURANT = (
    NOUNS.key_of(word) for word in ("dog", "cat", "animal", "kitchen", "restaurant")
)


def match(name, vocabulary, **more):
    (rows,) = matching.match_classes([name], vocabulary, **more)
    return rows


def test_the_distances_of_imagenets_classes():
    """Vocabulary: every synset that is the first sense of the single word it is named after."""
    folder = importlib.resources.files("tensorflow_datasets") / "datasets" / "imagenet2012"
    wnids = (folder / "labels.txt").read_text().split()
    assert len(wnids) == 1000 and wnids[0] == "n01440764"
    vocabulary = [key for word, key in NOUNS._keys.items() if key and "_" not in word]
    assert len(vocabulary) == 38_343
    matches = matching.match_classes(wnids, vocabulary)
    distances = collections.Counter(round(1 / similarity) - 1 for ((_, similarity),) in matches)
    assert distances == {0: 395, 1: 381, 2: 195, 3: 26, 4: 3}
    for wnid, ((row, similarity),) in list(zip(wnids, matches))[::97]:
        own = f"n{int(wnid[1:])}"
        assert NOUNS.path_similarity(own, vocabulary[row]) == pytest.approx(similarity)


def test_every_synset_of_a_name_counts_once():
    vocabulary = [DOG, KITCHEN, RESTAURANT]
    expected = [(2, 1.0), (1, 1.0)]
    assert match("restaurant kitchen", vocabulary) == expected
    assert match("restaurant_kitchen", vocabulary) == expected
    assert match("/r/restaurant_kitchen", vocabulary) == expected
    assert match("Kitchens/restaurant kitchen", vocabulary) == expected[::-1]
    # Both go to one row, by ways of different length; the shorter counts.
    (row,) = match("cat dog", [KITCHEN, DOG])
    assert row == (1, 1.0)
    assert 0 < NOUNS.path_similarity(CAT, DOG) < 1


def test_names_without_a_noun_match_nothing():
    names = ["qwrtzy", "indoor", "couch", ""]  # a couch is a sofa: see Nouns.key_of
    assert matching.match_classes([*names, "dog"], [CAT, DOG]) == [[], [], [], [], [(1, 1.0)]]


def test_ties_go_to_the_more_frequent():
    hound, terrier = NOUNS.key_of("hound"), NOUNS.key_of("terrier")
    near = NOUNS.path_similarity("n2087122", terrier)  # hunting dog is above both
    assert match("n02087122", [CAT, hound, terrier]) == [(1, near)]
    assert match("n02087122", [terrier, CAT, hound]) == [(0, near)]
    assert match("n02084071", [ANIMAL, DOG, DOG]) == [(1, 1.0)]


def test_similarity_has_a_floor():
    similarity = NOUNS.path_similarity(DOG, CAT)
    for floor, expected in ((0.0, [(0, similarity)]), (similarity, [(0, similarity)]), (0.9, [])):
        assert match("dog", [CAT], min_similarity=floor) == expected
    # The other synset of the name stays.
    assert match("restaurant dog", [DOG], min_similarity=0.9) == [(0, 1.0)]


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="no vocabulary to match"):
        match("dog", [])
    with pytest.raises(ValueError, match=r"Class 'n00000042' is no noun of WordNet 3.0"):
        match("n00000042", [DOG])
    with pytest.raises(ValueError, match="'dog' is not the key of a noun synset"):
        match("dog", ["dog"])
    for floor in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"min_similarity={floor}"):
            match("dog", [DOG], min_similarity=floor)


def test_hyphens_divide_words():
    """Places365 writes its folders so."""
    building = NOUNS.key_of("building")
    assert match("apartment_building-outdoor", [DOG, building])[0][0] == 1
    assert 1.0 in [similarity for _, similarity in match("x_building-outdoor", [DOG, building])]
