"""Questions with free answers, in the formats of eleven data sets."""

import json
import re

import pytest

from input_pipeline.files.buckets import storage_path
from input_pipeline.prepare import command
from input_pipeline.sources import make_source
from tests.input_pipeline.sources.published import (
    records,
    without_image,
    write_images,
    write_json,
)

NAMES = [f"COCO_val2014_{number:012d}.jpg" for number in (42, 262148)]


def vqa_pair(folder, **annotation):
    """The two files of VQA, of three questions about two images."""
    asked = [(262148000, 262148, "Where is he?"), (262148001, 262148, "Who?"), (42000, 42, "What?")]
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text in asked]
    told = [
        {
            "question_id": q,
            "image_id": i,
            "question_type": "where",
            "answers": [
                {"answer": f"a{n % 2}", "answer_confidence": "yes", "answer_id": n + 1}
                for n in range(10)
            ],
        }
        | annotation
        for q, i, _ in reversed(asked)
    ]
    head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": "val2014"}
    return (
        write_json(folder / "q.json", head | {"task_type": "Open-Ended", "questions": questions}),
        write_json(folder / "a.json", head | {"annotations": told}),
        write_images(folder / "val2014", NAMES),
    )


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def vqa(paths, kind="vqav2", **more):
    return make_source("vqa", kind=kind, **named(paths), **more)


def named(paths):
    return dict(zip(("questions", "annotations", "images"), paths))


def test_vqav2(tmp_path):
    paths = vqa_pair(tmp_path, answer_type="other")
    found = records(vqa(paths))
    assert without_image(found[0]) == {
        "id": "262148000",
        "question_id": "262148000",
        "question": "Where is he?",
        "answers": ["a0", "a1"] * 5,
        "category": "other",
        "split": "val2014",
    }
    assert [one["question"] for one in found] == ["Where is he?", "Who?", "What?"]
    assert found[0]["image"] == (paths[2] / NAMES[1]).read_bytes() == found[1]["image"]
    assert found[2]["image"] == (paths[2] / NAMES[0]).read_bytes() and found[0]["captions"] == {}


def test_fields_are_had_without_images(tmp_path):
    paths = vqa_pair(tmp_path)
    source = make_source("mixture", sources=[{"name": "vqa", "kind": "vqav2", **named(paths)}])
    for name in NAMES:
        (paths[2] / name).unlink()
    found = source.fields([2, 0])
    assert [one["question"] for one in found] == ["What?", "Where is he?"]
    assert found[0]["id"] == "0:42000" and "image" not in found[0]
    assert all(isinstance(one, FileNotFoundError) for one in source.records([2, 0]))


def test_categories_of_okvqa_and_tdiuc(tmp_path):
    paths = vqa_pair(tmp_path, question_type="one", answer_type="other")
    change(paths[1], lambda content: content.update(question_types={"one": "Vehicles"}))
    assert {one["category"] for one in records(vqa(paths, "okvqa"))} == {"Vehicles"}
    change(paths[1], lambda content: content.pop("question_types"))
    with pytest.raises(ValueError, match="have no question_types, as those of OK-VQA do"):
        vqa(paths, "okvqa")
    paths = vqa_pair(tmp_path, question_type="absurd")
    assert {one["category"] for one in records(vqa(paths, "tdiuc"))} == {"absurd"}


def test_versions_are_vqav2s_alone(tmp_path):
    """OK-VQA's annotations may be of 1.1 and its questions of 1.0."""
    paths = vqa_pair(tmp_path)
    change(paths[1], lambda c: c.update(info={"version": "1.1"}, question_types={"where": "x"}))
    change(paths[0], lambda c: c.update(info={"version": "1.0"}))
    assert len(vqa(paths, "okvqa")) == len(vqa(paths, "tdiuc")) == 3
    change(paths[0], lambda c: c.update(task_type="Multiple-Choice"))
    with pytest.raises(ValueError, match="'Multiple-Choice', not 'Open-Ended'"):
        vqa(paths, "okvqa")


@pytest.mark.parametrize("info", [None, "VQA 2", ["2.0"], {}, {"version": None}])
def test_files_that_do_not_say_their_version(tmp_path, info):
    paths = vqa_pair(tmp_path)
    for path in paths[:2]:
        change(path, lambda c: c.update(info=info))
        assert len(vqa(paths)) == 3


def test_a_test_without_answers(tmp_path):
    paths = vqa_pair(tmp_path)
    with pytest.raises(ValueError, match=r"q\.json cannot be used .*give annotations as well"):
        vqa((paths[0], None, paths[2]))
    change(paths[0], lambda content: content.update(data_subtype="test-dev2015"))
    write_images(tmp_path / "test2015", [name.replace("val2014", "test2015") for name in NAMES])
    [first, *_] = records(vqa((paths[0], None, tmp_path / "test2015")))
    assert "answers" not in first and first["split"] == "test-dev2015"


@pytest.mark.parametrize(
    ("which", "edit", "message"),
    [
        (0, lambda c: c["questions"].append(c["questions"][0]), "have the question_id 262148000"),
        (1, lambda c: c["annotations"].append(c["annotations"][0]), "have the question_id 42000"),
        (1, lambda c: c["annotations"].pop(), "1 of 3 questions have no annotation in .*versions"),
        (0, lambda c: c["questions"].pop(), "1 of 3 there have no question, such as 42000"),
        (1, lambda c: c.update(data_subtype="train2014"), "of images val2014, .* is of train2014"),
        (
            0,
            lambda c: c.update(data_type="abstract_v002"),
            "'abstract_v002', not 'mscoco'",
        ),
        (0, lambda c: c.update(task_type="Multiple-Choice"), "'Multiple-Choice', not 'Open-Ended'"),
        (0, lambda c: c.update(info={"version": "1.0"}), r"q\.json is of version 1\.0, not 2"),
        (1, lambda c: c.update(info={"version": "1.9"}), r"a\.json is of version 1\.9, not 2"),
        (1, lambda c: c.update(info={"version": "2.1"}), r"are of version 2\.0, .* is of 2\.1"),
        (1, lambda c: c["annotations"][0].update(image_id=7), "42000 is of image 42, in .* of 7"),
        (
            1,
            lambda c: c["annotations"][0].update(answers=[]),
            "1 of 3 questions have no answer.*42",
        ),
        (
            1,
            lambda c: c["annotations"][0]["answers"][0].update(answer=None),
            "answer None is no text",
        ),
        (0, lambda c: c["questions"][0].update(question=" "), "question 262148000: ' ' is no text"),
        (0, lambda c: c.pop("questions"), "KeyError.*it should hold VQA's"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, which, edit, message):
    paths = vqa_pair(tmp_path)
    change(paths[which], edit)
    with pytest.raises(ValueError, match=rf"q\.json cannot be used \(.*{message}"):
        vqa(paths)


def test_arguments_that_a_kind_lacks_or_does_not_take(tmp_path):
    paths = vqa_pair(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'vqav2'"):
        vqa(paths, "vqa2")
    with pytest.raises(ValueError, match="kind='vqav2' takes no split"):
        vqa(paths, split="val")
    with pytest.raises(ValueError, match="kind='ocrvqa' needs split as well"):
        make_source("vqa", kind="ocrvqa", questions=paths[0], images=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        make_source("vqa", kind="gqa", questions=tmp_path / "none.json", images=tmp_path)
    (paths[2] / NAMES[0]).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing"):
        vqa(paths)


def textvqa(folder):
    data = [
        {
            "question": "which brand?",
            "image_id": "003a8",
            "image_classes": ["Camera"],
            "answers": ["nous", "", *["dakota"] * 8],
            "question_id": 34602 + i,
            "set_name": "val",
        }
        for i in range(2)
    ]
    content = {"dataset_type": "val", "dataset_name": "textvqa", "data": data}
    return {"questions": write_json(folder / "TextVQA_0.5.1_val.json", content)}, ["003a8.jpg"]


def vizwiz(folder):
    answers = [{"answer_confidence": "yes", "answer": "basil"}] * 10
    rows = [
        {
            "image": f"VizWiz_val_0000000{i}.jpg",
            "question": "What is it?",
            "answers": answers,
            "answer_type": "other",
            "answerable": 1,
        }
        for i in range(2)
    ]
    return {"questions": write_json(folder / "val.json", rows)}, [row["image"] for row in rows]


def ocrvqa(folder):
    content = {
        f"10{split}": {
            "imageURL": "http://ecx.images-amazon.com/images/I/51l6XIoa3rL.jpg",
            "questions": ["Who wrote it?", "Is it a book?"],
            "answers": ["Karen", "Yes"],
            "title": "t",
            "authorName": "Karen",
            "genre": "Literature",
            "split": split,
        }
        for split in (1, 2, 3)
    }
    return {"questions": write_json(folder / "dataset.json", content), "split": "test"}, ["103.jpg"]


def gqa(folder):
    content = {
        f"0513366{i}": {
            "question": "Is it clear?" if i else "Is it overcast?",
            "imageId": "2405722",
            "answer": "no",
            "fullAnswer": "No, it is clear.",
            "isBalanced": True,
            "types": {"detailed": "verify", "semantic": "attr", "structural": "verify"},
        }
        for i in range(2)
    }
    return {"questions": write_json(folder / "val_balanced_questions.json", content)}, [
        "2405722.jpg"
    ]


def pope_file(folder):
    rows = [
        {"question_id": i, "image": NAMES[i - 1], "text": "Is there a dog?", "label": label}
        for i, label in ((1, "yes"), (2, "no"))
    ]
    return {"questions": write_json(folder / "coco_pope_random.json", rows)}, NAMES


def pope(folder):
    for kind in ("random", "adversarial"):
        rows = [
            {"question_id": i, "image": NAMES[i - 1], "text": "Is there a dog?", "label": label}
            for i, label in ((1, "yes"), (2, "no"))
        ]
        write_json(folder / "pope" / f"coco_pope_{kind}.json", rows)
    write_json(folder / "pope" / "coco_ground_truth_objects.json", {"dog": 1})  # lies there, too
    return {"questions": folder / "pope"}, NAMES


def easy_vqa(folder):
    rows = [["what is the blue shape?", "rectangle", 0], ["is it blue?", "yes", 1]]
    write_json(folder / "data" / "test" / "questions.json", rows)
    write_images(folder / "data" / "test" / "images", ["0.png", "1.png"])
    return {"questions": folder / "data", "split": "test", "images": None}, []


def mmvet(folder):
    content = {
        f"v1_{i}": {
            "imagename": f"v1_{i}.png",
            "question": "What is x?",
            "answer": "-1<AND>-5",
            "imagesource": "url",
            "capability": ["ocr", "math"],
        }
        for i in range(2)
    }
    return {"questions": write_json(folder / "mm-vet.json", content)}, ["v1_0.png", "v1_1.png"]


def llava_bench(folder):
    rows = [
        {"question_id": i, "image": "001.jpg", "text": text, "category": "conv"}
        for i, text in enumerate(("Name it?", "Where is it?"))
    ]
    told = [{"question_id": i, "text": "Diamond Head.", "answer_id": "x"} for i in (0, 1)]
    return {
        "questions": write_json(folder / "questions.jsonl", rows),
        "annotations": write_json(folder / "answers_gpt4.jsonl", told),
    }, ["001.jpg"]


@pytest.mark.parametrize("kind", ["mmvet", "llava_bench"])
def test_answers_for_a_judge_may_be_blank(tmp_path, kind):
    arguments, names = globals()[kind](tmp_path)
    path = arguments.get("annotations", arguments["questions"])
    path.write_text(re.sub(r"Diamond Head\.|-1<AND>-5", "", path.read_text(), count=1))
    images = write_images(tmp_path / "images", names)
    first, second = records(make_source("vqa", kind=kind, images=images, **arguments))
    assert first["answers"] == [""] and second["answers"] != [""]


# Of each: the ids, and what else the first record has.
FORMATS = {
    textvqa: (
        ["34602", "34603"],
        dict(question="which brand?", answers=["nous", "", *["dakota"] * 8], split="val"),
    ),
    vizwiz: (
        ["VizWiz_val_00000000.jpg", "VizWiz_val_00000001.jpg"],
        dict(question="What is it?", answers=["basil"] * 10, category="other"),
    ),
    ocrvqa: (
        ["103/0", "103/1"],
        dict(question="Who wrote it?", answers=["Karen"], category="Literature", split="test"),
    ),
    gqa: (
        ["05133660", "05133661"],
        dict(question="Is it overcast?", answers=["no"], category="verify"),
    ),
    pope: (
        ["adversarial/1", "adversarial/2", "random/1", "random/2"],
        dict(question="Is there a dog?", answers=["yes"], category="adversarial"),
    ),
    pope_file: (
        ["1", "2"],
        dict(question="Is there a dog?", answers=["yes"], category="random"),
    ),
    easy_vqa: (
        ["test/0", "test/1"],
        dict(
            question="what is the blue shape?",
            answers=["rectangle"],
            category="shape",
            split="test",
        ),
    ),
    mmvet: (
        ["v1_0", "v1_1"],
        dict(question="What is x?", answers=["-1<AND>-5"], category="math+ocr"),
    ),
    llava_bench: (
        ["0", "1"],
        dict(question="Name it?", answers=["Diamond Head."], category="conv"),
    ),
}


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_formats(tmp_path, write):
    arguments, names = write(tmp_path)
    images = write_images(tmp_path / "images", names)
    kind = write.__name__.removesuffix("_file")
    found = records(make_source("vqa", kind=kind, **{"images": images} | arguments))
    ids, fields = FORMATS[write]
    assert [one["id"] for one in found] == ids == [one["question_id"] for one in found]
    assert without_image(found[0]) == {"id": ids[0], "question_id": ids[0]} | fields
    if names:
        assert found[-1]["image"] == (images / names[-1]).read_bytes()


@pytest.mark.parametrize("write", [textvqa, vizwiz, gqa])
def test_one_answer_that_is_missing_is_named(tmp_path, write):
    arguments, names = write(tmp_path)
    path, images = arguments["questions"], write_images(tmp_path / "images", names)
    content = json.loads(path.read_text())
    rows = content.get("data") or list(content.values()) if type(content) is dict else content
    for number, row in enumerate(rows):
        row.pop("answers", None) or row.pop("answer")
        path.write_text(json.dumps(content))
        if number == 0:
            with pytest.raises(ValueError, match="1 of 2 questions have no answer"):
                make_source("vqa", kind=write.__name__, images=images, **arguments)
    source = make_source("vqa", kind=write.__name__, images=images, **arguments)
    assert all("answers" not in one for one in records(source))


def test_a_file_of_another_set_is_told(tmp_path):
    arguments, names = textvqa(tmp_path)
    images = write_images(tmp_path / "images", names)
    change(arguments["questions"], lambda content: content.update(dataset_name="textcaps"))
    with pytest.raises(ValueError, match="its dataset_name is 'textcaps', not 'textvqa'"):
        make_source("vqa", kind="textvqa", images=images, **arguments)


def test_answers_to_other_questions_are_told(tmp_path):
    arguments, names = llava_bench(tmp_path)
    images = write_images(tmp_path / "images", names)
    path = arguments["annotations"]
    path.write_text(path.read_text().replace('"question_id": 1', '"question_id": 5'))
    with pytest.raises(ValueError, match=r"1 of 2 questions have no annotation .* such as 1, 5"):
        make_source("vqa", kind="llava_bench", images=images, **arguments)


def test_pope_says_yes_or_no(tmp_path):
    row = {"question_id": 1, "image": NAMES[0], "text": "Is it?", "label": "maybe"}
    path = write_json(tmp_path / "coco_pope_random.json", [row])
    with pytest.raises(ValueError, match="question 1: 'maybe' is neither yes nor no"):
        make_source("vqa", kind="pope", questions=path, images=tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"coco_pope_random\.json, line 1: "):
        make_source("vqa", kind="pope", questions=path, images=tmp_path)


def test_shards_hold_the_same(tmp_path):
    questions, annotations, images = vqa_pair(tmp_path)
    text = f"vqa:kind=vqav2,questions={questions},annotations={annotations},images={images}"
    output = tmp_path / "shards"
    given = ["source", "--input", text, "--output", str(output), "--workers", "1"]
    assert command.main(given) == 0
    prepared = make_source("prepared", path=output)
    assert records(prepared) == records(vqa((questions, annotations, images)))


def test_a_bucket_gives_the_same(tmp_path, bucket_server):
    here = vqa_pair(tmp_path)
    root = storage_path("gs://bucket/vqa")
    for path in tmp_path.rglob("*.*"):
        (root / str(path.relative_to(tmp_path))).write_bytes(path.read_bytes())
    there = [root / str(path.relative_to(tmp_path)) for path in here]
    assert vqa(there).fingerprint() == vqa(here).fingerprint()
    assert records(vqa(there)) == records(vqa(here))
