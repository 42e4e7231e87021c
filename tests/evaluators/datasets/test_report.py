"""The last table of an evaluation: rows, chance, the paper's numbers, and the mean over 38."""

import pytest

from evaluators.datasets import report, tasks
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
    assert found["average"].startswith("There is no average")


def test_the_average_is_over_all_38():
    evaluated = {
        task.section: Evaluated({task.metrics[0]: i / 38}, "averaged", task.id)
        for i, task in enumerate(tasks.suite("datacomp38"))
    }
    means, missing = report.average(evaluated)
    assert means == {"averaged": pytest.approx(37 / 76)} and not missing
    assert report.text(evaluated).splitlines()[-1].split() == [
        *("average", "of", "datacomp38", "0.4868")
    ]
    evaluated.pop("cars")
    assert report.average(evaluated)[0] == {}
    assert "average" not in report.as_json({"mine": Evaluated({"a": 1.0}, "model")})
