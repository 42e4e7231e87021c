"""Compositional sets as they are published: Winoground, MMVP-VLM, SVO-Probes and SugarCrepe."""

import json

import pytest

from input_pipeline.records import decode, encode
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
         ["Relation"] * 2),
        ("mmvp", ["The dog is facing left", "A dog, facing right", "A sign", "No sign"],
         ["Orientation and Direction", "Texts"]),
    ],
)  # fmt: skip
def test_a_record_for_each_image_of_a_pair(pairs, kind, texts, kinds):
    arguments = pairs(kind)
    source = make_source("image_pairs", **arguments)
    records = [source[i] for i in range(len(source))]
    of_each = [pair for record in records for pair in record["pairs"]]
    assert [pair["sentence"] for pair in of_each] == texts
    assert [pair["kind"] for pair in of_each] == [k for k in kinds for _ in (0, 1)]
    names = [pair["pair"] for pair in of_each]
    assert names[0] == names[1] != names[2] == names[3]
    assert [record["id"] for record in records] == NAMES[kind]
    paths = [arguments["images"] / name for name in NAMES[kind]]
    assert [r["image"] for r in records] == [path.read_bytes() for path in paths]


def test_an_image_of_several_pairs_is_one_record(pairs):
    source = make_source("image_pairs", **pairs("svo"))
    assert {source[i]["id"]: source[i]["pairs"] for i in range(len(source))} == {
        "7.jpg": [{"pair": "0", "kind": "verb", "sentence": "A person sits"}],
        "9.jpg": [
            {"pair": "0", "kind": "verb", "sentence": None},
            {"pair": "1", "kind": "subject", "sentence": "A dog runs"},
        ],
        "8.jpg": [{"pair": "1", "kind": "subject", "sentence": None}],
    }
    assert decode(encode(source[1])) == source[1]  # as prepared shards keep it


def test_a_row_of_two_kinds_is_named(pairs):
    arguments = pairs("svo")
    text = SVO.replace("True,False,False", "True,True,False")
    arguments["annotations"].write_text(text)
    with pytest.raises(ValueError, match="row 2 has 2 of subj_neg, verb_neg, obj_neg, not one"):
        make_source("image_pairs", **arguments)


def test_images_that_are_missing(pairs):
    arguments = pairs("svo")
    (arguments["images"] / "8.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing: .*8.jpg"):
        make_source("image_pairs", **arguments)
    source = make_source("image_pairs", **arguments, skip_missing=True)
    found = {pair["pair"] for i in range(len(source)) for pair in source[i]["pairs"]}
    assert found == {"0"} and len(source) == 2
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
