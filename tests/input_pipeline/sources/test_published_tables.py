"""MMBench, MMMU, MathVista and TouchStone, tables of questions, as they are published."""

import base64
import csv
import io
import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from input_pipeline.images.crops import decode
from input_pipeline.sources import make_source
from tests.input_pipeline.sources.published import (
    records,
    without_image,
)
from tests.input_pipeline.sources.toy_task import image


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def mmbench(folder, **first):
    """As pandas writes it: the second row's image is the first's; the third and fourth are copies
    of the second and first, with the choices moved; a hint of two lines."""
    rows = [
        {
            "index": index,
            "question": 'Which "one"?',
            "hint": "" if index else "a\tb\nsecond line",
            "A": "yes" if index < 1_000_000 else "no",
            "B": "no" if index < 1_000_000 else "yes",
            "C": "",
            "D": "",
            "answer": "B" if index < 1_000_000 else "A",
            "category": "ocr",
            "image": picture,
            "l2-category": "finegrained",
            "split": "dev",
        }
        for index, picture in (
            (0, base64.b64encode(image(9)).decode()),
            (5, "0"),
            (1000005, "0"),
            (2000000, "0"),
        )
    ]
    rows[0] |= first
    return {"kind": "mmbench", "path": write_table(folder / "mmbench_dev.tsv", rows)}


def test_mmbench(tmp_path):
    source = make_source("choice_tables", **mmbench(tmp_path))
    first, second = records(source)
    assert source.left_out == {"copies with the choices moved": 2} and second["id"] == "5"
    assert without_image(first) == {
        "id": "0",
        "question_id": "0",
        "question": 'Which "one"?',
        "choices": ["yes", "no"],
        "answer": 1,
        "answers": ["no"],
        "hint": "a\tb\nsecond line",
        "category": "ocr",
        "domain": "finegrained",
        "split": "dev",
    }
    assert first["image"] == second["image"] == image(9) and "hint" not in second
    with pytest.raises(ValueError, match="1 of 2 questions have no answer, such as 0"):
        make_source("choice_tables", **mmbench(tmp_path, answer=""))
    path = mmbench(tmp_path)["path"]
    path.write_text(re.sub("\t[AB]\tocr", "\t\tocr", path.read_text()))
    secret = records(make_source("choice_tables", kind="mmbench", path=path))
    assert all("answer" not in one and "answers" not in one for one in secret)


def test_copies_of_mmbench(tmp_path):
    arguments = mmbench(tmp_path)
    source = make_source("choice_tables", **arguments, copies=True)
    found = records(source)
    originals = {one["id"]: one["original"] for one in found}
    assert originals == {"0": "0", "5": "5", "1000005": "5", "2000000": "0"}
    assert found[3]["choices"] == ["no", "yes"] and found[3]["answer"] == 0
    assert found[3]["image"] == image(9) and not source.left_out
    # By their index, wherever they stand; one without an original is a question.
    lines = read_table(arguments["path"])
    write_table(arguments["path"], [lines[2], lines[3] | {"index": "2000007"}, *lines[:2]])
    assert [one["id"] for one in records(make_source("choice_tables", **arguments))] == [
        *("2000007", "0", "5")
    ]
    with pytest.raises(ValueError, match="kind='touchstone' takes no copies"):
        make_source("choice_tables", **touchstone(tmp_path), copies=True)


def test_tables_take_little_more_memory_than_their_size(tmp_path):
    arguments = mmbench(tmp_path)
    lines = read_table(arguments["path"])
    big = [lines[0] | {"index": str(n), "image": "A" * 1_000_000} for n in range(10)]
    write_table(arguments["path"], big)
    tracemalloc.start()
    try:
        make_source("choice_tables", **arguments)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * arguments["path"].stat().st_size


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"answer": "C"}, "question 0: the answer 'C' is none of its 2 choices"),
        ({"index": 7}, "question 5: it has no image, but '0'"),
        ({"index": "x"}, "invalid literal"),
        ({"image": ""}, "question 0: it has no image, but ''"),
        ({"B": " "}, r"its choices are \['yes'\]"),
    ],
)
def test_rows_of_mmbench_that_are_none(tmp_path, first, message):
    with pytest.raises(ValueError, match=rf"mmbench_dev\.tsv cannot be used \(.*{message}"):
        make_source("choice_tables", **mmbench(tmp_path, **first))


def picture(width, height, level):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (level,) * 3).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def mmmu(folder, **first):
    """Two subjects, with files of the same name; the first question has two images."""
    for number, subject in enumerate(("Accounting", "Art_Theory")):
        row = {
            "id": f"validation_{subject}_{number + 1}",
            "question": "<image 1> What?",
            "options": "['$6', \"It's <image 2>\"]",
            "explanation": "",
            "image_1": picture(4, 2, 10),
            "image_2": None if number else picture(3, 5, 20),
            "img_type": "['Tables']",
            "answer": "B",
            "topic_difficulty": "Easy",
            "question_type": "multiple-choice",
            "subfield": "x",
        }
        (folder / subject).mkdir(parents=True, exist_ok=True)
        rows = [row | {} if number else row | first]
        if number:
            rows.append(
                row
                | {
                    "id": "validation_Art_Theory_3",
                    "question_type": "open",
                    "options": "[]",
                    "answer": "['8', '8.0']",
                }
            )
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {
            name: pa.array(
                [r[name] for r in rows], kind if name in ("image_1", "image_2") else None
            )
            for name in row
        }
        file = folder / subject / "validation-00000-of-00001.parquet"
        parquet.write_table(pa.table(columns), file, row_group_size=1)
    return {"kind": "mmmu", "path": folder / "*" / "validation-*.parquet"}


def test_mmmu(tmp_path):
    found = records(make_source("choice_tables", **mmmu(tmp_path)))
    assert without_image(found[0]) == {
        "id": "validation_Accounting_1",
        "question_id": "validation_Accounting_1",
        "question": "<image 1> What?",
        "choices": ["$6", "It's <image 2>"],
        "answer": 1,
        "answers": ["It's <image 2>"],
        "category": "Accounting",
        "split": "validation",
    }
    assert found[0]["image"] == picture(4, 2, 10)["bytes"]
    assert found[1]["category"] == "Art_Theory"
    assert found[2]["answers"] == ["8", "8.0"] and "choices" not in found[2]
    assert found[2]["answer_type"] == "text" and "answer_type" not in found[0]
    with pytest.raises(ValueError, match="1 of 3 questions have no answer, such as validation_Ac"):
        make_source("choice_tables", **mmmu(tmp_path, answer="?"))


def test_questions_of_one_kind(tmp_path):
    def read(questions):
        source = make_source("choice_tables", **mmmu(tmp_path), questions=questions)
        return [one["id"] for one in records(source)], source.left_out

    choices = ["validation_Accounting_1", "validation_Art_Theory_2"]
    assert read("choices") == (choices, {"questions without choices": 1})
    assert read("open") == (["validation_Art_Theory_3"], {"questions with choices": 2})
    with pytest.raises(ValueError, match="questions='text'; choose one of"):
        read("text")
    source = make_source("choice_tables", **mathvista(tmp_path), questions="open")
    assert source[0]["image"] == picture(3, 3, 1)["bytes"]  # that of its own row
    with pytest.raises(ValueError, match="kind='mmbench' takes no questions"):
        make_source("choice_tables", **mmbench(tmp_path), questions="open")


def test_all_images_of_mmmu_are_beside_each_other(tmp_path):
    found = records(make_source("choice_tables", **mmmu(tmp_path), images="all"))
    pixels = decode(found[0]["image"])
    expected = np.full((5, 7, 3), 255)
    expected[:2, :4], expected[:, 4:] = 10, 20
    np.testing.assert_array_equal(pixels, expected)
    assert found[1]["image"] == picture(4, 2, 10)["bytes"]  # one alone stays as it is
    with pytest.raises(ValueError, match="kind='mmbench' takes no images"):
        make_source("choice_tables", **mmbench(tmp_path), images="all")


def mathvista(folder, **first):
    rows = [
        {
            "pid": str(number + 1),
            "question": "How much?",
            "image": f"images/{number}.jpg",
            "decoded_image": picture(3, 3, number),
            "choices": None if number else ["4", "5"],
            "unit": "$" if number else None,
            "precision": 1.0 if number else None,
            "answer": "1.2" if number else "5",
            "question_type": "free_form" if number else "multi_choice",
            "answer_type": "float" if number else "text",
            "metadata": {
                "task": "geometry",
                "category": "math-targeted-vqa",
                "split": "testmini",
            },
            "query": "Hint: ...",
        }
        for number in range(2)
    ]
    rows[0] |= first
    parquet.write_table(pa.Table.from_pylist(rows), folder / "testmini-0.parquet")
    return {"kind": "mathvista", "path": folder / "testmini-*.parquet"}


def test_mathvista(tmp_path):
    first, second = records(make_source("choice_tables", **mathvista(tmp_path)))
    assert without_image(first) == {
        "id": "1",
        "question_id": "1",
        "question": "How much?",
        "choices": ["4", "5"],
        "answer": 1,
        "answers": ["5"],
        "category": "geometry",
        "domain": "math-targeted-vqa",
        "split": "testmini",
        "answer_type": "text",
    }
    assert second["answers"] == ["1.2"] and second["precision"] == 1.0
    assert second["question"] == "How much? (Unit: $)"
    assert "choices" not in second and second["image"] == picture(3, 3, 1)["bytes"]


def touchstone(folder, **first):
    rows = [
        {
            "index": number,
            "question": "What is\nfunny?",
            "human_annotation": 'A "red"\tcat.',
            "gpt4_ha_answer": "It is red.",
            "category": "Analysis",
            "task_name": "meme",
            "image": base64.b64encode(image(number)).decode(),
        }
        for number in range(2)
    ]
    rows[0] |= first
    return {"kind": "touchstone", "path": write_table(folder / "touchstone_20230831.tsv", rows)}


def test_touchstone(tmp_path):
    found = records(make_source("choice_tables", **touchstone(tmp_path)))
    assert without_image(found[0]) == {
        "id": "0",
        "question_id": "0",
        "question": "What is\nfunny?",
        "answers": ["It is red."],
        "description": 'A "red"\tcat.',
        "category": "Analysis",
        "task": "meme",
    }
    assert found[1]["image"] == image(1)
    # What its judge alone reads may be blank.
    blank = touchstone(tmp_path, human_annotation=" ", gpt4_ha_answer="")
    first, second = records(make_source("choice_tables", **blank))
    assert (first["answers"], first["description"]) == ([""], "") and second == found[1]
    with pytest.raises(ValueError, match=r"cannot be used \(question 0:.*no text"):
        make_source("choice_tables", **touchstone(tmp_path, question=""))


def test_tables_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_source("choice_tables", kind="mmmu", path=tmp_path / "*.parquet")
    with pytest.raises(ValueError, match="in a bucket, and tables of images are read from a disk"):
        make_source("choice_tables", kind="mmmu", path="gs://bucket/*.parquet")
    with pytest.raises(ValueError, match=r"the answer '6' is not in \['4', '5'\]"):
        make_source("choice_tables", **mathvista(tmp_path, answer="6"))
    with pytest.raises(ValueError, match="it has no column 'id'"):
        make_source("choice_tables", **mathvista(tmp_path) | {"kind": "mmmu"})
    with pytest.raises(ValueError, match="is not SPLIT_SUBJECT_NUMBER"):
        make_source("choice_tables", **mmmu(tmp_path, id="first"))
    with pytest.raises(ValueError, match="two entries have the id 'validation_Art_Theory_3'"):
        make_source("choice_tables", **mmmu(tmp_path, id="validation_Art_Theory_3"))
    source = make_source("choice_tables", **mmmu(tmp_path, image_1=None, image_2=None))
    with pytest.raises(ValueError, match="'validation_Accounting_1' has no image"):
        source[0]
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be used"):
        make_source("choice_tables", kind="mmmu", path=tmp_path / "a.parquet")
    arguments = mmbench(tmp_path)
    arguments["path"].write_text('index\timage\n0\t"never closed')
    with pytest.raises(ValueError, match=r"mmbench_dev\.tsv cannot be used \(behind line 1: unexp"):
        make_source("choice_tables", **arguments)
