"""CogVLM's rows as records come: turns, images in the text, no image, packs."""

import itertools
import pickle
import random

import numpy as np
import pytest

from big_vlp.models import layout
from input_pipeline.records import images_of
from input_pipeline.text import templates
from input_pipeline.text.conversations import Turn
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views import make_views
from input_pipeline.views.cogvlm import Rows
from tests.input_pipeline.prepare.prepare_data import image

TEXT = make_tokenizer("llama:scenes")
BOS, EOS, SLOTS = 1, 2, 6
ROUNDS = [("is it red?", "no"), ("a star?", "yes"), ("how many?", "4")]


def make(context_length=120, max_images=3, tasks=None, image_token_size=14, **kwargs):
    return make_views(
        "cogvlm",
        tokenizer="llama:scenes",
        image_size=28,
        image_token_size=image_token_size,
        context_length=context_length,
        max_images=max_images,
        tasks=tasks or {"conversation": 1},
        **kwargs,
    )


def conversation(rounds, **fields):
    messages = [
        {"role": role, "content": text}
        for both in rounds
        for role, text in zip(("user", "assistant"), both)
    ]
    return {"id": "r7", "captions": {}, "conversation": messages} | fields


def turn(rounds):
    return Turn(*rounds[-1], tuple(rounds[:-1]))


def used(row):
    """Everything in front of padding."""
    size = int((row["token_types"] >= 0).sum())
    assert (row["token_types"][size:] == -1).all() and not row["loss_mask"][size:].any()
    return row["tokens"][:size].tolist(), row["loss_mask"][:size].tolist()


def positions_are_sound(types):
    """What `layout.position_ids` asks for: a language token on both sides of each image."""
    for kind, run in itertools.groupby(range(len(types)), types.tolist().__getitem__):
        where = list(run)
        if kind == 1:
            assert len(where) == SLOTS
            assert types[where[0] - 1] == 0 and types[where[-1] + 1] == 0
    used = types >= 0
    ids = np.asarray(layout.position_ids(types[None]))[0][used]
    language, images = (types == 0).sum(), (types == 1).sum() // SLOTS
    assert len(set(ids)) == language + 3 * images  # boi, patches, eoi


@pytest.mark.parametrize("template", ["chat_old", "vqa", "chat"])
def test_each_answer_of_a_conversation_is_learnt(template):
    """A row of n rounds is, to the token, what each round sees in a row that ends with it; together
    these learn what it learns."""
    rows = Rows("llama:scenes", 28, 120, 14)
    tokens, learnt = used(rows.example(template, turn(ROUNDS), every_round=True))
    start = 1 + SLOTS
    expected, marks = [], []
    for opening, (_, answer) in zip(templates.openings(template, [q for q, _ in ROUNDS]), ROUNDS):
        for ids, mark in ((TEXT.encode(opening), False), ([*TEXT.encode(answer), EOS], True)):
            expected += ids
            marks += [mark] * len(ids)
    assert (tokens[start:], learnt[start:]) == (expected, marks)
    summed = np.zeros(len(tokens), int)
    for count in range(1, 4):
        shorter, mask = used(rows.example(template, turn(ROUNDS[:count]), every_round=True))
        assert shorter == tokens[: len(shorter)]
        before = []
        if count > 1:
            before = used(rows.example(template, turn(ROUNDS[: count - 1]), every_round=True))[1]
        mask = np.array(mask)
        mask[: len(before)] &= ~np.array(before, bool)
        summed[: len(mask)] += mask  # of the last round alone
    np.testing.assert_array_equal(summed, np.array(learnt, int))
    # One round is one round.
    for name, value in rows.example(template, turn(ROUNDS[:1])).items():
        again = rows.example(template, turn(ROUNDS[:1]), every_round=True)
        np.testing.assert_array_equal(value, again[name])


def test_prompts_are_made_of_openings():
    for template in (None, "chat_old", "vqa", "chat"):
        starts = templates.openings(template, [q for q, _ in ROUNDS])
        prompt = templates.make_prompt(template, ROUNDS[-1][0], ROUNDS[:-1])
        joint = "" if template == "chat" else " "
        assert prompt == "".join(
            start + (joint + a) * (i < 2) for i, (start, (_, a)) in enumerate(zip(starts, ROUNDS))
        )
    with pytest.raises(ValueError, match="'base' has no rounds"):
        templates.openings("base", ["a", "b"])


def test_the_last_rounds_go_first():
    whole, _ = used(Rows("llama:scenes", 28, 120, 14).example("vqa", turn(ROUNDS), True))
    kept = []
    for length in range(120, 10, -1):
        rows = Rows("llama:scenes", 28, length, 14)
        example = rows.fitted("vqa", turn(ROUNDS), every_round=True)
        tokens, learnt = used(rows.example("vqa", turn(ROUNDS), every_round=True))
        assert tokens == whole[: len(tokens)]
        kept.append(tokens.count(EOS))
        assert kept[-1] == (0 if example.cut else 3 - example.rounds_left_out)
        assert example.text <= 1 + length and learnt[-1]
    assert sorted(set(kept)) == [0, 1, 2, 3] and kept == sorted(kept, reverse=True)


def test_texts_show_all_turns():
    static = make(max_images=None, history="turns")
    for views in (static, make(history="turns")):
        row = views(conversation(ROUNDS[:2], image=image()), random.Random(0))
        (texts,) = views.texts({name: value[None] for name, value in row.items()})
        shown = "Question: is it red? Answer: | no</s> | \nQuestion: a star? Answer: | yes</s>"
        assert texts == [shown if views is static else f"<image>{shown}"]


def test_one_image_in_front_is_the_static_row():
    record = conversation(ROUNDS, image=image(3))
    for history in ("all", "turns"):
        static, views = make(max_images=None, history=history), make(max_images=1, history=history)
        for seed in range(3):
            one, row = (v(record, random.Random(seed)) for v in (static, views))
            for name, value in one.items():
                np.testing.assert_array_equal(value, row[name])
            np.testing.assert_array_equal(row["segments"], row["token_types"] >= 0)


def test_images_stand_in_the_text():
    pictures = [image(seed) for seed in range(3)]
    rounds = [("is <image 2> red, like <image 1>?", "no"), ("and <image>?", "yes <image 1>")]
    record = conversation(rounds, images=pictures)
    views = make(history="turns")
    row = views(record, random.Random(0))
    positions_are_sound(row["token_types"])
    assert {k: (x.shape, x.dtype) for k, x in row.items()} == views.spec()
    expected = np.concatenate([views.rows.image(pictures[i]) for i in (1, 0, 2)])
    np.testing.assert_array_equal(row["images"], expected)
    (texts,) = views.texts({name: value[None] for name, value in row.items()})
    assert [text.replace(" ", "") for text in texts] == [
        "Question:is<image>red,like<image>?Answer:|no</s>|"
        "\nQuestion:and<image>?Answer:|yes<image1></s>"
    ]
    # Too long: the second round goes, and its image with it.
    short = make(int((row["segments"] > 0).sum()) - 3 * SLOTS - 3, history="turns")
    row = short(record, random.Random(0))
    assert (row["token_types"] == 1).sum() == 2 * SLOTS and not row["images"][2].any()


PICTURES = [image(seed) for seed in range(3)]


def bound(views, record, seed=0):
    """[(the text up to an image, which of PICTURES it is)], and the text behind the last."""
    row = views(record, random.Random(seed))
    positions_are_sound(row["token_types"])
    (texts,) = views.texts({name: value[None] for name, value in row.items()})
    *pieces, rest = " ".join(texts).split("<image>")
    known = [views.rows.image(picture)[0] for picture in PICTURES]
    shown = [
        next(n for n, picture in enumerate(known) if (picture == pixels).all())
        for pixels in row["images"][: len(pieces)]
    ]
    assert not row["images"][len(pieces) :].any()
    return list(zip(pieces, shown)), rest


@pytest.mark.parametrize("history", ["all", "previous", "turns"])
def test_an_image_stands_where_the_record_has_it_whatever_is_drawn(history):
    """The third has no place of its own; an image of later rounds is not shown."""
    rounds = [("red <image>?", "no"), ("a star <image>?", "yes"), ("how many?", "4")]
    record = conversation(rounds, images=PICTURES)
    views, seen = make(200, history=history), set()
    for seed in range(40):
        places, rest = bound(views, record, seed)
        texts = [text for text, _ in places] + [rest]
        seen.add((tuple(number for _, number in places), "star" in "".join(texts)))
        for text, number in places:
            assert ("red" in text) <= (number == 0) or "star" in text
            assert ("star" in text) <= (number == 1)
    everything = {((2, 0, 1), True)}
    if history == "turns":
        assert seen == everything
    elif history == "all":
        assert seen == {((2, 0), False), *everything}
    else:  # the first image stands in front where its round is left out
        assert seen == {((2, 0), False), ((0, 2, 1), True), ((0, 1, 2), False), *everything}


@pytest.mark.parametrize("history", ["all", "turns"])
def test_images_of_questions_in_any_order(history):
    words = ("red", "star", "two")
    asked = [{"question": f"{word} <image>?", "answers": ["yes"] * 3} for word in words]
    record = {"id": "q", "captions": {}, "images": PICTURES, "questions": asked}
    views, orders = make(200, history=history, tasks={"vqa": 1}), set()
    for seed in range(20):
        places, _ = bound(views, record, seed)
        orders.add(tuple(number for _, number in places))
        for text, number in places:
            assert words[number] in text.rpartition("|")[2] and text.count("Question") >= 1
    assert len(orders) == (6 if history == "turns" else 3)


@pytest.mark.parametrize("text", ["a red <image> star", "a <image 1> star", "a <image 2> star"])
def test_the_text_beside_one_image_is_as_it_is(text):
    record = {"id": "c", "captions": {"a": [text]}, "image": PICTURES[0]}
    static, views = (make(max_images=n, tasks={"caption": 1}) for n in (None, 3))
    expected = used(static(record, random.Random(0)))
    assert used(views(record, random.Random(0))) == expected
    assert used(views(pack_of(views, [record]), random.Random(0))) == expected


def test_documents_are_captions_with_images_in_them():
    record = {"id": "d", "images": [image(i) for i in range(4)]}
    record["captions"] = {"text": ["<image> a red star <image><image> two <image> the end"]}
    views = make(tasks={"caption": 1}, max_images=4)
    row = views(record, random.Random(0))
    positions_are_sound(row["token_types"])
    assert not row["loss_mask"][row["token_types"] == 1].any()
    learnt = TEXT.decode(row["tokens"][row["loss_mask"]])
    assert learnt.replace(" ", "") == "aredstartwotheend"
    # The fourth image has no place: the text ends before it, and nobody learns to stop there.
    row = make(tasks={"caption": 1}, max_images=3)(record, random.Random(0))
    assert EOS not in row["tokens"] and (row["token_types"] == 1).sum() == 3 * SLOTS
    with pytest.raises(ValueError, match=r"'d': its prompt has 4 images; with max_images=3"):
        record["captions"] = {"text": ["a red star"]}
        make(tasks={"caption": 1}, max_images=3)(record, random.Random(0))


@pytest.mark.parametrize("field", [{}, {"images": []}])
def test_text_alone_has_vicunas_prompt(field):
    row = make()(conversation(ROUNDS[:1], **field), random.Random(0))
    tokens, learnt = used(row)
    answer = [*TEXT.encode("no"), EOS]
    prompt = TEXT.encode(templates.text_only_prompt("is it red?"))
    assert tokens == [BOS, *prompt, *answer]
    assert learnt == [False] * (1 + len(prompt)) + [True] * len(answer)
    assert not row["images"].any() and not (row["token_types"] == 1).any()


def pack_of(views, records):
    """As `prepare` makes them."""
    examples, images = [], []
    for record in records:
        own = images_of(record)
        fields = {k: v for k, v in record.items() if k not in ("image", "images")}
        fields |= {"image": True} if "image" in record else {"images": len(own)}
        draws = views.draws(fields)
        fields["room"] = [max(d.text for d in draws), max(len(d.images) for d in draws)]
        examples.append(fields)
        images += own
    return {"id": "p+3", "captions": {}, "examples": examples, "images": images}


RECORDS = [
    conversation(ROUNDS, image=image(1)),
    conversation(ROUNDS[:1], id="r8"),
    conversation([("<image> or <image>?", "no")], id="r9", images=[image(2), image(3)]),
]


def test_a_pack_is_its_records_behind_each_other():
    views, one = make(200, history="turns"), make(200, history="turns", max_images=3)
    pack = pack_of(views, RECORDS)
    row = views(pack, random.Random(0))
    again = pickle.loads(pickle.dumps(views))(pack, random.Random(0))
    positions_are_sound(row["token_types"])
    assert {k: (x.shape, x.dtype) for k, x in row.items()} == views.spec()
    pictures = []
    for number, record in enumerate(RECORDS, 1):
        alone = one(record, random.Random(0))
        here, size = row["segments"] == number, int((alone["segments"] > 0).sum())
        assert here.sum() == size
        for name in ("tokens", "token_types", "loss_mask"):
            np.testing.assert_array_equal(row[name][here], alone[name][:size])
        pictures.append(alone["images"][: int((alone["token_types"] == 1).sum()) // SLOTS])
    np.testing.assert_array_equal(row["images"], np.concatenate(pictures))
    assert (np.diff(row["segments"][row["segments"] > 0]) >= 0).all()
    np.testing.assert_array_equal(row["segments"] == 0, row["token_types"] == -1)
    (texts,) = views.texts({name: value[None] for name, value in row.items()})
    assert len(texts) == 3 and texts[0].startswith("<image>Question: is it red? Answer: | no</s>")
    for name, value in row.items():
        np.testing.assert_array_equal(value, again[name])


def test_what_is_drawn_fits_its_room():
    views = make(40, tasks={"caption": 1})
    texts = ["star " * n for n in range(1, 12)]
    record = {"id": "c", "captions": {"a": texts}, "image": image()}
    pack = pack_of(views, [record])
    (room, _), lengths = pack["examples"][0]["room"], set()
    for seed in range(60):
        row = views(pack, random.Random(seed))
        lengths.add(int((row["token_types"] == 0).sum()))
        assert row["tokens"][row["loss_mask"]][-1] == EOS
    assert max(lengths) == room and len(lengths) > 3


def test_what_is_drawn_fits_its_images():
    """A rare draw shows one more than those that the pack has room for."""
    rounds = [("is it red?", "no")] * 40 + [("red <image>?", "no")]
    record = conversation(rounds, id="r1", images=PICTURES[:1])
    views = make(120, max_images=1, history="previous")
    pack = pack_of(views, [record])
    (example,) = pack["examples"]
    assert example["room"][1] == 0  # eight draws of forty-one
    seeds = range(100)
    assert any(views(record, random.Random(seed))["images"].any() for seed in seeds)
    for seed in seeds:
        assert not views(pack, random.Random(seed))["images"].any()


def test_draws_that_fit_no_row_are_drawn_again():
    """Also where most do not."""
    asked = [{"question": "red " * 400, "answers": ["no"]}] * 5
    asked.append({"question": "red?", "answers": ["yes"]})
    record = {"id": "q", "captions": {}, "images": [], "questions": asked}
    views = make(200, tasks={"vqa": 1})
    assert 0 < len(views.draws(record)) < 8
    pack = pack_of(views, [record])
    for seed in range(50):
        assert "yes" in TEXT.decode(views(pack, random.Random(seed))["tokens"])
    with pytest.raises(ValueError, match=r"^Record 'q': its prompt .* has \d+ tokens"):
        views.draws({**record, "questions": asked[:5]})
    pack["examples"][0]["room"] = [4, 0]
    with pytest.raises(ValueError, match="'q': its pack has room for 4 tokens and 0 images"):
        views(pack, random.Random(0))
    # A record may have such a field, and be none.
    assert views({**record, "questions": asked[5:], "room": "kitchen"}, random.Random(0))


def test_text_without_a_tower():
    record = conversation(ROUNDS[:1], images=[])
    views = make(max_images=None, image_token_size=None)
    row = views(record, random.Random(0))
    assert "red" in TEXT.decode(row["tokens"]) and "images" not in row
    with pytest.raises(ValueError, match=r"'r7' is a pack, or has several images or none"):
        make(max_images=None)(record, random.Random(0))


def test_what_cannot_be():
    record = conversation(ROUNDS, images=[image(1), image(2)])
    for given in (record, pack_of(make(), RECORDS)):
        with pytest.raises(ValueError, match=r"set config\.views\.max_images"):
            make(max_images=None)(given, random.Random(0))
    with pytest.raises(ValueError, match=r"'r7': .* says <image>, but it has 1 images"):
        make()(conversation([("<image><image>", "a")], images=[image()]), random.Random(0))
    with pytest.raises(ValueError, match="max_images=0 must be 1 or more"):
        make(max_images=0)
    with pytest.raises(ValueError, match="the template of 'conversation', 'base', does not know"):
        make(history="turns", templates={"conversation": "base"})
    pack = pack_of(make(), RECORDS)
    with pytest.raises(ValueError, match=r"'p.3': a row has .* tokens, and this needs more"):
        make(20)({**pack, "examples": pack["examples"][:1] * 3}, random.Random(0))
