"""The table of nouns: counts that are known of WordNet 3.0, lemmas, names and paths."""

import os
import random
import runpy
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from input_pipeline.words import synsets

NOUNS = synsets.load()


@pytest.fixture(scope="module")
def imagenet():
    """Keys of ImageNet's 1,000 classes."""
    folder = Path(tfds.__file__).parent / "image_classification"
    names = (folder / "imagenet_resized_labels.txt").read_text().split()
    return [f"n{int(name[1:])}" for name in names]


@pytest.fixture(scope="module")
def reachable():
    """Keys of the synsets that are the first sense of the single word they are named after."""
    return sorted({key for lemma, key in NOUNS._keys.items() if key and "_" not in lemma})


def test_the_table_is_wordnet_3_0(reachable):
    assert len(NOUNS) == 82_115
    assert sum(key is not None for key in NOUNS._keys.values()) == 64_221
    assert len(reachable) == 38_343
    assert "n2084071" in NOUNS and "n02084071" not in NOUNS


def test_the_lemmatiser_destroys_a_few_words():
    words = [lemma for lemma, key in NOUNS._keys.items() if key and "_" not in lemma]
    assert sum(NOUNS.key_of(word) != NOUNS._keys[word] for word in words) == 361


@pytest.mark.parametrize(
    ("token", "lemma", "name"),
    [
        ("dog", "dog", "dog.n.01"),
        ("dogs", "dog", "dog.n.01"),
        ("geese", "goose", "goose.n.01"),  # irregular
        ("loaves", "loaf", None),  # -ves; the first sense is named loaf_of_bread
        ("women", "woman", "woman.n.01"),
        ("men", "men", None),  # a lemma itself, of work_force
        ("glasses", "glass", "glass.n.01"),
        ("jeans", "jean", "jean.n.01"),
        ("boss", "bos", "bos.n.01"),
        ("physics", "physic", None),
        ("as", "a", None),
        ("cherries", "cherry", "cherry.n.01"),
        ("dishes", "dish", "dish.n.01"),
        ("churches", "church", "church.n.01"),
        ("churchess", "church", "church.n.01"),  # endings come off until there is a lemma
        ("couch", "couch", None),  # named sofa
        ("bikes", "bike", None),  # named motorcycle
        ("ice_cream", "ice_cream", "ice_cream.n.01"),
        ("9/11", "9/11", "9/11.n.01"),
        ("Dog", "Dog", None),  # tokens are lower-case
        ("frisbeeing", "frisbeeing", None),
        ("", "", None),
        ("s" * 100_000, "s" * 100_000, None),
    ],
)
def test_tokens(token, lemma, name):
    assert NOUNS.lemmatise(token) == lemma
    key = NOUNS.key_of(token)
    assert (key and NOUNS.name(key)) == name


def test_names_say_which_sense_of_their_word_it_is():
    assert NOUNS.name("n1740") == "entity.n.01"
    assert NOUNS.name("n2137") == "abstraction.n.06"
    assert len({NOUNS.name(key) for key in NOUNS._rows}) == len(NOUNS)


@pytest.mark.parametrize("key", ["n02084071", "n2084072", "dog.n.01", "", None, 3])
def test_keys_that_are_none_are_an_error(key):
    for ask in (
        lambda: NOUNS.name(key),
        lambda: NOUNS.path_distance("n2084071", key),
        lambda: NOUNS.nearest(key, ["n2084071"]),
        lambda: NOUNS.nearest("n2084071", [key]),
    ):
        with pytest.raises(ValueError, match="not the key of a noun synset of WordNet"):
            ask()


def key(word):
    found = NOUNS.key_of(word)
    assert found
    return found


def test_paths():
    dog, cat, poodle = key("dog"), key("cat"), key("poodle")
    assert NOUNS.path_distance(dog, dog) == 0
    assert NOUNS.path_distance(poodle, dog) == NOUNS.path_distance(dog, poodle) == 1
    # dog, canine, carnivore, feline, cat
    assert NOUNS.path_distance(dog, cat) == 4
    assert NOUNS.path_similarity(dog, cat) == 1 / 5
    # A river is an instance of river, not a kind of it.
    assert NOUNS.path_distance(key("thames"), key("river")) == 1
    # Both ways up to entity, where physical and abstract things meet.
    happiness, chair, entity = key("happiness"), key("chair"), "n1740"
    both = NOUNS.path_distance(happiness, entity) + NOUNS.path_distance(chair, entity)
    assert NOUNS.path_distance(happiness, chair) == both == 16


def test_the_nearest_is_the_one_that_all_pairs_say():
    rng = random.Random(0)
    candidates = rng.sample(sorted(NOUNS._rows), 200)
    for target in rng.sample(sorted(NOUNS._rows), 50):
        distances = [NOUNS.path_distance(target, candidate) for candidate in candidates]
        best = min(distances)
        expected = candidates[distances.index(best)], 1 / (1 + best)
        assert NOUNS.nearest(target, candidates) == expected


def test_of_equally_near_ones_the_first_wins():
    siblings = [key("poodle"), key("corgi"), key("pug")]
    for order in (siblings, siblings[::-1]):
        assert NOUNS.nearest(key("dog"), order) == (order[0], 1 / 2)


def test_nearest_needs_candidates():
    with pytest.raises(ValueError, match="no candidates"):
        NOUNS.nearest("n2084071", [])


def test_how_near_the_classes_of_imagenet_are(imagenet, reachable):
    started = time.monotonic()
    distances = Counter(round(1 / NOUNS.nearest(name, reachable)[1]) - 1 for name in imagenet)
    assert distances == {0: 395, 1: 381, 2: 195, 3: 26, 4: 3}
    assert time.monotonic() - started < 10


def test_the_table_is_made_of_the_published_files(tmp_path):
    folder = Path(os.environ.get("BIG_VLP_WORDNET", "/usr/share/wordnet"))
    if not (folder / "data.noun").is_file():
        pytest.skip("BIG_VLP_WORDNET names no folder with index.noun, data.noun and noun.exc")
    data = Path(synsets.__file__).parents[1] / "data"
    script = shutil.copy(data / "make_wordnet_nouns.py", tmp_path)
    made = runpy.run_path(str(script))["main"]
    made(folder, tmp_path / "table")
    # Compared as text: releases of zlib compress differently.
    assert synsets.Nouns(tmp_path / "table").checksum == NOUNS.checksum


def test_other_releases_are_refused(tmp_path):
    (tmp_path / "index.noun").write_text("  1 licence\nentity n 1 1 ~ 1 1 00001740\n")
    (tmp_path / "data.noun").write_text("00001740 03 n 01 entity 0 000 | that which is\n")
    (tmp_path / "noun.exc").write_text("")
    data = Path(synsets.__file__).parents[1] / "data"
    make = runpy.run_path(str(data / "make_wordnet_nouns.py"))["main"]
    with pytest.raises(SystemExit, match="does not hold WordNet"):
        make(tmp_path, tmp_path / "table")
