"""Sets of long captions and of many languages as they are published."""

import json

import pytest

from input_pipeline.sources import make_source
from tests.input_pipeline.sources.toy_task import image


def lines(*rows):
    return "\n".join(map(json.dumps, rows))


DCI = {
    "image": "sa_1.jpg",
    "short_caption": "A pump.",
    "extra_caption": " It is red. ",
    "mask_data": {},
}
FILES = {
    "urban": {"caption/1.txt": "A street.\nmore\n", "caption/22.txt": "Two cars."},
    "dci": {"complete/a.json": json.dumps(DCI),
            "complete/b.json": json.dumps(DCI | {"image": "sa_2.jpg", "extra_caption": ""})},
    "docci": {"docci.jsonlines": lines(
        {"split": "train", "image_file": "no.jpg", "description": "no"},
        {"split": "test", "image_file": "test_0.jpg", "description": "A long one."})},
    "xm3600": {"captions.jsonl": lines(
        {"image/key": "0a", "image/locale": "fr", "en": {"caption": ["A dog", "Another"]},
         "fr": {"caption": ["Un chien"]}})},
    "xtd": {"texts/test_image_names.txt": "b.jpg\na.jpg\n",
            "texts/test_1kcaptions_de.txt": "Ein Hund\nEin Haus\n",
            "texts/test_1kcaptions_jp.txt": "犬\n家\n"},
}  # fmt: skip
EXPECTED = {
    "urban": {"1.jpg": {"caption": ["A street."]}, "22.jpg": {"caption": ["Two cars."]}},
    "dci": {"sa_1.jpg": {"caption": ["A pump.\nIt is red."]}, "sa_2.jpg": {"caption": ["A pump."]}},
    "docci": {"test_0.jpg": {"caption": ["A long one."]}},
    "xm3600": {"0a.jpg": {"en": ["A dog"], "fr": ["Un chien"]}},
    "xtd": {"a.jpg": {"de": ["Ein Haus"], "jp": ["家"]},
            "b.jpg": {"de": ["Ein Hund"], "jp": ["犬"]}},
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def files(kind):
        for name, text in FILES[kind].items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (tmp_path / "images").mkdir()
        for name in EXPECTED[kind]:
            (tmp_path / "images" / name).write_bytes(image(len(name)))
        first = tmp_path / next(iter(FILES[kind]))
        annotations = first if first.parent == tmp_path else first.parent
        return {"annotations": annotations, "images": tmp_path / "images"}

    return files


@pytest.mark.parametrize("kind", FILES)
def test_a_caption_of_each_field(write, kind):
    source = make_source("retrieval_sets", **write(kind))
    records = [source[i] for i in range(len(source))]
    assert {record["id"]: record["captions"] for record in records} == EXPECTED[kind]
    assert all(record["image"] == image(len(record["id"])) for record in records)


def test_what_is_missing_or_something_else_is_told(write, tmp_path):
    arguments = write("xtd")
    (arguments["images"] / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing: .*a.jpg"):
        make_source("retrieval_sets", **arguments)
    (arguments["annotations"] / "test_1kcaptions_de.txt").write_text("one line\n")
    with pytest.raises(ValueError, match="nothing of Urban-1k, DCI, DOCCI, XM3600 or XTD"):
        make_source("retrieval_sets", **arguments)
    for name, text in (("a.jsonl", '{"a": 1}'), ("b.jsonl", ""), ("c.jsonl", "text")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="nothing of Urban-1k"):
            make_source("retrieval_sets", annotations=tmp_path / name, images=tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        make_source("retrieval_sets", annotations=tmp_path / "none", images=tmp_path)
