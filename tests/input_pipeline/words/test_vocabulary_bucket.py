"""Vocabularies and tokenizers in a bucket: made there, and read from there."""

import os
import pickle

import pytest

from input_pipeline import train_tokenizer, vocabulary
from input_pipeline.checks.paths import PathError
from input_pipeline.sources import make_source
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.words.vocabulary import Vocabulary
from tests.input_pipeline.prepare.prepare_data import contents, run_source

SCENES = "scenes:split=val,size=30,image_size=32"


@pytest.mark.slow
def test_a_vocabulary(bucket, tmp_path, capsys):
    for folder in (bucket / "new", tmp_path / "new"):
        arguments = ["--input", SCENES, "--threshold", "3", "--workers", "1"]
        assert vocabulary.main([*arguments, "--output", os.fspath(folder / "words.tsv")]) == 0
    assert contents(bucket / "new") == contents(tmp_path / "new")
    here, there = tmp_path / "new" / "words.tsv", os.fspath(bucket / "new" / "words.tsv")
    assert Vocabulary.load(there, 3).keys == Vocabulary.load(here, 3).keys
    with pytest.raises(FileNotFoundError, match=r"There is no vocabulary gs://.*\.vocabulary"):
        Vocabulary.load(f"{there}x")
    with pytest.raises(PathError, match="mount the bucket"):
        Vocabulary.load("ftp://server/words.tsv")
    # As the labels of prepared shards, and as a source's.
    for name, words in (("a", here), ("b", there)):
        data = ["scenes", "split=val", "size=3", "image_size=32", "--labels", str(words)]
        assert run_source(tmp_path / name, *data) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    data = {"name": "scenes", "split": "val", "size": 3, "image_size": 32}
    labels = [make_source("mined_labels", vocabulary=w, data=data)[2] for w in (str(here), there)]
    assert labels[0]["labels"] == labels[1]["labels"]


def test_a_tokenizer(bucket, tmp_path, capsys):
    for folder in (bucket / "new", tmp_path / "new"):
        arguments = ["--input", SCENES, "--vocab-size", "400", "--output"]
        assert train_tokenizer.main([*arguments, os.fspath(folder / "pieces.model")]) == 0
    assert contents(bucket / "new") == contents(tmp_path / "new")
    for kind in ("llama", "sentencepiece"):
        here = make_tokenizer(f"{kind}:{tmp_path}/new/pieces.model")
        there = make_tokenizer(f"{kind}:{os.fspath(bucket)}/new/pieces.model")
        assert pickle.loads(pickle.dumps(there)).name == there.name
        assert there.vocab_size == here.vocab_size == 400
    here, there = (
        make_tokenizer(f"llama:{folder}/new/pieces.model") for folder in (tmp_path, bucket)
    )
    assert there.encode("A red circle, 12") == here.encode("A red circle, 12")
    for kind in ("llama", "llama3", "sentencepiece"):
        with pytest.raises(FileNotFoundError, match="gs://bucket/"):
            make_tokenizer(f"{kind}:{os.fspath(bucket)}/none")
        with pytest.raises(PathError, match="mount the bucket"):
            make_tokenizer(f"{kind}:ftp://server/pieces.model")
