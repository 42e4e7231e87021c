"""The last table of an evaluation: rows, chance, the paper's numbers, and the mean over 38."""

import io
import math

import pytest
from matplotlib.axes import Axes
from PIL import Image

from evaluators.datasets import report, tasks
from evaluators.datasets.chart import chart
from evaluators.datasets.report import Evaluated

RETRIEVED = {"image_to_text_R@1": 0.5, "text_to_image_R@1": 0.25, "image_to_text_R@1_chance": 0.01}


def test_tasks_by_weights_with_chance_and_paper():
    asked = {"task": "cosmos/coco_val2017", "paper": "cosmos_vitb16_cc3m"}
    better = RETRIEVED | {"image_to_text_R@1": 0.75}
    evaluated = {
        "coco_val2017": Evaluated(RETRIEVED, "model", **asked),
        "coco_val2017_averaged": Evaluated(better, "averaged", **asked),
        "mine": Evaluated({"first": 0.125, "first_chance": 0.5, "second": 1.0}, "model"),
        "vtab_pets": Evaluated(
            {"top1_accuracy": 1.0, "mean_per_class_recall": 0.5}, "model", "datacomp38/vtab/pets"
        ),
    }  # fmt: skip
    assert report.text(evaluated).splitlines() == [
        "task             metric                  model  averaged  chance   paper",
        "COCO val2017     image_to_text_R@1      0.5000    0.7500  0.0100  0.5310",
        "COCO val2017     text_to_image_R@1      0.2500    0.2500       -  0.4010",
        "mine             first                  0.1250         -  0.5000       -",
        "Oxford-IIIT Pet  mean_per_class_recall  0.5000         -  0.0270       -",
        "There is no average of datacomp38: 37 of the 38 tasks are missing for the model weights.",
    ]
    lines = report.markdown(evaluated).splitlines()
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: |"
    assert lines[4] == "| mine | first | 0.1250 | - | 0.5000 | - |"
    found = report.as_json(evaluated)
    assert found["rows"][0] == {
        "name": "COCO val2017",
        "metric": "image_to_text_R@1",
        "values": {"model": 0.5, "averaged": 0.75},
        "chance": 0.01,
        "paper": 0.531,
    }
    assert found["missing"] == report.text(evaluated).splitlines()[-1:]
    assert "averages" not in found


def test_the_average_is_over_all_38():
    evaluated = {
        task.section: Evaluated({task.metrics[0]: i / 38}, "averaged", task.id)
        for i, task in enumerate(tasks.suite("datacomp38"))
    }
    (mean,), missing = report.means(evaluated)
    assert mean.values == {"averaged": pytest.approx(37 / 76)} and not missing
    assert report.text(evaluated).splitlines()[-1].split() == [
        *("average", "of", "datacomp38", "0.4868", "-", "-")
    ]
    evaluated.pop("cars")
    assert report.means(evaluated)[0] == []
    evaluated["cars"] = Evaluated({"top5_accuracy": 1.0}, "averaged", "datacomp38/cars")
    averages, (missing,) = report.means(evaluated)  # its main metric was not found
    assert averages == [] and "1 of the 38 tasks are missing" in missing
    assert report.as_json({"mine": Evaluated({"a": 1.0}, "model")}).keys() == {"rows"}


def test_a_set_of_many_languages_has_a_mean_of_each_direction():
    evaluated = {}
    for i, task in enumerate(tasks.suite("multilingual")):
        found = {"image_to_text_R@1": i / 100, "text_to_image_R@1": 0.5}
        for weights in ("model", "averaged"):
            evaluated[f"{task.section} {weights}"] = Evaluated(found, weights, task.id)
    evaluated.pop("xtd_zh averaged")
    averages, (missing,) = report.means(evaluated)
    of_xm, of_xtd = 35 / 2 / 100, (36 + 46) / 2 / 100
    expected = {
        ("average of XM3600", "image_to_text_R@1"): {"model": of_xm, "averaged": of_xm},
        ("average of XM3600", "text_to_image_R@1"): {"model": 0.5, "averaged": 0.5},
        ("average of XTD", "image_to_text_R@1"): {"model": of_xtd},
        ("average of XTD", "text_to_image_R@1"): {"model": 0.5},
    }
    assert {(row.name, row.metric): row.values for row in averages} == {
        key: pytest.approx(values) for key, values in expected.items()
    }
    assert missing == (
        "There is no average of XTD: 1 of the 11 tasks are missing for the averaged weights."
    )


def test_a_metric_that_was_not_found_is_a_dash():
    evaluated = {
        "sugarcrepe": Evaluated({"accuracy": 0.5}, "model", "composition/sugarcrepe"),
        "winoground": Evaluated({"image_accuracy": 0.25}, "model", "composition/winoground"),
    }
    assert [row.values for row in report.rows(evaluated)] == [
        {"model": None},
        {"model": 0.25},
        {"model": None},
        {"model": None},
    ]
    assert report.text(evaluated).splitlines()[1].split()[-4:-1] == [
        *("accuracy_of_kinds", "-", "0.5000")
    ]


def test_rows_of_two_suites_and_of_two_sections_are_told_apart():
    found = {"top1_accuracy": 0.5, "top1_accuracy_chance": 0.1}
    evaluated = {
        "imagenet1k": Evaluated(found, "model", "cosmos/imagenet1k", "cosmos_vitb16_cc3m"),
        "theirs": Evaluated(found, "model", "datacomp38/imagenet1k"),
        "averaged": Evaluated(found, "averaged", "datacomp38/imagenet1k"),
        "again": Evaluated(found | {"top1_accuracy": 0.75}, "model", "datacomp38/imagenet1k"),
        "pets": Evaluated(found, "model", "cosmos/pets"),
    }
    rows = report.rows(evaluated)
    assert [(row.name, row.values, row.chance, row.paper) for row in rows] == [
        ("ImageNet 1k (cosmos)", {"model": 0.5}, 0.1, 0.371),
        ("ImageNet 1k (datacomp38)", {"model": 0.5, "averaged": 0.5}, 0.001, None),
        ("ImageNet 1k (datacomp38) [again]", {"model": 0.75}, 0.001, None),
        ("Oxford-IIIT Pet", {"model": 0.5}, 0.1, None),  # not the chance of DataComp's metric
    ]


def test_the_chart_has_what_is_a_share(monkeypatch):
    drawn, barh = [], Axes.barh
    monkeypatch.setattr(
        Axes, "barh", lambda self, y, x, *a, **k: drawn.append(x) or barh(self, y, x, *a, **k)
    )
    rows = [
        report.Row("a", "accuracy", {"model": 0.5, "averaged": 0.75}, 0.1, 0.9),
        report.Row("b", "mean_rank", {"model": 17.0}, None, None),
        report.Row("c", "recall", {"model": math.nan, "averaged": 0.25}, None, None),
    ]
    picture = Image.open(io.BytesIO(chart(rows)))
    assert picture.format == "PNG" and picture.width == 770
    assert drawn == [(0.5,), (0.75, 0.25)]
    assert chart(rows[1:2]) is None
