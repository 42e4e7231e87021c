"""`prepare --pack`: several records in one."""

import io
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare import cost
from input_pipeline.sources import make_source
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
            here = row["segments"] == place
            assert (row["token_types"][here] == 1).sum() == 6 * one["images"]
            assert (row["tokens"][here] == 2).sum() == len(one["conversation"]) // 2
            for nth in range(one["images"]):
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


def test_other_room_is_another_data_set(talks, tmp_path, capsys):
    assert pack(tmp_path / "out", talks, TALK) == 0
    assert pack(tmp_path / "out", talks, TALK.replace("turns", "all")) == 1
    assert "made with other options" in capsys.readouterr().err


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
        ("", ["--labels", "x.tsv"], "x.tsv"),
        (",max_images=4", [], "there twice"),
        (",tasks=ocr", [], "--pack: "),
        (",colour=red", [], "--pack: .*colour"),
    ],
)
def test_bad_arguments(talks, tmp_path, capsys, more, flags, message):
    assert pack(tmp_path / "out", talks, more, *flags) == 1
    assert re.search(message, capsys.readouterr().err)


def test_packs_need_a_number_of_images(talks, tmp_path, capsys):
    flags = ["--pack", ROOM.replace(",max_images=3", "")]
    assert run_source(tmp_path / "out", "prepared", f"path={talks}", *flags) == 1
    assert "--pack needs max_images" in capsys.readouterr().err


def test_what_rows_cost():
    """Of CogVLM-17B at 224 pixels: twice the parameters for each token, and attention."""
    language, tower, adapter = 6.476e9, 4.28e9, 142.6e6
    text, slots = 58, 258
    rows = cost.row_flops(1 + text, 1, 224, slots) / 3
    products = 2 * ((1 + text + slots) * (language + 4096 * 32000) + 257 * tower + slots * adapter)
    assert products < rows < 1.04 * products
    # Of equal examples the cheapest row is one that just holds them; of some long ones, less.
    assert cost.cheapest({30: (10, 200)}, 1, 224, slots)[0] == 29
    context, flops, cut = cost.cheapest({30: (100, 2000), 2000: (1, 20)}, 1, 224, slots)
    assert context == 29 and 0 < cut < 0.02
    assert flops < cost.row_flops(2000, 1, 224, slots) * 101 / 2020


def test_it_says_where_packing_does_not_pay(tmp_path, capsys):
    """Rows of one size with one text each leave nothing unused that packing could take."""
    records = [{"id": str(i), "image": png(i), "captions": {"a": ["red " * 40]}} for i in range(20)]
    source = write_prepared(tmp_path / "same", records)
    assert pack(tmp_path / "out", source) == 0
    assert "Packing does not pay here" in capsys.readouterr().out
