"""LLaMA's convention, the embedded model for scenes, and training such models."""

import pickle
import random
import re

import pytest
import sentencepiece

from input_pipeline.sources import make_source
from input_pipeline.text import train_tokenizer
from input_pipeline.text.conversations import TASKS, make_turn
from input_pipeline.text.templates import TEMPLATES, make_prompt, text_only_prompt
from input_pipeline.text.tokenizers import LlamaTokenizer, make_tokenizer


@pytest.fixture(scope="module")
def scenes():
    return make_tokenizer("llama:scenes")


def model_of(tokenizer):
    return sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)


def random_texts(count):
    rng = random.Random(0)
    # Not U+2581, which is what SentencePiece writes for a space, and no surrogates.
    rare = "éßİ日本😀👩\u200d👧\u0301\x00\x7f"
    pools = ["the small red circle ", "0123456789[],;", " \n\t", rare, "</s><s>"]
    for _ in range(count):
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 40)))


def test_special_ids_are_llamas(scenes):
    assert (scenes.bos_id, scenes.eos_id, scenes.pad_id) == (1, 2, 0)
    assert scenes.vocab_size == 640 and scenes.name == "llama:scenes"
    assert len(pickle.dumps(scenes)) < 400
    assert pickle.loads(pickle.dumps(scenes)).encode("a cat") == scenes.encode("a cat")


def test_text_comes_back_exactly(scenes):
    for text in [*random_texts(2000), "", " ", "  two  spaces ", "line\nline\n", "▲ [INST] "]:
        assert scenes.decode(scenes.encode(text)) == text
        assert text or scenes.encode(text) == []


def test_text_never_yields_special_ids(scenes):
    for text in [*random_texts(500), "<s>a</s><unk><pad>", "<0x41>"]:
        assert min(scenes.encode(text), default=3) >= 3


def test_each_piece_of_text_begins_with_its_own_space(scenes):
    (circle,) = scenes.encode("circle")
    assert model_of(scenes).id_to_piece(circle) == "▁circle"
    # So an answer that is put behind a prompt is apart from it.
    ids = scenes.encode("Answer:") + scenes.encode("circle")
    assert scenes.decode(ids) == "Answer: circle"


def test_decoding_is_silent_about_special_ids_and_survives_others(scenes):
    circle = scenes.encode("circle")
    assert scenes.decode([1, *circle, 2]) == "circle"
    assert scenes.decode([]) == scenes.decode([1, 2]) == ""
    unknown = scenes.decode([0])
    assert "⁇" in unknown
    for beyond in (640, 10**6, -1):
        assert scenes.decode([beyond]) == unknown


def test_all_text_of_scenes_is_in_the_embedded_model(scenes):
    """Words and punctuation are pieces: no unknown id, and no byte stands for a character."""
    model = model_of(scenes)
    for split in ("train", "val", "test"):
        source = make_source("scenes", split=split, size=150, image_size=32)
        for i in range(len(source)):
            record = source[i]
            texts = list(train_tokenizer.texts_of(record, random.Random(i)))
            texts += record["hard_negatives"] + record["phrases"] + record["nouns"]
            for task in TASKS:
                turn = make_turn(task, record, random.Random(i))
                if turn is not None:
                    texts += [make_prompt(t, turn.query) for t in TEMPLATES]
            for text in texts:
                ids = scenes.encode(text)
                assert not any(model.is_unknown(i) or model.is_byte(i) for i in ids), text
                assert scenes.decode(ids) == text
    assert not any(model.is_byte(i) for i in scenes.encode(text_only_prompt("is it red?")))


def test_words_of_captions_are_one_token_each(scenes):
    caption = make_source("scenes", size=1)[0]["captions"]["caption"][0]
    words = caption.replace(",", " ,").split()
    assert len(scenes.encode(caption)) == len(words)


def test_digits_stand_alone(scenes):
    model = model_of(scenes)
    pieces = [model.id_to_piece(i) for i in range(scenes.vocab_size) if not model.is_byte(i)]
    assert {p for p in pieces if any(c.isdigit() for c in p)} == set("0123456789")
    box = model.encode("[[012,345,678,999]]", out_type=str)
    assert [p for p in box if p.isdigit()] == list("012345678999")
    assert len(box) == 17


@pytest.mark.slow
def test_the_embedded_model_is_what_the_command_makes(scenes, tmp_path):
    output = tmp_path / "again.model"
    arguments = ["--input", "scenes:size=4000,image_size=32", "--vocab-size", "640"]
    assert train_tokenizer.main([*arguments, "--output", str(output)]) == 0
    again = LlamaTokenizer(str(output))
    pieces, expected = (
        [model_of(t).id_to_piece(i) for i in range(t.vocab_size)] for t in (again, scenes)
    )
    assert pieces == expected


def test_training_reads_everything_that_views_tokenize(tmp_path):
    record = {
        "id": "1",
        "captions": {"a": ["Ein Haus"], "b": ["zwei\nZeilen"]},
        "question": "wie viele?",
        "answers": ["neun"],
        "phrases": ["Haus"],
        "boxes": [[0.1, 0.2, 0.3, 0.4]],
        "conversation": [
            {"role": "user", "content": "Hallo"},
            {"role": "assistant", "content": "Guten Tag"},
        ],
    }
    texts = list(train_tokenizer.texts_of(record, random.Random(0)))
    for expected in (
        "Ein Haus",
        "zwei\nZeilen",
        "Question: wie viele? Short answer:",
        "neun",
        "Question: Where is the Haus? Answer:",
        "[[100,200,300,400]]",
        "Haus",
        "Ein Haus [[100,200,300,400]]",
        "Question: Hallo Answer:",
        "Guten Tag",
    ):
        assert expected in texts
    assert train_tokenizer.train(texts, 400) == train_tokenizer.train(texts, 400)
    path = tmp_path / "tiny.model"
    path.write_bytes(train_tokenizer.train(texts, 400))
    tokenizer = make_tokenizer(f"llama:{path}")
    assert tokenizer.vocab_size == 400
    assert tokenizer.decode(tokenizer.encode("Grüße, 12!")) == "Grüße, 12!"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--vocab-size", "100"], "A vocabulary of 100 cannot be trained"),
        (["--vocab-size", "9999"], "A vocabulary of 9999 cannot be trained: .*<= "),
        (["--vocab-size", "400", "--input", "nowhere/at all"], "neither a directory"),
        (["--vocab-size", "400", "--input", "scenes:colour=red"], "source scenes: .*colour"),
        (["--vocab-size", "400", "--output", "words.txt"], "must end in .model"),
    ],
)
def test_command_line_errors(arguments, message, tmp_path, capsys):
    given = ["--input", "scenes:size=20,image_size=32", "--output", str(tmp_path / "x.model")]
    assert train_tokenizer.main(given + arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_model_file_problems(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No SentencePiece model at .*train_tokenizer"):
        make_tokenizer(f"llama:{tmp_path}/nowhere.model")
    with pytest.raises(ValueError, match=r"Unknown tokenizer 'llama:'.*'llama:scenes'"):
        make_tokenizer("llama:")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e"] * 9),
        model_prefix=str(tmp_path / "no_ends"),
        vocab_size=8,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    tokenizer = make_tokenizer(f"llama:{tmp_path}/no_ends.model")
    for kind in ("bos", "eos"):
        with pytest.raises(ValueError, match=f"has no {kind} piece"):
            getattr(tokenizer, f"{kind}_id")
