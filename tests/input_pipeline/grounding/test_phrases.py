"""Noun phrases: the chunker on captions with the phrases that people would mark, and spaCy's."""

import time
import types

import pytest

from input_pipeline.grounding import chunks, phrases
from input_pipeline.grounding.phrases import Kind
from input_pipeline.words import tagging

# Caption, and its phrases behind each other.
CAPTIONS = """
a man who is holding a red umbrella | a man | a red umbrella
a dog that catches a yellow frisbee | a dog | a yellow frisbee
the cat, which sleeps on the sofa, is grey | the cat | the sofa
the girl whose dress is blue | the girl | dress
a boy whom his mother calls | a boy | mother
two dogs play with a frisbee in the park | two dogs | a frisbee | the park
Two men in suits are shaking hands | Two men | suits | hands
3 zebras grazing | 3 zebras
there are several cars parked along the road | several cars | the road
six small brown puppies in a wicker basket | six small brown puppies | a wicker basket
three people standing next to a stop sign | three people | a stop sign
people skiing down a snow covered slope | people | a snow covered slope
a woman's hat lies on the table next to the dog's bowl | a woman's hat | the table | the dog's bowl
the boys' bikes | the boys' bikes
the man's hat and his brother's shoes | the man's hat | brother's shoes
her mother's old car | mother's old car
he is riding his bike down a street with parked cars | bike | a street | parked cars
She holds it in her left hand | left hand
another man looks at them | another man
it is raining on us |
a baby elephant walks behind its mother | a baby elephant | mother
a red fire hydrant on the sidewalk | a red fire hydrant | the sidewalk
a very large teddy bear | a very large teddy bear
a man in a suit and tie stands near a parking meter | a man | a suit | tie | a parking meter
a hot dog with mustard | a hot dog | mustard
a living room with a couch and a flat screen tv | a living room | a couch | a flat screen tv
a double-decker bus | a double-decker bus
a double decker bus drives past a clock tower | a double decker bus | a clock tower
the tennis player swings his racket at the ball | the tennis player | racket | the ball
a person holding a cell phone | a person | a cell phone
a street sign near the traffic light | a street sign | the traffic light
a cup of coffee and a plate of pancakes | a cup | coffee | a plate | pancakes
a group of people watching a baseball game | a group | people | a baseball game
a bunch of bananas hanging from a tree | a bunch | bananas | a tree
a pair of scissors lies on top of the desk | a pair | scissors | the desk
one of the dogs is sleeping | the dogs
A black and white cat sitting on a wooden bench. | A black and white cat | a wooden bench
a big, brown dog jumps over a fallen tree | a big, brown dog | a fallen tree
an old, rusty truck parked in tall grass | an old, rusty truck | tall grass
a half eaten apple | a half eaten apple
brightly colored umbrellas on a beach | brightly colored umbrellas | a beach
this is a photo of an orange | a photo | an orange
a man riding horses | a man | horses
a kite flying high in the blue sky over the ocean | a kite | the blue sky | the ocean
a smiling woman in a white dress | a smiling woman | a white dress
Kids playing soccer | Kids | soccer
a broken window | a broken window
the running water in the sink | the running water | the sink
no people are on the beach | no people | the beach
each child has a balloon | each child | a balloon
A Man Riding A Wave On Top Of A Surfboard | A Man | A Wave | A Surfboard
a woman wearing a hat and sunglasses talks | a woman | a hat | sunglasses
a bowl filled with fruit | a bowl | fruit
a plate filled with rice and beans | a plate | rice | beans
the largest object is a red circle | the largest object | a red circle
there are two small objects | two small objects
we see a small white cross | a small white cross
a large cyan cross is left of a blue ring | a large cyan cross | a blue ring
a small green heart right of a black star | a small green heart | a black star
an elderly man with glasses reads a newspaper | an elderly man | glasses | a newspaper
the dogs' toys are scattered across the floor | the dogs' toys | the floor
a train is coming down the tracks | a train | the tracks
Woman drinking coffee in cafe | Woman | coffee | cafe
a cat watches tv | a cat | tv
Group of friends drinking beer | Group | friends | beer
a woman cooks dinner | a woman | dinner
a toilet, sink and mirror | a toilet | sink | mirror
two men cook dinner | two men | dinner
a woman drinks hot coffee | a woman | hot coffee
a toy sports car near a skating rink | a toy sports car | a skating rink
horses and cows stand in a field | horses | cows | a field
"""
ROWS = [[part.strip() for part in line.split("|")] for line in CAPTIONS.strip().splitlines()]
PIPELINE = phrases.make_pipeline("chunker")


def found(caption):
    return phrases.find(caption, PIPELINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_chunks(row):
    caption, *expected = row
    assert [phrase.text for phrase in found(caption)] == [text for text in expected if text]


def test_spans_are_those_of_the_caption():
    for caption, *_ in ROWS:
        for phrase in found(caption):
            assert caption[phrase.start : phrase.end] == phrase.text


@pytest.mark.parametrize(
    ("caption", "numbers"),
    [
        ("two dogs, 3 cats, dogs and a cat", [2, 3, None, 1]),
        ("several men and the women", [None, None]),
        ("grass, scissors and one tree", [1, None, 1]),
        ("twenty birds", [None]),
    ],
)
def test_numbers(caption, numbers):
    assert [phrase.number for phrase in found(caption)] == numbers


@pytest.mark.parametrize(
    ("caption", "vague"),
    [("another man", 1), ("no dogs", 1), ("the other boy", 1), ("one dog", 0), ("his dog", 0)],
)
def test_phrases_that_name_nothing_by_themselves(caption, vague):
    assert [phrase.is_vague for phrase in found(caption)] == [bool(vague)]


@pytest.mark.parametrize(
    ("label", "noun", "words"),
    [
        ("red circle", "circle", "red circle"),
        ("Two Dogs", "dog", "dog"),
        ("people", "person", "person"),
        ("glass of water", "glass", "glass"),
        ("a cross", "cross", "cross"),
        ("crosses", "cross", "cross"),
        ("hot dog", "hot dog", "hot dog"),  # no dog
        ("blue sky", "sky", "blue sky"),  # a sky
        ("pies", "pie", "pie"),
        ("???", "?", "?"),
    ],
)
def test_kinds_of_labels(label, noun, words):
    assert phrases.kind_of(label) == Kind(noun, frozenset(words.split()))


def test_a_label_and_a_phrase_of_the_same_words_are_of_one_kind():
    for words in ("fire hydrant", "blue cross", "two dogs", "tomatoes", "red buses", "stop sign"):
        (phrase,) = found(f"a photo of the {words}")[1:]
        assert phrase.kind == phrases.kind_of(words)


def test_nouns_below_others():
    assert phrases.is_kind("man", "person") and phrases.is_kind("dog", "animal")
    assert not phrases.is_kind("person", "man") and not phrases.is_kind("man", "man")
    assert not phrases.is_kind("dog", "no such noun")
    for person in ("boy", "kid", "guy", "woman"):
        assert phrases.is_kind(person, "person")


def test_a_compound_is_of_the_kind_of_its_last_word_in_any_sense():
    for label, noun in (("dining table", "table"), ("baseball bat", "bat"), ("tennis racket",) * 2):
        assert phrases.kind_of(label).noun == noun.split()[-1]
    assert phrases.kind_of("hot dog").noun == "hot dog"


def test_nouns_of_one_synset_are_the_same():
    for one, other in (("couch", "sofa"), ("phone", "telephone"), ("bike", "bicycle")):
        assert phrases.is_same(one, other) and not phrases.is_kind(one, other)
    assert not phrases.is_same("bat", "table")


class Word:
    """As spaCy's tokens, as far as they are read."""

    is_space = False

    def __init__(self, text, idx, tag_):
        self.text, self.idx, self.tag_ = text, idx, tag_


def test_noun_chunks_of_spacy_become_phrases_as_our_own_do():
    """On its tags: with the pronouns and possessives of its chunks."""
    caption = "he sees also two dogs and his brother's hat"

    class Document:
        noun_chunks = (
            (Word("he", 0, "PRP"),),
            (Word("also", 8, "RB"), Word("two", 13, "CD"), Word("dogs", 17, "NNS")),
            (
                *(Word("his", 26, "PRP$"), Word("brother", 30, "NN")),
                *(Word("'s", 37, "POS"), Word("hat", 40, "NN")),
            ),
        )

    def pipeline(text):
        assert text == caption
        return phrases.spacy_chunks(Document)

    dogs, hat = phrases.find(caption, pipeline)
    assert (dogs.text, dogs.number, dogs.kind.noun) == ("two dogs", 2, "dog")
    assert (hat.text, hat.number, hat.kind.noun) == ("brother's hat", 1, "hat")


def test_spacy_itself():
    spacy = pytest.importorskip("spacy")
    names = spacy.util.get_installed_models()
    if not names:
        pytest.skip("there is no spaCy model")
    for name in names:
        pipeline = phrases.make_pipeline(f"spacy:{name}")
        texts = [phrase.text for phrase in phrases.find("a dog and his two red balls", pipeline)]
        assert texts == ["a dog", "two red balls"]


def test_versions_of_all_that_decides_what_is_found(monkeypatch):
    assert phrases.versions("chunker").keys() == {"textblob"}
    monkeypatch.setattr(phrases.importlib.metadata, "version", lambda name: f"{name} 1")
    monkeypatch.setattr(phrases, "_spacy", lambda *_: types.SimpleNamespace(meta={"version": "3"}))
    expected = {"textblob": "textblob 1", "spacy": "spacy 1", "a_model": "3"}
    assert phrases.versions("spacy:a_model") == expected


def test_pipelines_that_are_not_there(monkeypatch):
    for name in ("nltk", "spacy", "spacy:"):
        with pytest.raises(ValueError, match="choose chunker, or spacy:MODEL"):
            phrases.make_pipeline(name)
    with pytest.raises(ValueError, match="no_such_model"):
        phrases.make_pipeline("spacy:no_such_model")
    monkeypatch.setattr(tagging.importlib.util, "find_spec", lambda name: None)
    for name in ("chunker", "spacy:en_core_web_sm"):
        with pytest.raises(ValueError, match=rf"{name} needs .*big_vlp\[pos\]"):
            phrases.make_pipeline.__wrapped__(name)


@pytest.mark.parametrize("word", ["1 ", "red ", "very red, ", "dog's ", "a ", "dog filled "])
def test_long_texts_take_no_longer_for_each_word(word):
    found(word * 10)
    started = time.perf_counter()
    found(word * 50_000)
    assert time.perf_counter() - started < 1


def test_a_text_of_no_words_has_no_phrase():
    assert not found("") and not found("?!") and not chunks.of("  ")
