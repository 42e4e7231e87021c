"""Files of answers: what is written is read again, and what does not fit is one error."""

import json

import pytest

from evaluators.answers.shared import command, predictions
from input_pipeline import command_line
from tests.evaluators.shared import toy

IDS = ["7", "x_1", "12", "13", "14"]
TEXTS = ["A", 'two "dogs"\tthere\nand', "ünïcode", "old\rlines", "\r\n"]
COLUMNS = {name for form in predictions.FORMS.values() for name in form.columns}
BESIDE = {name: f"some\n{name}" for name in COLUMNS} | {"metadata": {}}


@pytest.mark.parametrize("form", predictions.FORMS)
def test_every_form_is_read_again(form, tmp_path):
    path = tmp_path / "deep" / "file"
    texts = ["A", "Z", "", "B", ""] if form == "scienceqa" else TEXTS
    predictions.write(path, form, IDS, texts, [BESIDE] * 5)
    assert predictions.read(path) == dict(zip(IDS, texts))
    predictions.write(path, form, IDS[:1], ["B"], [BESIDE])
    assert predictions.read(path) == {"7": "B"}
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_forms_are_those_of_the_benchmarks(tmp_path):
    def written(form, ids=("42", "7")):
        predictions.write(tmp_path / "f", form, ids, ["yes", "B"], [BESIDE] * 2)
        return (tmp_path / "f").read_text()

    assert json.loads(written("coco"))[0] == {"image_id": 42, "caption": "yes"}
    assert json.loads(written("vqa"))[0] == {"question_id": 42, "answer": "yes"}
    assert json.loads(written("vizwiz"))[1] == {"image": "7", "answer": "B"}
    assert json.loads(written("gqa"))[0] == {"questionId": "42", "prediction": "yes"}
    assert json.loads(written("mmmu")) == {"42": "yes", "7": "B"} == json.loads(written("mmvet"))
    assert json.loads(written("scienceqa")) == {"results": {"42": -1, "7": 1}}
    first = written("seed").splitlines()[0]
    assert json.loads(first) == {"question_id": "42", "prediction": "yes"}
    assert written("mmbench") == "index\tprediction\n42\tyes\n7\tB\n"
    assert json.loads(written("llava_bench").splitlines()[0]) == {
        "question_id": 42,
        "prompt": "some\nprompt",
        "text": "yes",
        "answer_id": "some\nanswer_id",
        "model_id": "some\nmodel_id",
        "metadata": {},
    }
    assert written("touchstone").startswith(
        "index\tquestion\thuman_annotation\tgpt4_ha_answer\tcategory\ttask_name\tresponse\n"
    )
    # Ids are numbers or texts in all of a file.
    for odd in ("a", "007", "-1"):
        ids = [row["question_id"] for row in json.loads(written("vqa", ("42", odd)))]
        assert ids == ["42", odd]


def test_forms_for_a_judge_need_its_columns(tmp_path):
    with pytest.raises(ValueError, match=r"a column 'prompt', .* question 7.* transcripts"):
        predictions.write(tmp_path / "f", "llava_bench", ["7"], ["a"])
    with pytest.raises(ValueError, match="a column 'task_name'"):
        predictions.write(
            tmp_path / "f", "touchstone", ["7"], ["a"], [BESIDE | {"task_name": None}]
        )
    assert not (tmp_path / "f").exists()


def test_files_of_other_tools_are_read(tmp_path):
    """LLaVA's answers to any benchmark, ScienceQA's own results, and a table with its images."""
    path = tmp_path / "f"
    path.write_text('{"question_id": 7, "prompt": "x", "text": "no", "model_id": "y"}\n')
    assert predictions.read(path) == {"7": "no"}
    path.write_text('{"acc": 50.0, "results": {"3": 0, "5": "1", "7": -1}, "outputs": {"3": "A"}}')
    assert predictions.read(path) == {"3": "A", "5": "B", "7": ""}
    path.write_text(f"index\timage\tprediction\n1\t{'x' * 200_000}\tB\n")
    assert predictions.read(path) == {"1": "B"}
    for text in ('{"results": {"3": 99}}', '{"results": [1]}', '{"results": {"3": 0, "3": 1}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"holds no predictions|more than once"):
            predictions.read(path)


def test_what_does_not_fit_is_one_error(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(ValueError, match="1 ids occur more than once, such as '7'"):
        predictions.write(path, "vqa", ["7", "7"], ["a", "b"])
    assert not path.exists()
    with pytest.raises(ValueError, match="Unknown form 'cocoa'"):
        predictions.write(path, "cocoa", ["7"], ["a"])
    for text in ('[{"question_id": 7, "answer": "a"}, {"question_id": "7", "answer": "b"}]',
                 '{"7": "a", "7": "b"}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match="more than once, such as '7'"):
            predictions.read(path)
    for text in ("", "[]", "{}", "[1]", '{"a": 1}', '[{"id": 1}]', "text", "\xff"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no predictions"):
            predictions.read(path)
    with pytest.raises(ValueError, match="1 of its 2 ids are not in the data, such as 'y'"):
        predictions.matched({"x": "a", "y": "b"}, ["x"], "file")
    with pytest.raises(ValueError, match="1 of 2 questions have no answer, such as 'z'"):
        predictions.matched({"x": "a"}, ["x", "z"], "file")
    assert predictions.matched({"x": "a", "y": "b"}, ["y", "x"], "file") == ["b", "a"]


@pytest.fixture
def scored(monkeypatch, tmp_path, capsys):
    """Calls the command on answers to three questions."""
    source = toy.ToySource(
        {"caption": [["a cat sat"], ["a dog ran"], ["a red bird"]]},
        question=["?"] * 3,
        question_id=["1", "2", "3"],
        answers=[["red"], ["blue"], ["two"]],
        category=["x", "x", "y"],
    )
    monkeypatch.setattr(command_line, "open_source", lambda text: (text, {}, source))

    def call(answers, metric="vqa", *words):
        path = tmp_path / "answers.json"
        path.write_text(json.dumps(answers))
        status = command.main(
            ["--predictions", str(path), "--input", "toy:a=1", "--metric", metric, *words]
        )
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_a_file_is_scored_without_a_model(scored):
    status, out, _ = scored({"3": "2", "1": "Red.", "2": "red"}, "vqa:by=category", "--json")
    values = json.loads(out)
    assert status == 0 and values["exact_match"] == pytest.approx(2 / 3)
    assert values["exact_match_x"] == 0.5 and values["exact_match_y"] == 1
    assert values["exact_match_of_groups"] == 0.75
    assert values["exact_match_of_groups_harmonic"] == pytest.approx(2 / 3)
    status, out, _ = scored({"3": "2", "1": "Red.", "2": "red"}, "vqa:normalisation=plain")
    assert status == 0 and out.startswith("exact_match   0.0000\n")
    captions = {"1": "a cat sat", "2": "a dog ran", "3": "a red bird"}
    status, out, _ = scored(captions, "captions", "--json")
    assert status == 0 and json.loads(out)["bleu_3"] == pytest.approx(1)


@pytest.mark.parametrize(
    "answers, metric, message",
    [
        ({"1": "a", "2": "b", "9": "c"}, "vqa", "ids are not in the data, such as '9'"),
        ({"1": "a", "2": "b"}, "vqa", "1 of 3 questions have no answer, such as '3'"),
        ([1], "vqa", "holds no predictions"),
        ({"1": "a"}, "vqa:norm=x", "unexpected keyword argument 'norm'"),
        ({"1": "a"}, "vqa:normalisation=x", "Unknown normalisation 'x'"),
        ({"1": "a"}, "vqa:by=colour", "no field 'colour'"),
        ({"1": "a"}, "multiple_choice", "has 0 choices"),
        ({"1": "a"}, "yes_no", "not by yes or no alone"),
        ({"1": "a"}, "caption_loss", "has no Scoring"),
    ],
)
def test_an_error_is_one_line(scored, answers, metric, message):
    status, out, err = scored(answers, metric)
    assert status == 1 and out == ""
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("metric", ["vqa", "yes_no"])
def test_data_without_questions_are_one_error(metric, tmp_path, monkeypatch, capsys):
    source = toy.ToySource({"caption": [["a cat"]] * 3}, answers=[["yes"]] * 3)
    monkeypatch.setattr(command_line, "open_source", lambda text: (text, {}, source))
    path = tmp_path / "answers.json"
    path.write_text('{"toy-0": "yes"}')
    assert command.main(["--predictions", str(path), "--input", "t", "--metric", metric]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: Record 'toy-0' has no question") and err.count("\n") == 1


@pytest.mark.parametrize("answer", [None, ["yes"], True])
def test_an_answer_that_is_no_text_is_told(tmp_path, answer):
    """ "None" would be normalised to 0, which many questions are answered by."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"question_id": 7, "answer": answer}]))
    with pytest.raises(ValueError, match=r"results\.json: the answer of 7 is .*, no text"):
        predictions.read(path)


def test_tables_of_excel_and_odd_line_ends_are_read(tmp_path):
    table = tmp_path / "answers.tsv"
    table.write_bytes("\ufeffindex\tprediction\n1\tA\n2\tB\n".encode())
    assert predictions.read(table) == {"1": "A", "2": "B"}
    table.write_bytes(b"index\tprediction\n1\tA\n2\n")
    with pytest.raises(ValueError, match="the answer of '2' is None"):
        predictions.read(table)
    lines = tmp_path / "answers.jsonl"
    lines.write_text(
        json.dumps({"question_id": "a", "answer": "x\u2028y"}, ensure_ascii=False) + "\n"
    )
    assert predictions.read(lines) == {"a": "x\u2028y"}
    lines.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"answers\.jsonl is not UTF-8"):
        predictions.read(lines)


def test_a_metric_may_be_named_like_a_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "vqa").mkdir()
    (tmp_path / "none.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    given = ["--predictions", "none.json", "--input", "scenes", "--metric", "vqa"]
    assert command.main(given) == 1
    assert "none.json holds no predictions" in capsys.readouterr().err
