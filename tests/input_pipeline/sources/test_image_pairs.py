"""Compositional sets as they are published: Winoground, MMVP-VLM, SVO-Probes and SugarCrepe."""

import json

import pytest

from input_pipeline.sources import make_source
from tests.input_pipeline.sources.toy_task import image

WINOGROUND = "\n".join(
    json.dumps(
        {
            "id": i,
            "image_0": f"ex_{i}_img_0",
            "image_1": f"ex_{i}_img_1",
            "caption_0": f"old person {i}",
            "caption_1": f"person old {i}",
            "tag": "Relation",
        }
    )
    for i in range(2)
)
MMVP = """Question ID,Type,Statement
1,Orientation and Direction,The dog is facing left
2,Orientation and Direction,"A dog, facing right"
3,Texts,A sign
4,Texts,No sign
"""
SVO = """sentence,pos_triplet,neg_triplet,pos_url,neg_url,pos_image_id,neg_image_id,subj_neg,verb_neg,obj_neg
A person sits,"person,sit,bed","person,lie,bed",u,v,7,9,False,True,False
A dog runs,"dog,run,grass","cat,run,grass",u,v,9,8,True,False,False
"""  # noqa: E501
NAMES = {
    "winoground": [f"ex_{i}_img_{j}.png" for i in range(2) for j in range(2)],
    "mmvp": ["Orientation and Direction/1.jpg", "Orientation and Direction/2.jpg", "Texts/3.jpg",
             "Texts/4.jpg"],
    "svo": ["7.jpg", "9.jpg", "9.jpg", "8.jpg"],
}  # fmt: skip
TEXTS = {"winoground": WINOGROUND, "mmvp": MMVP, "svo": SVO}


@pytest.fixture
def pairs(tmp_path):
    def write(kind):
        (tmp_path / "file").write_text(TEXTS[kind])
        for level, name in enumerate(NAMES[kind]):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(level))
        return {"annotations": tmp_path / "file", "images": tmp_path / "images"}

    return write


@pytest.mark.parametrize(
    "kind, texts, kinds",
    [
        ("winoground", ["old person 0", "person old 0", "old person 1", "person old 1"],
         ["Relation"] * 4),
        ("mmvp", ["The dog is facing left", "A dog, facing right", "A sign", "No sign"],
         ["Orientation and Direction"] * 2 + ["Texts"] * 2),
        ("svo", ["A person sits", None, "A dog runs", None], ["verb"] * 2 + ["subject"] * 2),
    ],
)  # fmt: skip
def test_two_records_for_each_pair(pairs, kind, texts, kinds):
    arguments = pairs(kind)
    source = make_source("image_pairs", **arguments)
    records = [source[i] for i in range(len(source))]
    assert [r["captions"].get("caption", [None])[0] for r in records] == texts
    assert [r["kind"] for r in records] == kinds
    assert records[0]["pair"] == records[1]["pair"] != records[2]["pair"] == records[3]["pair"]
    paths = [arguments["images"] / name for name in NAMES[kind]]
    assert [r["image"] for r in records] == [path.read_bytes() for path in paths]


def test_images_that_are_missing(pairs):
    arguments = pairs("svo")
    (arguments["images"] / "8.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 images are missing: .*8.jpg"):
        make_source("image_pairs", **arguments)
    source = make_source("image_pairs", **arguments, skip_missing=True)
    assert [source[i]["pair"] for i in range(len(source))] == ["0", "0"]
    (arguments["images"] / "9.jpg").unlink()
    with pytest.raises(ValueError, match="has no pair of images that are there"):
        make_source("image_pairs", **arguments, skip_missing=True)


@pytest.mark.parametrize("text", ['{"id": 3}', "a,b,c\n1,Texts,odd\n", "a,b\n1,2\n3,4\n", ""])
def test_other_files_are_refused(pairs, text):
    arguments = pairs("mmvp")
    arguments["annotations"].write_text(text)
    with pytest.raises(ValueError, match="is no file of Winoground, MMVP-VLM or SVO-Probes"):
        make_source("image_pairs", **arguments)


def test_sugarcrepe(tmp_path):
    for kind in ("swap_att", "add_obj"):
        rows = {
            str(number): {
                "filename": "1.jpg",
                "caption": f"{kind} {number}",
                "negative_caption": f"no {kind} {number}",
            }
            for number in (0, 7)
        }
        (tmp_path / f"{kind}.json").write_text(json.dumps(rows))
    (tmp_path / "1.jpg").write_bytes(image())
    source = make_source("sugarcrepe", annotations=tmp_path, images=tmp_path)
    assert [source[i]["id"] for i in range(4)] == [
        *("add_obj/0", "add_obj/7", "swap_att/0", "swap_att/7")
    ]
    assert source[3]["captions"] == {"caption": ["swap_att 7"]}
    assert (source[3]["hard_negatives"], source[3]["kind"]) == (["no swap_att 7"], "swap_att")
    one = make_source("sugarcrepe", annotations=tmp_path / "add_obj.json", images=tmp_path)
    assert len(one) == 2 and one.fingerprint() != source.fingerprint()
    (tmp_path / "add_obj.json").write_text('{"0": {"filename": "1.jpg"}}')
    with pytest.raises(ValueError, match=r"add_obj.json is no file of SugarCrepe \(KeyError"):
        make_source("sugarcrepe", annotations=tmp_path, images=tmp_path)
