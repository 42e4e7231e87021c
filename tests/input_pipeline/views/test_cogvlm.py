"""CogVLM views: layout, what counts in the loss, what is cut, and the loader's protocol."""

import dataclasses
import io
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from input_pipeline.loader import Loader
from input_pipeline.plans.constant import Plan as Constant
from input_pipeline.preprocess import Preprocess
from input_pipeline.sources import make_source
from input_pipeline.text.conversations import Turn
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views import make_views
from input_pipeline.views.cogvlm import Rows

ALL_TASKS = dict.fromkeys(("caption", "vqa", "rec", "reg", "grounded"), 1.0)
BOS, EOS, PAD = 1, 2, 0
TEXT = make_tokenizer("llama:scenes")


def make(image_size=28, context_length=160, image_token_size=14, **kwargs):
    sizes = {"image_size": image_size, "context_length": context_length}
    sizes["image_token_size"] = image_token_size
    return make_views("cogvlm", tokenizer="llama:scenes", **sizes, **kwargs)


@pytest.fixture(scope="module")
def scenes():
    source = make_source("scenes", size=40, image_size=48)
    return [source[i] for i in range(len(source))]


def learnt(example):
    """(prompt ids, learnt ids) of a row, by the masks alone."""
    types, tokens, mask = (example[k] for k in ("token_types", "tokens", "loss_mask"))
    last_slot = np.flatnonzero(types == 1).max()
    text = (types == 0) & (np.arange(len(types)) > last_slot)
    return tokens[text & ~mask].tolist(), tokens[mask].tolist()


@pytest.mark.parametrize(
    "size, token, slots",
    [(28, 14, 6), (224, 14, 258), (490, 14, 1227), (1344, 28, 2306), (56, 14, 18)],
)
def test_slots_are_image_tokens_boi_and_eoi(size, token, slots):
    rows = Rows("llama:scenes", size, 58, token)
    assert rows.num_slots == slots and rows.length == 1 + slots + 58


def test_layout_to_the_token():
    views = make(context_length=10, tasks={"vqa": 1})
    record = {"id": "1", "image": png(), "question": "red?", "answers": ["yes"]}
    example = views(record, random.Random(0))
    prompt, answer = TEXT.encode("Question: red? Short answer:"), TEXT.encode("yes")
    used = len(prompt) + len(answer) + 1
    assert used < 10
    np.testing.assert_array_equal(
        example["tokens"], [BOS, *[PAD] * 6, *prompt, *answer, EOS, *[PAD] * (10 - used)]
    )
    np.testing.assert_array_equal(
        example["token_types"], [0, *[1] * 6, *[0] * used, *[-1] * (10 - used)]
    )
    before = 7 + len(prompt)
    np.testing.assert_array_equal(np.flatnonzero(example["loss_mask"]), range(before, 7 + used))


def test_examples_match_their_spec_and_depend_on_rng_alone(scenes):
    views, seen = make(tasks=ALL_TASKS), set()
    assert views.num_classes is None
    for i, record in enumerate(scenes):
        example = views(record, random.Random(i))
        assert {k: (x.shape, x.dtype) for k, x in example.items()} == views.spec()
        again = pickle.loads(pickle.dumps(views))(record, random.Random(i))
        for name, value in example.items():
            np.testing.assert_array_equal(value, again[name])
        seen.add(example["tokens"].tobytes())
        # Everything fits: one end of sentence, the last that is learnt.
        prompt, answer = learnt(example)
        assert EOS not in prompt and answer.index(EOS) == len(answer) - 1
    assert len(seen) > len(scenes) - 4  # short questions may repeat


def test_captions_have_no_prompt(scenes):
    example = make(caption_fields=["caption"])(scenes[0], random.Random(0))
    prompt, answer = learnt(example)
    assert prompt == []
    assert TEXT.decode(answer) == scenes[0]["captions"]["caption"][0]
    # The first word is predicted from eoi, the slot before it.
    assert example["token_types"][np.flatnonzero(example["loss_mask"])[0] - 1] == 1


def test_prompt_and_answer_are_tokenized_each_by_itself(scenes):
    for i, record in enumerate(scenes):
        example = make(tasks={"rec": 1})(record, random.Random(i))
        prompt, answer = learnt(example)
        assert prompt == TEXT.encode(TEXT.decode(prompt))
        assert answer == [*TEXT.encode(TEXT.decode(answer)), EOS]
        assert TEXT.decode(prompt).startswith("Question: Where is the ")
        assert TEXT.decode(prompt).endswith("? Answer:")


def test_texts_show_prompt_and_answer(scenes):
    views = make(tasks=ALL_TASKS)
    examples = [views(record, random.Random(i)) for i, record in enumerate(scenes)]
    batch = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
    for (text,), example in zip(views.texts(batch), examples):
        prompt, answer = learnt(example)
        assert text == f"{TEXT.decode(prompt)} | {TEXT.decode(answer)}</s>"


def test_tasks_are_drawn_by_weight_among_those_that_the_record_has(scenes):
    def kinds(views, record, count=300):
        texts = []
        for i in range(count):
            example = views(record, random.Random(i))
            texts += views.texts({k: example[k][None] for k in ("tokens", "loss_mask")})
        starts = {"Where is": "rec", "Please describe the region": "reg", "Can you": "grounded"}
        found = Counter()
        for (text,) in texts:
            prompt = text.split(" | ")[0].removeprefix("Question: ")
            kind = next((v for k, v in starts.items() if prompt.startswith(k)), None)
            found[kind or ("vqa" if "Short answer:" in prompt else "caption")] += 1
        return found

    found = kinds(make(tasks={"caption": 3, "rec": 1, "reg": 0}), scenes[0])
    assert found.keys() == {"caption", "rec"} and 2 < found["caption"] / found["rec"] < 4.5
    assert kinds(make(tasks=ALL_TASKS), scenes[0], 200).keys() == ALL_TASKS.keys()
    plain = {k: scenes[0][k] for k in ("id", "image", "captions", "question", "answers")}
    found = kinds(make(tasks={"caption": 1, "rec": 50, "vqa": 1}), plain)
    assert found.keys() == {"caption", "vqa"} and 0.6 < found["caption"] / found["vqa"] < 1.6


def test_templates_can_be_chosen(scenes):
    views = make(tasks={"vqa": 1}, templates={"vqa": "chat"})
    prompt, _ = learnt(views(scenes[3], random.Random(0)))
    assert TEXT.decode(prompt) == f" [INST] {scenes[3]['question']} [/INST] "


def png(pixels=None):
    pixels = np.zeros((20, 30, 3), np.uint8) if pixels is None else pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_whole_image_is_squashed_as_pillow_does():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    record = {"id": "1", "image": png(pixels), "captions": {"c": ["x"]}}
    image = make(28)(record, random.Random(0))["images"]
    expected = Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(image, np.array(expected)[None])


def conversation(*contents):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents)]
    return {"id": "r7", "image": png(), "captions": {}, "conversation": messages}


def test_a_conversation_has_its_history_in_the_prompt():
    record = conversation("is it red?", "no", "a star?", "yes")
    views = make(tasks={"conversation": 1})
    texts = set()
    for i in range(20):
        prompt, answer = learnt(views(record, random.Random(i)))
        texts.add((TEXT.decode(prompt), TEXT.decode(answer)))
    assert texts == {
        ("Question: is it red? Answer:", "no"),
        ("Question: is it red? Answer: no\nQuestion: a star? Answer:", "yes"),
    }


def test_the_oldest_history_goes_first():
    """Down to what is asked, each length keeps the latest rounds that fit."""
    history = tuple((f"is there a {c} star?", "yes") for c in ("red", "blue", "green"))
    turn = Turn("how many stars?", "4", history)
    answer = [*TEXT.encode("4"), EOS]
    kept = []
    for length in range(160, 12, -1):
        rows = Rows("llama:scenes", 28, length, 14)
        prompt, learned = learnt(rows.example("chat_old", turn))
        assert learned == answer
        text = TEXT.decode(prompt)
        kept.append(text.count("Question") - 1)
        expected = history[len(history) - kept[-1] :]
        rounds = "".join(f"Question: {q} Answer: {a}\n" for q, a in expected)
        assert text == f"{rounds}Question: how many stars? Answer:"
        if kept[-1] < 3:  # one more round would have been too long
            q, a = history[len(history) - kept[-1] - 1]
            longer = TEXT.encode(f"Question: {q} Answer: {a}\n{text}")
            assert len(longer) + len(answer) > length
    assert sorted(set(kept)) == [0, 1, 2, 3] and kept == sorted(kept, reverse=True)


def test_then_the_end_of_the_answer_and_with_it_its_end_of_sentence(scenes):
    whole = TEXT.encode(scenes[0]["captions"]["caption"][0])
    for length in (len(whole) + 1, len(whole), 9, 2):
        views = make(context_length=length, caption_fields=["caption"])
        example = views(scenes[0], random.Random(0))
        assert learnt(example) == ([], [*whole, EOS][:length])
        assert (example["token_types"] >= 0).all()
        (text,) = views.texts({k: example[k][None] for k in ("tokens", "loss_mask")})[0]
        assert text.endswith("</s>") == (length > len(whole))


def test_a_prompt_that_is_too_long_is_named():
    record = {"id": "r7", "image": png(), "question": "red? " * 20, "answers": ["yes"]}
    with pytest.raises(ValueError, match=r"'r7': its prompt 'Question: red\?.*context_length=20"):
        make(context_length=20, tasks={"vqa": 1})(record, random.Random(0))
    prompt = TEXT.encode("Question: red? Short answer:")
    fits = make(context_length=len(prompt) + 1, tasks={"vqa": 1})
    record = {**record, "question": "red?", "answers": ["a large star"]}
    assert learnt(fits(record, random.Random(0))) == (prompt, TEXT.encode("a large star")[:1])
    with pytest.raises(ValueError, match=f"has {len(prompt)} tokens.*may have {len(prompt) - 1}"):
        make(context_length=len(prompt), tasks={"vqa": 1})(record, random.Random(0))


def test_prompts_alone():
    rows = Rows("llama:scenes", 28, 20, 14)
    row, ids = rows.prompt("red circle"), TEXT.encode("red circle")
    expected = [BOS, *[PAD] * 6, *ids, *[PAD] * (20 - len(ids))]
    np.testing.assert_array_equal(row["tokens"], expected)
    assert (row["token_types"] == 0).sum() == 1 + len(ids)
    assert rows.prompt("")["token_types"].tolist() == [0, *[1] * 6, *[-1] * 20]
    with pytest.raises(ValueError, match="has 40 tokens; with context_length=20 it may have 20"):
        rows.prompt("red " * 39)  # the last space is a token too


# Text without images


def test_rows_of_text_are_bos_and_text():
    views = make(context_length=10, tasks={"vqa": 1}, image_token_size=None)
    # Nobody looks at the image.
    record = {"id": "1", "image": b"no", "question": "red?", "answers": ["yes"]}
    example = views(record, random.Random(0))
    text = [*TEXT.encode("Question: red? Short answer:"), *TEXT.encode("yes"), EOS]
    padding = 10 - len(text)
    assert padding > 0
    np.testing.assert_array_equal(example["tokens"], [BOS, *text, *[PAD] * padding])
    np.testing.assert_array_equal(example["token_types"], [*[0] * (1 + len(text)), *[-1] * padding])
    # Prompts are learnt like answers; nothing comes before bos.
    np.testing.assert_array_equal(np.flatnonzero(example["loss_mask"]), range(1, 1 + len(text)))
    with pytest.raises(ValueError, match=r"'1': its prompt .* Training does not skip records"):
        make(context_length=3, tasks={"vqa": 1}, image_token_size=None)(record, random.Random(0))


def test_text_is_that_of_rows_with_images(scenes):
    plain, whole = make(tasks=ALL_TASKS, image_token_size=None), make(tasks=ALL_TASKS)
    assert plain.spec().keys() == {"tokens", "token_types", "loss_mask"}
    for i, record in enumerate(scenes):
        example, other = plain(record, random.Random(i)), whole(record, random.Random(i))
        assert {k: (x.shape, x.dtype) for k, x in example.items()} == plain.spec()
        np.testing.assert_array_equal(example["tokens"][1:], other["tokens"][7:])
        ((text,),) = plain.texts({k: x[None] for k, x in example.items()})
        ((expected,),) = whole.texts({k: x[None] for k, x in other.items()})
        prompt, answer = expected.split(" | ")
        assert text.startswith(" | ") and text.replace(" ", "").endswith(answer.replace(" ", ""))
        assert prompt in text


def test_rows_follow_from_the_preprocess_record():
    record = Preprocess(28, "llama:scenes", 20, "squash", image_token_size=14)
    assert Rows.of(record) == Rows("llama:scenes", 28, 20, 14)
    assert Rows.of(record).length == 27
    change = dataclasses.replace
    text = Rows.of(change(record, image_token_size=None))
    assert (text.num_slots, text.length) == (0, 21)
    prompt = text.prompt("red")
    np.testing.assert_array_equal(prompt["tokens"][1:4], [*TEXT.encode("red"), PAD, PAD][:3])
    with pytest.raises(ValueError, match="names no tokenizer"):
        Rows.of(change(record, tokenizer=None, context_length=0))
    with pytest.raises(ValueError, match=r"set resize='squash'.*not 'shortest'"):
        Rows.of(change(record, resize="shortest"))
    with pytest.raises(ValueError, match="need a LLaMA tokenizer"):
        Rows.of(change(record, tokenizer="clip"))


# What cannot be


def test_records_without_anything_to_learn_are_named(scenes):
    record = {"id": "r7", "image": png(), "captions": {"long": ["a cat"]}, "label": 3}
    message = r"'r7' has nothing for the tasks \['rec', 'vqa'\]; it has captions, label"
    with pytest.raises(ValueError, match=message):
        make(tasks={"rec": 1, "vqa": 1})(record, random.Random(0))
    with pytest.raises(ValueError, match=r"\['caption'\] \(captions: only \('short',\)\)"):
        make(caption_fields=["short"])(record, random.Random(0))
    with pytest.raises(ValueError, match="'r7': cannot decode 2 bytes"):
        make()({**record, "image": b"no"}, random.Random(0))
    with pytest.raises(ValueError, match="'r7': there are 1 phrases"):
        make(tasks={"rec": 1})({**record, "phrases": ["a"]}, random.Random(0))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"image_size": 30}, "image_size=30 must be a multiple of image_token_size=14"),
        ({"image_token_size": 0}, "must be a multiple of image_token_size=0"),
        ({"image_size": 0}, "image_size=0 must be a multiple"),
        ({"context_length": 1}, "context_length=1 leaves no room"),
        ({"tasks": {"ocr": 1}}, "Unknown task 'ocr'"),
        ({"tasks": {}}, "give weights"),
        ({"tasks": {"vqa": 0}}, "give weights"),
        ({"tasks": {"vqa": 1, "rec": -1}}, "none below 0"),
        ({"templates": {"vqa": "llava"}}, "Unknown template 'llava'"),
        ({"templates": {"caption": "chat"}}, "templates names 'caption'"),
        ({"caption_fields": "caption"}, "give a list of fields"),
        ({"history": "some"}, "Unknown history 'some'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_other_tokenizers_are_refused():
    with pytest.raises(ValueError, match=r"need a LLaMA tokenizer, 'llama:PATH'.* not 'clip'"):
        make_views("cogvlm", image_size=28, tokenizer="clip", context_length=20)


@pytest.mark.parametrize("image_token_size", [14, pytest.param(None, marks=pytest.mark.slow)])
def test_the_loader_gives_batches_of_any_workers(image_token_size):
    source = make_source("scenes", size=30, image_size=48)
    views = make(tasks=ALL_TASKS, image_token_size=image_token_size)
    plan = Constant(image_size=28, global_batch=4, total_steps=3, seed=0)
    loaders = [
        Loader(source, {28: views}, plan, total_steps=3, seed=0, num_workers=n) for n in (0, 1)
    ]
    for one, other in zip(*(loader.iterate(0) for loader in loaders)):
        assert {k: (x.shape[1:], x.dtype) for k, x in one.items()} == views.spec()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
