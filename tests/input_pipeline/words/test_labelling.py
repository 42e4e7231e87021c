"""One rule says which captions give labels, to vocabularies, shards, views and mined labels."""

import random

import pytest

from input_pipeline.sources import make_source
from input_pipeline.views import make_views
from input_pipeline.words import command as words
from input_pipeline.words.labelling import LabelRule
from input_pipeline.words.vocabulary import Vocabulary
from tests.input_pipeline.prepare.prepare_data import image, run_source, write_prepared

# As DreamLIP recaptions images: what people wrote, and what models did.
CAPTIONS = {
    "raw_caption": ["a dog"],
    "shortSV_captions": ["a cat on a chair"],
    "longSV_captions": ["a bird", "a tree", "a house"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [{"id": f"r{i}", "image": image(i), "captions": CAPTIONS} for i in range(2)]
    return write_prepared(tmp_path_factory.mktemp("recaptioned") / "data", records)


@pytest.fixture(scope="module")
def counted(data, tmp_path_factory):
    """Vocabularies of the raw captions and of all, by the command."""
    folder = tmp_path_factory.mktemp("words")
    command = ["--input", str(data), "--threshold", "1", "--workers", "1", "--output"]
    assert words.main([*command, str(folder / "raw.tsv"), "--captions", "raw_caption"]) == 0
    assert words.main([*command, str(folder / "all.tsv")]) == 0
    return folder


@pytest.fixture(scope="module")
def old(counted):
    """The vocabulary of raw captions as it was before it said what it was counted from."""
    lines = (counted / "raw.tsv").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("# caption fields"))
    (counted / "old.tsv").write_text(text)
    return str(counted / "old.tsv")


@pytest.fixture(scope="module")
def stored(data, counted, old):
    """Shards with labels: of the raw captions, as the vocabulary says, and of all, as it does not
    say otherwise."""
    folders = {"raw": counted / "stored_raw", "all": counted / "stored_all"}
    for file, output in ((counted / "raw.tsv", folders["raw"]), (old, folders["all"])):
        assert run_source(output, "prepared", f"path={data}", "--labels", str(file)) == 0
    return {name: make_source("prepared", path=str(path)) for name, path in folders.items()}


def names(vocabulary_file, record, **options):
    """Words that views find in a record, with and without preparing it."""
    views = make_views("catlip", image_size=16, vocabulary=str(vocabulary_file), **options)
    found = views(record, random.Random(0))["labels"]
    return {views.vocabulary.names[i].split(".")[0] for i in found if i >= 0}


def test_a_vocabulary_records_what_it_was_counted_from(counted, tmp_path):
    raw, everything = (Vocabulary.load(counted / f"{name}.tsv") for name in ("raw", "all"))
    assert (raw.caption_fields, raw.mode) == (("raw_caption",), "released")
    assert everything.caption_fields == tuple(sorted(CAPTIONS))
    assert Vocabulary.load(counted / "all.tsv", size=2).caption_fields == tuple(sorted(CAPTIONS))
    strange = Vocabulary(raw.keys, raw.counts, ["Bild, ganz\nneu ü"], "paper")
    strange.write(tmp_path / "strange.tsv", [])
    again = Vocabulary.load(tmp_path / "strange.tsv")
    assert (again.caption_fields, again.mode) == (strange.caption_fields, "paper")


@pytest.mark.parametrize("text", ["raw_caption", "[]", '"raw_caption"', "[1]", ""])
def test_a_damaged_record_of_it_is_an_error(counted, tmp_path, text):
    lines = (counted / "raw.tsv").read_text()
    (tmp_path / "bad.tsv").write_text(lines.replace('["raw_caption"]', text))
    with pytest.raises(ValueError, match=r"bad.tsv: line \d: .*JSON list of names of caption"):
        Vocabulary.load(tmp_path / "bad.tsv")


@pytest.mark.slow
def test_views_shards_and_sources_follow_the_vocabulary(data, counted, stored):
    plain = dict(name="prepared", path=str(data))
    for name, expected in (("raw", {"dog"}), ("all", {"dog", "cat", "bird", "tree"})):
        file = str(counted / f"{name}.tsv")
        assert expected <= names(file, make_source(**plain)[0])
        mined = make_source("mined_labels", data=plain, vocabulary=file)
        found = {mined.class_names[i].split(".")[0] for i in mined[0]["labels"]}
        assert found == names(file, make_source(**plain)[0])
    raw = counted / "raw.tsv"
    assert names(raw, stored["raw"][0], stored=True) == names(raw, stored["raw"][0]) == {"dog"}
    make_views("catlip", image_size=16, vocabulary=str(raw), stored=True).check_source(
        stored["raw"]
    )


def test_other_fields_than_the_vocabularys_are_an_error(data, counted, tmp_path, capsys):
    raw, fields = str(counted / "raw.tsv"), ["longSV_captions", "raw_caption"]
    message = "longSV_captions, raw_caption, but the vocabulary was counted from the fields raw_cap"
    with pytest.raises(ValueError, match=message):
        make_views("catlip", image_size=16, vocabulary=raw, caption_fields=fields)
    with pytest.raises(ValueError, match=message):
        scenes = dict(name="scenes", size=2, image_size=32)
        make_source("mined_labels", data=scenes, vocabulary=raw, caption_fields=fields)
    arguments = ["--labels", raw, "--label-captions", ",".join(fields)]
    assert run_source(tmp_path / "out", "prepared", f"path={data}", *arguments) == 1
    assert "counted from the fields raw_caption: count it again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # In another order they are the same.
    everything, backwards = str(counted / "all.tsv"), sorted(CAPTIONS, reverse=True)
    make_views("catlip", image_size=16, vocabulary=everything, caption_fields=backwards)


def test_another_mode_than_the_vocabularys_is_an_error(counted):
    pytest.importorskip("textblob")
    with pytest.raises(ValueError, match=r"mode 'paper', .* counted in mode 'released'"):
        LabelRule(Vocabulary.load(counted / "raw.tsv"), mode="paper")


def test_stored_labels_of_other_fields_are_an_error(old, stored):
    of_raw = make_views(
        "catlip", image_size=16, vocabulary=old, stored=True, caption_fields=["raw_caption"]
    )
    of_all = make_views("catlip", image_size=16, vocabulary=old, stored=True)
    of_raw.check_source(stored["raw"])
    of_all.check_source(stored["all"])
    with pytest.raises(ValueError, match=r"of all caption fields, and .* the fields raw_caption"):
        of_raw.check_source(stored["all"])
    with pytest.raises(ValueError, match=r"the fields raw_caption, and .* all caption fields"):
        of_all.check_source(stored["raw"])
    # Nor does a mixture of both pass for one of them.
    parts = [dict(name="prepared", path=str(source._path)) for source in stored.values()]
    for views in (of_raw, of_all):
        with pytest.raises(ValueError, match="labels of vocabulary None"):
            views.check_source(make_source("mixture", sources=parts))


def test_an_older_vocabulary_means_all_captions_unless_told(data, old):
    assert Vocabulary.load(old).caption_fields is None
    record = make_source("prepared", path=data)[0]
    record["captions"] = {**record["captions"], "raw_caption": ["nothing"]}
    assert names(old, record) == set()
    record["captions"]["longSV_captions"] = ["the dog"]
    assert names(old, record) == {"dog"}
    assert names(old, record, caption_fields=["raw_caption"]) == set()


def test_a_record_without_the_fields_is_an_error(counted):
    """Its labels would be none at all, which training takes for an image of nothing."""
    rule = LabelRule(Vocabulary.load(counted / "raw.tsv"))
    with pytest.raises(ValueError, match="'r9' has captions in the fields txt; labels come from"):
        rule.labels({"id": "r9", "captions": {"txt": ["a dog"]}})
    with pytest.raises(ValueError, match="'r9' has no captions"):
        rule.labels({"id": "r9", "captions": {}})
    assert rule.labels({"id": "r9", "captions": {"raw_caption": [], "txt": ["a dog"]}}) == []
    with pytest.raises(ValueError, match="give a list of fields"):
        LabelRule(rule.vocabulary, "raw_caption")
