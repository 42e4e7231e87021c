"""Llama 3's kind of tokenizer: text round-trips and never gives a special token."""

import pickle

import pytest
import tokenizers

from input_pipeline.text.conversations import Turn
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views.cogvlm import Rows

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A byte-level BPE with special tokens behind its vocabulary, as Llama 3's."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["a small red circle is left of a large blue star"] * 3, trainer)
    made.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in SPECIAL])
    file = tmp_path_factory.mktemp("llama3") / "tokenizer.json"
    made.save(str(file))
    return file


@pytest.fixture(scope="module")
def tokenizer(path):
    return make_tokenizer(f"llama3:{path}")


def test_special_ids(tokenizer):
    count = tokenizer.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (
        count - 3,
        count - 2,
        count - 1,
    )
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a") == tokenizer.encode("a")


@pytest.mark.parametrize("text", ["", "a red star", " [[012,345]] ", "日本 😀\n", SPECIAL[1]])
def test_text_round_trips_and_never_gives_special_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, 10**6]) == text


def test_rows_take_it(tokenizer):
    rows = Rows(tokenizer.name, 28, 40, 14)
    row = rows.example("vqa", Turn("red?", "a star"))
    start = 1 + rows.num_slots
    assert row["tokens"][0] == tokenizer.bos_id
    assert set(row["tokens"][1:start]) == {tokenizer.pad_id}
    prompt, answer = rows.texts(row["tokens"], row["loss_mask"])
    assert (prompt, answer) == ("Question: red? Short answer:", "a star</s>")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No tokenizer\.json at"):
        make_tokenizer(f"llama3:{tmp_path / 'none.json'}")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no tokenizer\.json"):
        make_tokenizer(f"llama3:{tmp_path / 'bad.json'}").encode("a")
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.save(str(tmp_path / "plain.json"))
    with pytest.raises(ValueError, match="no tokenizer of Llama 3"):
        _ = make_tokenizer(f"llama3:{tmp_path / 'plain.json'}").bos_id
