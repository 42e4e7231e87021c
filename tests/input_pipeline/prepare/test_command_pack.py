"""`prepare --pack`: several records in one."""

import io
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from input_pipeline.command_line import parse_arguments
from input_pipeline.prepare import cost
from input_pipeline.records import images_of
from input_pipeline.sources import make_source
from input_pipeline.text.conversations import make_turn
from input_pipeline.views import make_views
from tests.input_pipeline.prepare.prepare_data import contents, run_source, write_prepared

VIEWS = {
    "tokenizer": "llama:scenes",
    "image_size": 28,
    "image_token_size": 14,
    "context_length": 200,
    "max_images": 3,
}
ROOM = "tokenizer=llama:scenes,image_size=28,image_token_size=14,context_length=200,max_images=3"


def png(number):
    """A picture that says its number."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def talk(number):
    rounds = [
        {"role": role, "content": text}
        for i in range(1 + number % 4 * (number % 7 > 0))
        for role, text in (("user", f"is it {i} ?"), ("assistant", "red " * (1 + number % 5)))
    ]
    images = {"images": []} if number % 7 == 0 else {"image": png(number)}
    if number % 5 == 1:
        images = {"images": [png(number), png(number + 100)]}
    return {"id": str(number), **images, "captions": {}, "conversation": rounds}


@pytest.fixture
def talks(tmp_path):
    return write_prepared(tmp_path / "talks", [talk(number) for number in range(60)])


def pack(output, source, more="", *flags, workers=1):
    arguments = ["--pack", ROOM + more, "--records-per-shard", "25", *flags]
    return run_source(output, "prepared", f"path={source}", *arguments, workers=workers)


TALK = ',history=turns,tasks={"conversation":1}'


def test_each_record_is_in_one_pack_that_fits_its_row(talks, tmp_path, capsys):
    assert pack(tmp_path / "out", talks, TALK) == 0
    source = make_source("prepared", path=tmp_path / "out")
    views = make_views("cogvlm", **VIEWS, history="turns", tasks={"conversation": 1})
    seen = {}
    for number in range(len(source)):
        record = source[number]
        row = views(record, random.Random(0))
        assert row["segments"].max() == len(record["examples"])
        pictures = iter(row["images"])
        for place, one in enumerate(record["examples"], 1):
            original = talk(int(one["id"]))
            assert one["conversation"] == original["conversation"]
            here, images = row["segments"] == place, one.get("images", 1)
            assert images == len(images_of(original))
            assert (row["token_types"][here] == 1).sum() == 6 * images
            assert (row["tokens"][here] == 2).sum() == len(one["conversation"]) // 2
            for nth in range(images):
                assert (next(pictures) == int(one["id"]) + 100 * nth).all()
            seen[one["id"]] = seen.get(one["id"], 0) + 1
    assert seen == {str(number): 1 for number in range(60)}
    assert len(source) < 40
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    packs = description["packs"]
    assert (packs["rows"], packs["examples"]) == (len(source), 60)
    assert packs["rounds_left_out"] == packs["answers_cut"] == 0
    assert description["num_samples"] == 60 and description["num_records"] == len(source)
    assert "Packs: 60 examples in" in capsys.readouterr().out


def test_the_output_depends_on_input_and_options_alone(talks, tmp_path):
    """Any number of workers, and a run that was killed."""
    assert pack(tmp_path / "one", talks, TALK) == 0
    assert pack(tmp_path / "many", talks, TALK, workers=3) == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    for name in ("dataset.json", "prepared-00001.array_record.json"):
        (tmp_path / "many" / name).unlink()
    (tmp_path / "many" / ".prepared-00002.array_record.1.tmp").write_bytes(b"half")
    assert pack(tmp_path / "many", talks, TALK) == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_what_fits_no_row_is_left_out_and_told(tmp_path, capsys):
    long = talk(2) | {"id": "long"}
    long["conversation"] = [{**m, "content": "red " * 300} for m in long["conversation"][:2]]
    cut = talk(3) | {"id": "cut"}
    cut["conversation"] = [{**m, "content": "red " * 60} for m in cut["conversation"][:4]]
    source = write_prepared(tmp_path / "talks", [talk(1), long, cut])
    assert pack(tmp_path / "out", source, TALK) == 0
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["dropped"] == {"cannot be laid out": 1}
    assert description["packs"]["rounds_left_out"] == 1
    assert "'long': its prompt" in capsys.readouterr().out


def test_some_draws_that_are_too_long_drop_nothing(tmp_path):
    """And a pack that is written can be read whatever is drawn."""
    asked = [{"question": "red " * 400, "answers": ["no"]}] * 3
    asked += [{"question": "red ?", "answers": ["yes"]}] * 3
    records = [
        {"id": str(i), "image": png(i), "captions": {}, "questions": asked} for i in range(6)
    ]
    source = write_prepared(tmp_path / "talks", records)
    assert pack(tmp_path / "out", source, ',tasks={"vqa":1}') == 0
    found = make_source("prepared", path=tmp_path / "out")
    views = make_views("cogvlm", **VIEWS, tasks={"vqa": 1})
    kept = [one["id"] for i in range(len(found)) for one in found[i]["examples"]]
    assert len(kept) == 6
    for number in range(len(found)):
        for seed in range(50):
            views(found[number], random.Random(seed))


def test_places_that_are_not_there_drop_one_record(tmp_path, capsys):
    wrong = talk(1) | {"id": "wrong"}
    wrong["conversation"] = [
        {"role": "user", "content": "<image 3>"},
        {"role": "assistant", "content": "red"},
    ]
    source = write_prepared(tmp_path / "talks", [talk(2), wrong, talk(3) | {"other": [b"a"]}])
    assert pack(tmp_path / "out", source, TALK) == 0
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["dropped"] == {"cannot be laid out": 1}
    assert "'wrong': its text says <image 3>, but it has 2 images" in capsys.readouterr().out


def test_a_run_asks_for_what_the_packs_were_made_for(talks, tmp_path):
    assert pack(tmp_path / "out", talks, TALK) == 0
    source = make_source("prepared", path=tmp_path / "out")
    part = {"name": "prepared", "path": str(tmp_path / "out"), "fraction": 0.5}
    given = VIEWS | {"history": "turns", "tasks": {"conversation": 1.0}}
    for packed in (source, make_source("mixture", sources=[part])):
        make_views("cogvlm", **given | {"image_size": 56}).check_source(packed)
        other = {"context_length": 100, "history": "all"}
        with pytest.raises(ValueError, match=r"with context_length=200, history='turns'\. Set"):
            make_views("cogvlm", **given | other).check_source(packed)
        with pytest.raises(ValueError, match="with max_images=3"):
            make_views("cogvlm", **given | {"max_images": None}).check_source(packed)
    make_views("cogvlm", **given).check_source(make_source("prepared", path=talks))


def test_other_room_is_another_data_set(talks, tmp_path, capsys):
    assert pack(tmp_path / "out", talks, TALK) == 0
    assert pack(tmp_path / "out", talks, TALK.replace("turns", "all")) == 1
    assert "made with other options" in capsys.readouterr().err
    arguments = ["--pack", ROOM.replace("size=28", "size=56") + TALK]
    arguments += ["--records-per-shard", "25"]
    assert run_source(tmp_path / "out", "prepared", f"path={talks}", *arguments) == 0


def questions(count=4, **more):
    return [
        {"id": str(i), "image": png(1), "captions": {}, "question": f"is it {i} ?"}
        | {"answers": ["yes"], **more}
        for i in range(count)
    ]


def packed_examples(tmp_path, records, more):
    source = write_prepared(tmp_path / "asked", records)
    assert pack(tmp_path / "packs", source, more) == 0
    found = make_source("prepared", path=tmp_path / "packs")
    return [one for i in range(len(found)) for one in found[i]["examples"]]


@pytest.mark.parametrize("tasks", ['{"vqa":1,"cot":1}', '{"cot":1}'])
def test_reasons_stay_with_their_questions(tmp_path, tasks):
    reason = "it is red [[100,200,300,400]]"
    records = questions(3, rationale=reason)
    records[1]["image"] = png(2)
    found = packed_examples(tmp_path, records, f",history=turns,tasks={tasks}")
    assert [len(one.get("questions", [0])) for one in found] == [2, 1]
    for one in found:
        turn = make_turn("cot", one, random.Random(0), history="turns")
        assert len(turn.history) == len(one.get("questions", [0])) - 1
        assert turn.answer == f"{reason}. So the answer is yes."


def test_questions_are_joined_only_where_all_else_is_the_same(tmp_path):
    records = questions(6)
    records[1]["captions"] = records[4]["captions"] = {"a": ["red"]}
    records[2]["conversation"] = talk(2)["conversation"]
    records[3] |= {"phrases": ["red"], "boxes": np.float32([[0, 0, 1, 1]])}
    records[5] = {**records[5], "questions": [{"question": "red ?", "answers": ["yes"]}] * 2}
    for record in records:
        record["kind"] = record["id"]  # which is the question's own
    more = ',history=turns,tasks={"vqa":1,"caption":1,"rec":1,"conversation":1}'
    found = packed_examples(tmp_path, records, more)
    by_ids = {
        tuple(q["kind"] for q in one["questions"]) if one["id"] != "5" and "questions" in one
        else one["id"]: one
        for one in found
    }  # fmt: skip
    assert by_ids.keys() == {"0", ("1", "4"), "2", "3", "5"}
    assert by_ids["1", "4"]["captions"] == {"a": ["red"]}
    assert by_ids["3"]["phrases"] == ["red"] and by_ids["2"]["conversation"]
    assert len(by_ids["5"]["questions"]) == 2


def test_questions_about_an_image_become_rounds_of_one_example(tmp_path):
    records = [
        {"id": str(i), "image": png(i // 4), "captions": {}, "question": f"is it {i} ?"}
        | {"answers": ["yes"]}
        for i in range(16)
    ]
    source = write_prepared(tmp_path / "vqa", records)
    for history, expected in (("turns", 4), ("all", 16)):
        more = f',history={history},tasks={{"vqa":1}}'
        assert pack(tmp_path / history, source, more) == 0
        found = make_source("prepared", path=tmp_path / history)
        examples = [one for i in range(len(found)) for one in found[i]["examples"]]
        assert len(examples) == expected
        asked = sorted(
            (q["question"] for one in examples for q in one.get("questions", [one])),
            key=lambda text: int(text.split()[2]),
        )
        assert asked == [f"is it {i} ?" for i in range(16)]
    row = make_views("cogvlm", **VIEWS, history="turns", tasks={"vqa": 1})(
        make_source("prepared", path=tmp_path / "turns")[0], random.Random(0)
    )
    assert row["segments"].max() == 2 and (row["tokens"] == 2).sum() == 8


def test_questions_that_do_not_fit_one_row_are_several_examples(tmp_path):
    records = [
        {"id": str(i), "image": png(1), "captions": {}, "question": f"is it {i} ?"}
        | {"answers": ["red " * 12]}
        for i in range(9)
    ]
    source = write_prepared(tmp_path / "vqa", records)
    assert pack(tmp_path / "out", source, ',history=turns,tasks={"vqa":1}') == 0
    found = make_source("prepared", path=tmp_path / "out")
    examples = [one for i in range(len(found)) for one in found[i]["examples"]]
    assert 1 < len(examples) < 9 and sum(len(one["questions"]) for one in examples) == 9


def test_boxes_and_captions_go_along_and_other_arrays_do_not(tmp_path):
    more = ',tasks={"caption":1,"rec":1},caption_fields=["caption"]'
    flags = ["--pack", ROOM + more]
    assert run_source(tmp_path / "out", "scenes", "size=12", "image_size=32", *flags) == 0
    source = make_source("prepared", path=tmp_path / "out")
    views = make_views(
        "cogvlm", **VIEWS, tasks={"caption": 1, "rec": 1}, caption_fields=["caption"]
    )
    kinds = set()
    for number in range(len(source)):
        assert all("mask" not in one for one in source[number]["examples"])
        for seed in range(5):
            row = views(source[number], random.Random(seed))
            for text in views.texts({name: value[None] for name, value in row.items()})[0]:
                kinds.add("Where" in text)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "more, flags, message",
    [
        (",max_images=4", [], "--pack .*'max_images=4' is not KEY=VALUE, or there twice"),
        (",tasks=ocr", [], "--pack: tasks='ocr'; give a section"),
        (",colour=red", [], "--pack: .*unexpected keyword argument 'colour'"),
        (",history=some", [], "--pack: Unknown history 'some'"),
    ],
)
def test_bad_arguments(talks, tmp_path, capsys, more, flags, message):
    assert pack(tmp_path / "out", talks, more, *flags) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "value, message",
    [
        (ROOM.replace(",max_images=3", ""), "--pack: it needs max_images"),
        (ROOM.replace("size=28", "size=abc"), "--pack: image_size='abc'; give a whole number"),
        ("foo", "--pack 'foo': 'foo' is not KEY=VALUE"),
    ],
)
def test_other_values(talks, tmp_path, capsys, value, message):
    flags = ["--pack", value]
    assert run_source(tmp_path / "out", "prepared", f"path={talks}", *flags) == 1
    assert message in capsys.readouterr().err


def test_packs_and_labels_are_for_different_models(talks, tmp_path, capsys):
    assert pack(tmp_path / "out", talks, "", "--labels", "x.tsv") == 1
    assert "--pack and --labels are for different models" in capsys.readouterr().err


def test_what_is_told_of_the_command_makes_the_same(talks, tmp_path):
    """Also where text looks like JSON."""
    more = ',history=turns,tasks={"conversation":1},caption_fields=["a","1"]'
    assert pack(tmp_path / "out", talks, more) == 0
    told = json.loads((tmp_path / "out" / "dataset.json").read_text())["made_by"]["arguments"]
    given = parse_arguments(told[told.index("--pack") + 1], "--pack")
    assert given == parse_arguments(ROOM + more, "--pack")


@pytest.mark.parametrize("layout, images", [("static", 1), ("general", 1), ("general", 2)])
def test_what_rows_cost(layout, images):
    """Of CogVLM-17B at 224 pixels: twice the parameters for each token, and attention over the
    whole row; the tower's over the patches of each image and its class token."""
    language, tower, adapter = 6.476e9, 4.28e9, 142.6e6
    text, slots, patches = 300, 258, 256
    length = text + images * slots
    predicted = text - 1 if layout == "static" else length - 1
    expected = length * language + predicted * 4096 * 32000 + images * patches * adapter
    expected += images * (patches + 1) * tower
    expected += 2 * 32 * length**2 * 4096 + images * 2 * 63 * (patches + 1) ** 2 * 1792
    found = cost.row_flops(text, images, 224, slots, layout)
    assert found == pytest.approx(3 * 2 * expected, rel=1e-3)


def test_the_cheapest_row():
    """Of equal examples it is one that just holds them; of some long ones, less."""
    row = 1, 224, 258, "static"
    assert cost.cheapest({30: (10, 200)}, *row)[0] == 29
    context, flops, cut = cost.cheapest({30: (100, 2000), 2000: (1, 20)}, *row)
    assert context == 29 and 0 < cut < 0.02
    assert flops < cost.row_flops(2000, *row) * 101 / 2020


def test_it_says_where_packing_does_not_pay(tmp_path, capsys):
    """Rows of one size with one text each leave nothing unused that packing could take."""
    records = [{"id": str(i), "image": png(i), "captions": {"a": ["red " * 40]}} for i in range(20)]
    source = write_prepared(tmp_path / "same", records)
    assert pack(tmp_path / "out", source) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "Packing does not pay here" in told
    assert re.search(r"layout='static', room for 1\s+images", told)
