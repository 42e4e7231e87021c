"""Scenes: text is checked by reading it back and comparing with boxes, attributes and pixels."""

import dataclasses
import hashlib
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import simplejpeg

from input_pipeline.scenes.layout import BACKGROUNDS, COLOURS, SHAPES
from input_pipeline.scenes.render import render
from input_pipeline.scenes.text import write_caption
from input_pipeline.sources import make_source
from input_pipeline.sources.scenes import VERSION, Source, describe

SCENES = [describe(split, i) for split in ("train", "val", "test") for i in range(400)]

_RELATION = "left of|right of|above|below"
_PHRASE = f"a ((?:small|large) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
_NAME = f"the ((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


def matching(scene, words):
    """Objects that have all the words: 'red', 'small red circle', 'object', 'red circles', ..."""
    words = {w if w in SHAPES else re.sub("(?<=s)es$|(?<!s)s$", "", w) for w in words.split()}
    return [
        o for o in scene.layout.objects if words <= {o.size, o.colour, o.shape, "object", "objects"}
    ]


def is_related(a, relation, b):
    return {
        "left of": a.box[2] < b.box[0],
        "right of": a.box[0] > b.box[2],
        "above": a.box[3] < b.box[1],
        "below": a.box[1] > b.box[3],
    }[relation]


def caption_claims(caption):
    """(phrases, (phrase, relation, phrase), background) that a caption claims."""
    (relation,) = re.findall(f"{_PHRASE}(?: is)? ({_RELATION}) {_PHRASE}", caption)
    (background,) = re.findall(r"(\w+) background", caption)
    return re.findall(_PHRASE, caption), relation, background


def caption_holds(scene, caption):
    """The weakest reading: every phrase has some object, the relation holds for some pair."""
    phrases, (a, relation, b), background = caption_claims(caption)
    return (
        background == scene.layout.background
        and all(matching(scene, p) for p in phrases)
        and any(is_related(x, relation, y) for x in matching(scene, a) for y in matching(scene, b))
    )


def sentence_holds(scene, sentence):
    if found := re.fullmatch(rf"(?:there is|the picture has|we see) {_PHRASE}", sentence):
        return len(matching(scene, found[1])) == 1
    if found := re.fullmatch(f"{_PHRASE} is in the picture", sentence):
        return len(matching(scene, found[1])) == 1
    if found := re.fullmatch(rf"{_PHRASE} is (?:on|at) the (left|right|top|bottom)", sentence):
        (o,) = matching(scene, found[1])
        x0, y0, x1, y1 = o.box
        return {"left": x1 < 0.5, "right": x0 > 0.5, "top": y1 < 0.5, "bottom": y0 > 0.5}[found[2]]
    for thing in (_PHRASE, _NAME):
        if found := re.fullmatch(f"{thing} is ({_RELATION}) {thing}", sentence):
            (a,), (b,) = matching(scene, found[1]), matching(scene, found[3])
            return is_related(a, found[2], b)
    if found := re.fullmatch(r"there (is|are) (\w+) ([\w ]+)", sentence):
        count = _NUMBERS[found[2]]
        assert (found[1] == "is") == (count == 1)
        return len(matching(scene, found[3])) == count
    if found := re.fullmatch(r"the largest object is a (\w+ \w+)", sentence):
        return matching(scene, found[1]) == [max(scene.layout.objects, key=lambda o: o.extent)]
    if found := re.fullmatch(r"the background is (\w+)", sentence):
        return found[1] == scene.layout.background
    raise AssertionError(f"not understood: {sentence}")


def answer_to(scene, question):
    if found := re.fullmatch(r"how many ([\w ]+) are there\?", question):
        return str(len(matching(scene, found[1])))
    if found := re.fullmatch(rf"is there {_PHRASE}\?", question):
        return "yes" if matching(scene, found[1]) else "no"
    if found := re.fullmatch(
        rf"is {_NAME} (?:left or right of|above or below) {_NAME}\?", question
    ):
        (a,), (b,) = matching(scene, found[1]), matching(scene, found[2])
        sides = ("left of", "right of") if "left" in question else ("above", "below")
        (side,) = [s for s in sides if is_related(a, s, b)]
        return side.removesuffix(" of")
    found = re.fullmatch(r"what (colour|shape) is the ([\w ]+)\?", question)
    if found[2] == "largest object":
        o = max(scene.layout.objects, key=lambda o: o.extent)
    else:
        (o,) = matching(scene, found[2])
    return getattr(o, found[1])


def test_captions_name_every_object_once_and_are_true():
    for scene in SCENES:
        phrases, _, _ = caption_claims(scene.caption)
        kinds = [f"{o.size} {o.colour} {o.shape}" for o in scene.layout.objects]
        assert sorted(phrases) == sorted(kinds)
        assert len({(o.colour, o.shape) for o in scene.layout.objects}) == len(kinds)
        assert caption_holds(scene, scene.caption), scene


def test_sentences_are_true_and_cover_the_scene():
    for scene in SCENES:
        for sentence in scene.sentences:
            assert sentence_holds(scene, sentence), (sentence, scene)
            assert "." not in sentence  # text crops join sentences with full stops
        assert 9 <= len(scene.sentences) == len(set(scene.sentences)) <= 13
        told = set(re.findall(_PHRASE, " ".join(scene.sentences)))
        assert told == {f"{o.size} {o.colour} {o.shape}" for o in scene.layout.objects}


def test_hard_negatives_are_false_and_change_one_attribute():
    vocabulary = [set(COLOURS), set(SHAPES), {"small", "large"}, {"left", "right"}]
    for scene in SCENES:
        right = scene.caption.replace(",", "").split()
        assert len(set(scene.hard_negatives)) == 5
        for kind, wrong in enumerate(scene.hard_negatives):
            assert not caption_holds(scene, wrong), (wrong, scene)
            assert "large" in wrong  # as in every caption: else wrong without looking
            changes = [p for p in zip(right, wrong.replace(",", "").split()) if p[0] != p[1]]
            if kind == 3:  # two colours exchanged
                assert len(changes) == 2 and changes[0] == changes[1][::-1]
                assert set(changes[0]) <= vocabulary[0]
            else:
                (change,) = changes
                allowed = vocabulary[kind] if kind < 3 else vocabulary[3]
                assert set(change) <= allowed or (kind == 4 and set(change) == {"above", "below"})


def test_exchanged_colours_are_never_another_true_caption():
    # Two colours by two shapes, all of one size: exchanging within these four changes nothing.
    scene = next(s for s in SCENES if len(s.layout.objects) == 5)
    kinds = [("green", "star"), *((c, s) for c in ("red", "blue") for s in ("circle", "square"))]
    objects = tuple(
        o._replace(colour=c, shape=s, size="small" if i else "large")
        for i, (o, (c, s)) in enumerate(zip(scene.layout.objects, kinds, strict=True))
    )
    scene = dataclasses.replace(scene, layout=dataclasses.replace(scene.layout, objects=objects))
    for seed in range(50):
        caption, wrong = write_caption(random.Random(seed), scene.layout)
        assert caption_holds(scene, caption)
        assert not any(caption_holds(scene, w) for w in wrong)


def test_answers_are_right():
    for scene in SCENES:
        assert scene.answer == answer_to(scene, scene.question), scene


def test_questions_cannot_be_answered_without_the_image():
    # The best answer to each very question, learnt from other scenes.
    seen = {}
    for scene in (describe("train", i) for i in range(4000, 7000)):
        seen.setdefault(scene.question, Counter())[scene.answer] += 1
    asked = [s for s in SCENES if s.question in seen]
    right = sum(seen[s.question].most_common(1)[0][0] == s.answer for s in asked)
    assert len(asked) > 900
    assert right / len(asked) < 0.45
    yes = Counter(s.answer for s in SCENES if s.question.startswith("is there"))
    assert 0.4 < yes["yes"] / yes.total() < 0.6


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_captions_are_unique_and_labels_balanced_in_any_384_consecutive(split):
    scenes = [describe(split, i) for i in range(200, 1000)]
    for start in (0, 100, 300, 416):
        window = scenes[start : start + 384]
        assert len({s.caption for s in window}) == 384
        assert set(Counter(s.layout.objects[0].shape for s in window).values()) == {48}
        assert set(Counter(s.layout.objects[0].colour for s in window).values()) == {48}
        assert set(Counter(s.layout.background for s in window).values()) == {64}


def test_splits_share_no_scene():
    boxes = [o.box for s in SCENES for o in s.layout.objects]
    assert len(set(boxes)) == len(boxes)


@pytest.mark.parametrize("image_size", [48, 96, 225])
def test_boxes_are_tight_and_the_mask_is_labelled(image_size):
    source = Source("val", size=60, image_size=image_size)
    misses = []
    for i in range(len(source)):
        record = source[i]
        objects, mask, rest = describe("val", i).layout.objects, record["mask"], record["mask"] > 0
        assert mask.shape == (image_size, image_size) and mask.dtype == np.uint8
        assert record["boxes"].dtype == np.float32 and record["boxes"].shape == (len(objects), 4)
        areas = []
        for o, box in zip(objects, record["boxes"] * image_size, strict=True):
            x0, y0 = np.floor(box[:2]).astype(int)
            x1, y1 = np.ceil(box[2:]).astype(int)
            y, x = np.nonzero(mask[y0:y1, x0:x1])
            found = x0 + x.min(), y0 + y.min(), x0 + x.max() + 1, y0 + y.max() + 1
            misses.append(found - box)
            kinds = set(np.unique(mask[y0:y1, x0:x1])) - {0}
            assert kinds == {1 + SHAPES.index(o.shape)}
            areas.append(len(x) / image_size**2)
            rest[y0:y1, x0:x1] = False
        assert not rest.any()  # no mask outside the boxes
        assert max(areas) == areas[0]
        assert record["label"] == SHAPES.index(objects[0].shape)
        assert record["labels"] == (np.unique(mask[mask > 0]) - 1).tolist()
    # In pixels. A sharp point has no pixel centre in its last pixel or so, hence more than 0.5.
    assert np.abs(misses).max() < 1.5
    assert np.abs(misses).mean() < 0.5
    assert np.abs(np.mean(misses, axis=0)).max() < 0.3


def test_objects_are_apart_inside_and_of_the_size_they_are_called():
    for scene in SCENES:
        objects = scene.layout.objects
        assert 3 <= len(objects) <= 5
        sides = [max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in objects]
        assert max(sides) == sides[0] and objects[0].size == "large"
        called = [o.size for o in objects]
        if "small" in called:
            assert max(s for s, c in zip(sides, called, strict=True) if c == "small") < min(
                s for s, c in zip(sides, called, strict=True) if c == "large"
            )
        for i, a in enumerate(objects):
            assert min(a.box) > 0 and max(a.box) < 1
            for b in objects[:i]:
                assert any(is_related(a, r, b) for r in _RELATION.split("|"))
    every = [o for s in SCENES for o in s.layout.objects]
    small = [o.extent for o in every if o.size == "small"]
    large = [o.extent for o in every if o.size == "large"]
    assert max(small) * 1.1 < min(large) and min(small) > 0.14
    assert {len(s.layout.objects) for s in SCENES} == {3, 4, 5}
    assert {o.colour for o in every} == set(COLOURS) and {o.shape for o in every} == set(SHAPES)


def test_colours_in_the_jpeg_are_the_named_ones():
    pure = {
        "red": (255, 0, 0),
        "yellow": (255, 255, 0),
        "green": (0, 128, 0),
        "cyan": (0, 255, 255),
        "blue": (0, 0, 255),
        "purple": (140, 0, 180),
        "black": (0, 0, 0),
        "white": (255, 255, 255),
    }
    source = Source("test", size=100, image_size=96)
    for i in range(len(source)):
        record = source[i]
        image = simplejpeg.decode_jpeg(record["image"], colorspace="RGB")
        assert image.shape == (96, 96, 3)
        inner = cv2.erode(record["mask"], np.ones((3, 3), np.uint8)) > 0
        for o in describe("test", i).layout.objects:
            x0, y0, x1, y1 = np.rint(np.array(o.box) * 96).astype(int)
            colour = np.median(image[y0:y1, x0:x1][inner[y0:y1, x0:x1]], axis=0)
            assert min(pure, key=lambda c: np.abs(colour - pure[c]).sum()) == o.colour


def test_shapes_can_be_told_apart_at_48_pixels():
    # From the image, not the mask: nearest mean silhouette, learnt from other scenes.
    def silhouettes(scenes):
        for scene in scenes:
            image, mask = render(scene.layout, 48)
            for o in scene.layout.objects:
                x0, y0, x1, y1 = np.rint(np.array(o.box) * 48).astype(int)
                ground = np.median(image[mask == 0], axis=0)
                shade = np.abs(image[y0:y1, x0:x1] - ground).sum(axis=-1)
                shade = cv2.resize((shade / shade.max()).astype(np.float32), (12, 12))
                if o.size == "small":
                    yield SHAPES.index(o.shape), shade.ravel()

    label, shade = map(np.array, zip(*silhouettes(SCENES[:400])))
    means = np.stack([shade[label == k].mean(axis=0) for k in range(len(SHAPES))])
    label, shade = map(np.array, zip(*silhouettes(SCENES[400:800])))
    guess = np.argmin(((shade[:, None] - means) ** 2).sum(axis=-1), axis=1)
    assert np.mean(guess == label) > 0.9  # chance is 1 in 8


def test_backgrounds_are_shared_to_the_pixel():
    first = {}
    for scene in SCENES[:60]:
        image, mask = render(scene.layout, 96)
        clear = cv2.dilate(mask, np.ones((5, 5), np.uint8)) == 0
        other, other_clear = first.setdefault(scene.layout.background, (image, clear))
        np.testing.assert_array_equal(image[clear & other_clear], other[clear & other_clear])
    assert set(first) == set(BACKGROUNDS)


def test_record_fields():
    source = make_source("scenes", split="val", size=3)
    for i in range(3):
        record, scene = source[i], describe("val", i)
        assert record["captions"] == {
            "caption": [scene.caption],
            "sentences": scene.sentences,
        }
        assert set(record["nouns"]) == {o.shape for o in scene.layout.objects}
        assert all(p in scene.caption for p in record["phrases"])
        assert len(record["phrases"]) == len(record["boxes"])
        assert record["question"] == scene.question and record["answers"] == [scene.answer]
        assert record["hard_negatives"] == scene.hard_negatives
    assert len({source[i]["id"] for i in range(3)}) == 3
    assert source.class_names == list(SHAPES)
    assert [len(make_source("scenes", split=s)) for s in ("train", "val")] == [100_000, 1_000]


def _digest(records):
    return hashlib.sha256(pickle.dumps([(r["image"], r["captions"]) for r in records])).hexdigest()


def test_same_records_in_any_order_thread_process_and_copy():
    source = Source("train", size=40, image_size=48)
    expected = _digest(source[i] for i in range(40))
    backwards = [source[np.int64(i)] for i in reversed(range(40))]
    assert _digest(backwards[::-1]) == expected
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    with ThreadPoolExecutor(4) as pool:
        assert _digest(pool.map(pickle.loads(packed).__getitem__, range(40))) == expected
    program = (
        "import hashlib, pickle; from input_pipeline.sources.scenes import Source;"
        "s = Source('train', size=99, image_size=48); r = [s[i] for i in range(40)];"
        "r = pickle.dumps([(x['image'], x['captions']) for x in r]);"
        "print(hashlib.sha256(r).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


def test_version_is_raised_with_the_generator():
    # If this fails because scenes changed on purpose, raise VERSION and add its digest.
    told = [
        (
            s.caption,
            s.sentences,
            s.question,
            s.hard_negatives,
            [np.round(o.box, 3).tolist() for o in s.layout.objects],
        )
        for s in SCENES[::10]
    ]
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    # Version 2 has one field more, `labels`.
    assert digest == {1: "3da59bf424bcbef5", 2: "3da59bf424bcbef5"}[VERSION]


def test_fingerprint_follows_what_decides_the_data():
    variants = [{}, {"split": "val"}, {"size": 5}, {"image_size": 48}]
    assert len({Source(**v).fingerprint() for v in variants}) == len(variants)
    assert Source().fingerprint() == Source("train", 100_000, 96).fingerprint()


def test_errors():
    with pytest.raises(ValueError, match="choose one of"):
        Source("dev")
    with pytest.raises(ValueError, match="1 or more"):
        Source(size=0)
    with pytest.raises(ValueError, match="32 pixels"):
        Source(image_size=16)
    for index in (-1, 5):
        with pytest.raises(IndexError, match="there are 5"):
            Source(size=5)[index]
    for index in (-1, 2**40):
        with pytest.raises(IndexError, match="outside"):
            describe("val", index)
    assert describe("val", 2**40 - 1).id == f"scenes-val-{2**40 - 1}"
