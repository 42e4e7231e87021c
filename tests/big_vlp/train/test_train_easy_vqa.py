"""configs/easy_vqa.py from the files as they are published to the scores of a file of answers."""

import json
import random

import pytest
from PIL import Image, ImageDraw

from big_vlp.evaluate import evaluate
from big_vlp.run.log import read_log
from big_vlp.train import train
from configs import easy_vqa
from evaluators.answers.shared import command as answers
from input_pipeline.prepare import command as prepare
from input_pipeline.text import train_tokenizer

SHAPES, COLOURS = ("circle", "rectangle", "triangle"), ("red", "green", "blue", "teal")
# Of a split: images, and so questions.
SIZES = {"train": 12, "test": 7}


def write_package(folder):
    """easy_vqa/data of the package: SPLIT/questions.json ([question, answer, image], ...) and
    SPLIT/images/NUMBER.png of 64 pixels."""
    rng = random.Random(0)
    for split, count in SIZES.items():
        (folder / split / "images").mkdir(parents=True)
        questions = []
        for number in range(count):
            shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
            image = Image.new("RGB", (64, 64), "ivory")
            sides = 4 if shape == "rectangle" else 3
            draw = ImageDraw.Draw(image)
            if shape == "circle":
                draw.circle((30, 34), 12, colour)
            else:
                draw.regular_polygon((30, 34, 12), sides, fill=colour)
            image.save(folder / split / "images" / f"{number}.png")
            other = rng.choice(COLOURS)
            questions += [
                ["what shape is in the image?", shape, number],
                [f"what color is the {shape}?", colour, number],
                [f"is there a {other} shape?", "yes" if other == colour else "no", number],
                [f"is there not a {shape}?", "no", number],
            ]
        rng.shuffle(questions)
        (folder / split / "questions.json").write_text(json.dumps(questions))


@pytest.fixture
def data(tmp_path, monkeypatch, capsys):
    """What the docs make of the package, in data/."""
    monkeypatch.chdir(tmp_path)
    write_package(tmp_path / "easy_vqa")
    source = "vqa:kind=easy_vqa,questions=easy_vqa,split="
    words = ["--input", f"{source}train", "--vocab-size", "400", "--output", "data/easy_vqa.model"]
    assert train_tokenizer.main(words) == 0
    for split in SIZES:
        words = ["source", "--input", source + split, "--output", f"data/easy_vqa_{split}"]
        assert prepare.main([*words, "--workers", "1"]) == 0
    capsys.readouterr()


def small(arg=None):
    config = easy_vqa.get_config(arg)
    config.update(total_steps=4, global_batch=8, log_every_steps=4)
    config.plan.at_step, config.optim.warmup_steps, config.checkpoint.every_steps = 2, 1, 4
    config.preprocess.context_length = 30  # the vocabulary of so few texts is small
    for part in (config.method.model.text, config.method.model.image):
        part.update(width=16, layers=1, heads=2)
    config.evals.questions.update(every_steps=4, batch_size=16)
    return config


def test_from_the_published_files_to_scores(data, tmp_path, capsys):
    """A part of the questions is asked in training, and all of them, with controls, by `test`."""
    config = small()
    config.evals.questions.data.fraction = 0.5  # a tenth leaves too few
    train(config, tmp_path / "run")
    [part] = [x["values"] for x in read_log(tmp_path / "run") if x["split"] == "questions"]
    assert "exact_match_color" in part and not any("blind" in name for name in part)

    config = small("test")
    config.evals.questions.predictions = "predictions.json"
    evaluate(config, tmp_path / "run")
    table = json.loads((tmp_path / "run" / "evaluate" / "4.json").read_text())["questions"]
    for group in ("yes/no", "shape", "color"):
        assert f"exact_match_{group}" in table and f"exact_match_{group}_blind" in table
    assert 0 < table["exact_match_baseline"] < 1 and "exact_match_shuffled" in table

    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [one["question_id"] for one in written] == [f"test/{i}" for i in range(28)]
    capsys.readouterr()
    call = ["--predictions", "predictions.json", "--input", "data/easy_vqa_test", "--json"]
    assert answers.main([*call, "--metric", "vqa:by=category"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert len(scored) == 14
    assert scored == {name: pytest.approx(table[name]) for name in scored}
