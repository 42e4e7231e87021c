"""Suites: which tasks there are, what is found on a disk, and what is said of the rest."""

import collections
import hashlib
import inspect
import json
import re

import numpy as np
import pytest

from configs import cogvlm
from evaluators.answers.shared.predictions import check_form
from evaluators.datasets import command, report, suites, tables, tasks
from evaluators.datasets.suites import suite
from evaluators.maps import zeroshot_segmentation
from input_pipeline.checks.parts import find
from input_pipeline.records import FORMAT_VERSION
from input_pipeline.sources import make_source
from tests.input_pipeline.sources.toy_task import image, write_labelled, write_task

SAMPLE = {"png": image(), "cls": b"0"}


def prepare(folder, class_names):
    """The description of prepared shards, and one of the right size."""
    folder.mkdir()
    (folder / "a.array_record").write_bytes(bytes(8))
    shard = {"file": "a.array_record", "bytes": 8, "records": 1, "sha256": "00" * 32}
    description = {"version": FORMAT_VERSION, "shards": [shard], "class_names": class_names}
    (folder / "dataset.json").write_text(json.dumps(description))


def test_datacomp_is_whole():
    rows = tasks.suite("datacomp38")
    assert len(rows) == len({task.section for task in rows}) == 38
    text = (tasks._FOLDER / "datacomp38.tsv").read_bytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "069df000ac09fc88"
    assert collections.Counter(task.metrics[0] for task in rows) == {
        "top1_accuracy": 27,
        "mean_per_class_recall": 4,
        "mean_R@1": 2,
        "worst_region_top1_accuracy": 2,
        "worst_income_top5_accuracy": 1,
        "jaccard_10_to_12": 1,
        "macro_f1": 1,
    }
    assert sum(task.images for task in rows if "winogavil" not in task.id) == 693_806
    assert sum(task.chance is None for task in rows) == 4  # the pairs, and fairness


def test_cosmos_asks_as_published():
    rows = tasks.suite("cosmos")
    zeroshot = [task for task in rows if task.settings["evaluator"] == "zeroshot"]
    segmented = [task for task in rows if task.settings["evaluator"] == "zeroshot_segmentation"]
    counts = dict(food101=1, cifar10=18, cifar100=18, sun397=2, cars=8, fgvc_aircraft=2)
    counts |= dict(dtd=8, pets=1, caltech101=34, flowers=1, imagenet1k=80)
    found = {
        task.section: len(suites.tables.templates(task.settings["templates"])) for task in zeroshot
    }
    assert found == counts
    assert all(task.metrics == ("top1_accuracy",) for task in zeroshot)
    assert all(task.chance is None for task in zeroshot)  # the metric's own, by the classes
    names = {task.section: task.settings.get("class_names") for task in zeroshot}
    assert names.pop("caltech101") is None and None not in names.values()
    sizes = {task.section: len(suites.tables.class_names(names[task.section]))
             for task in zeroshot if task.section in names}  # fmt: skip
    assert sizes["imagenet1k"] == 1000 and sizes["pets"] == 37 and sizes["sun397"] == 397
    assert {task.section for task in rows} - counts.keys() == {
        *("coco_val2017", "flickr30k_val", "sugarcrepe", "mmvp_vlm", "svo_probes"),
        *(task.section for task in segmented),
    }


def test_published_numbers_are_of_tasks_and_in_their_metrics_units():
    """Shares, and CIDEr as it is counted here, not times 100."""
    rows = [task for name in ("cosmos", "cogvlm", "llava") for task in tasks.suite(name)]
    known = {task.section: set(task.metrics) for task in rows}
    published = tasks.papers()
    assert sum(name.startswith("cosmos_") for name in published) == 10
    for numbers in published.values():
        for section, metrics in numbers.items():
            assert metrics.keys() <= known[section]
            for metric, value in metrics.items():
                low, high = (0.9, 1.6) if metric.startswith("cider") else (0, 1)
                assert low < value < high


def test_cogvlms_sets():
    """Its benchmarks, by split, asked by evaluators that take the keys; ablations by name."""
    rows = tasks.suite("cogvlm")
    splits = {
        **dict(nocaps={"val", "test"}, coco={"karpathy_test"}, visual7w={"test"}),
        **dict(flickr30k={"karpathy_test", "entities_test"}),
        **dict(textcaps={"val", "test"}, vqav2={"val", "testdev"}, okvqa={"val"}),
        **dict(textvqa={"val"}, ocrvqa={"test"}, tdiuc={"val"}, scienceqa={"test"}),
        **dict(mmbench={"dev"}, mmmu={"val"}, mathvista={"testmini"}),
        **dict(refcoco={"val", "testA", "testB"}, refcocoplus={"val", "testA", "testB"}),
        **dict(refcocog={"val", "test"}, llava={"bench"}),
        **{name: set() for name in ("seedbench", "pope", "mmvp", "mmvet", "touchstone")},
    }
    found = {}
    for task in rows:
        name, _, split = task.section.partition("_")
        found.setdefault(name, set()).update({split} if split else ())
        settings = dict(task.settings)
        evaluator = find("evaluator", "evaluators", settings.pop("evaluator"), "Evaluator")
        inspect.signature(evaluator).bind("predict_fns", "preprocess", "mesh", data={}, **settings)
        if "predictions" in inspect.signature(evaluator).parameters:
            check_form(settings["form"])
        source, keys = re.match(r"prepare it .*: (\w+)(?::(\S+))?: ", task.source).groups()
        keys = dict(pair.split("=") for pair in keys.split(",")) if keys else {}
        module = find("source", "input_pipeline.sources", source, "Source")
        inspect.signature(module).bind_partial(**keys)
        assert keys.get("kind") in getattr(inspect.getmodule(module), "KINDS", {None})
    assert found == splits
    asked = {task.section: task.settings["evaluator"] for task in rows}
    judged = {name for name, evaluator in asked.items() if evaluator == "transcripts"}
    assert judged == {"mmvet", "llava_bench", "touchstone"}
    assert asked["mathvista_testmini"] == asked["mmmu_val"] == asked["mmvp"] == "multiple_choice"
    assert asked["flickr30k_entities_test"] == "grounded_captions"
    published = tasks.papers()["cogvlm-chat"]
    assert (published["mmmu_val"], published["mathvista_testmini"]) == (
        *({"accuracy": 0.411}, {"accuracy": 0.345}),
    )
    assert {task.section for task in rows if task.secret} == {
        *("nocaps_test", "textcaps_test", "vqav2_testdev", "mmvet", "llava_bench", "touchstone"),
    }
    ablations = {name for name in tasks.papers() if name.startswith("cogvlm-ablation-")}
    assert {name.removeprefix("cogvlm-ablation-") for name in ablations} == set(cogvlm.ABLATIONS)
    assert {task.section for task in tasks.suite("llava")} == {"gqa_testdev", "textvqa_val", "pope"}


def test_cogvlms_sets_are_prepared_shards(tmp_path, capsys):
    for name in ("nocaps_val", "vqav2_testdev", "mmvp"):
        prepare(tmp_path / name, class_names=None)
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "coco_pope_random.json").touch()
    found = suite("cogvlm", tmp_path, every_steps=3, paper="cogvlm-base")
    assert list(found) == ["nocaps_val", "mmvp"]
    assert found["nocaps_val"] == {
        **dict(evaluator="captions", form="coco", by="domain", every_steps=3, weights="model"),
        **dict(batch_size=512, task="cogvlm/nocaps_val", paper="cogvlm-base"),
        "data": {"name": "prepared", "path": str(tmp_path / "nocaps_val")},
    }
    [line] = capsys.readouterr().err.splitlines()
    assert "vqav2_testdev: nobody here can score it; give predictions=DIR" in line
    assert "pope: holds no prepared shards" in line
    found = suite("cogvlm", tmp_path, every_steps=3, predictions=tmp_path / "out")
    assert list(found) == ["nocaps_val", "vqav2_testdev", "mmvp"]
    assert found["vqav2_testdev"]["predictions"] == f"{tmp_path}/out/vqav2_testdev.json"
    weights = ("model", "averaged")
    several = suite("cogvlm", tmp_path, every_steps=3, weights=weights, predictions="out")
    files = [section["predictions"] for section in several.values()]
    assert len(set(files)) == len(files) == 6


def test_the_table_has_the_papers_number_beside_a_set_of_predictions_alone():
    one = report.Evaluated({}, "model", "cogvlm/vqav2_testdev", "cogvlm-chat")
    [row] = report.rows({"vqav2_testdev": one})
    assert row == ("VQAv2 test-dev", "vqa_accuracy", {"model": None}, None, 0.823)
    own = report.Evaluated({"cider": 1.3}, "model", "cogvlm/nocaps_val", "cogvlm-base")
    text = report.text({"nocaps_val": own})
    assert "NoCaps val" in text and "1.3000" in text and "1.2830" in text and "1.3260" in text


def test_segmentation_is_asked_as_published():
    """Side of the images, scale, thresholds, whether 0 is a class, and the number of classes."""
    expected = {
        "voc21": (336, 65, 0.1, 0.1, True, 21),
        "context60": (336, 50, 0.1, None, True, 60),
        "coco_object": (336, 50, 0.1, None, True, 81),
        "voc20": (336, 40, 0, None, False, 20),
        "cityscapes": (560, 40, 0, None, True, 19),
        "context59": (336, 40, 0, None, False, 59),
        "ade20k": (336, 40, 0, None, False, 150),
        "coco_stuff": (448, 40, 0, None, True, 171),
    }
    found = {}
    for task in tasks.suite("cosmos"):
        if task.settings["evaluator"] == "zeroshot_segmentation":
            keys = "image_side", "logit_scale", "probability_threshold", "area_threshold"
            defaults = {key: getattr(zeroshot_segmentation.Evaluator, key) for key in keys}
            asked = [({**defaults, **task.settings})[key] for key in keys]
            classes = len(tables.segmentation_classes(task.settings["class_names"]))
            zero_counts = task.settings["data"]["first_class"] == 0
            found[task.section] = (*asked, zero_counts, classes)
    assert found == expected


def test_images_with_masks_are_found_where_they_are_published(tmp_path, capsys):
    voc, mask = tmp_path / "VOCdevkit" / "VOC2012", np.zeros((2, 2), np.uint8)
    write_labelled(voc, "a", mask, "JPEGImages", "SegmentationClass")
    prepare(tmp_path / "ade20k", class_names=None)
    assert list(suite("cosmos", tmp_path, every_steps=1)) == ["ade20k"]
    said = capsys.readouterr().err
    assert said.count("VOCdevkit/VOC2012: ") == 1 and "val.txt does not exist" in said
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("a")
    found = suite("cosmos", tmp_path, every_steps=1)
    assert list(found) == ["voc21", "voc20", "ade20k"]
    assert found["voc20"]["data"] == {
        "name": "label_images",
        "path": str(voc),
        "images": "JPEGImages",
        "masks": "SegmentationClass",
        "names": "ImageSets/Segmentation/val.txt",
        "first_class": 1,
    }
    assert found["ade20k"]["data"] == {"name": "prepared", "path": str(tmp_path / "ade20k")}


def test_each_language_is_a_task_of_one_set(tmp_path):
    rows = tasks.suite("multilingual")
    assert collections.Counter(task.folder for task in rows) == {"xm3600": 36, "xtd": 11}
    prepare(tmp_path / "xm3600", class_names=None)
    found = suite("multilingual", tmp_path, every_steps=1)
    assert len(found) == 36 and found["xm3600_quz"]["caption_field"] == "quz"
    assert len({json.dumps(section["data"]) for section in found.values()}) == 1
    assert all(task.settings["caption_field"] == "caption" for task in tasks.suite("long"))


def test_names_beside_prepared_shards_count(tmp_path):
    prepare(tmp_path / "fish", class_names=["n01440764", "n01443537"])
    assert make_source("prepared", path=str(tmp_path / "fish")).class_names[0] == "n01440764"
    (tmp_path / "fish" / "classnames.txt").write_text("tench\ngoldfish\n")
    found = make_source("prepared", path=str(tmp_path / "fish")).class_names
    assert found == ["tench", "goldfish"]


def test_only_what_is_there_becomes_a_section(tmp_path):
    assert suite("datacomp38", tmp_path, every_steps=1) == {}
    write_task(tmp_path / "wds_vtab-pets_test", [[SAMPLE]])
    write_task(tmp_path / "wds_wilds-fmow_test", [[SAMPLE]])
    prepare(tmp_path / "wds_mnist_test", class_names=list("0123456789"))
    found = suite("datacomp38", tmp_path, every_steps=7, weights=("averaged", "model"))
    assert list(found) == [
        *("mnist", "mnist_model", "vtab_pets", "vtab_pets_model", "wilds_fmow", "wilds_fmow_model")
    ]
    assert found["vtab_pets_model"] == {
        "evaluator": "zeroshot",
        "data": {
            "name": "clip_benchmark",
            "path": str(tmp_path / "wds_vtab-pets_test"),
            "groups": (),
        },
        "every_steps": 7,
        "weights": "model",
        "batch_size": 512,
        "task": "datacomp38/vtab/pets",
        "paper": None,
    }
    assert found["wilds_fmow"]["data"]["groups"] == ("region", "year")
    assert found["wilds_fmow"]["group"] == "region"
    assert found["mnist"]["data"]["name"] == "prepared"
    assert "class_names" not in found["mnist"] and found["mnist"]["templates"] == "mnist"
    asked = suite("cosmos", tmp_path, every_steps=1)["pets"]
    assert (asked["templates"], asked["class_names"]) == ("pets", "cosmos_pets")


def test_lists_that_are_published_stand_in_for_files_that_are_not_there(tmp_path):
    write_task(tmp_path / "wds_vtab-caltech101_test", [[SAMPLE]], class_names=(), templates=())
    found = suite("datacomp38", tmp_path, every_steps=1)["vtab_caltech101"]
    assert (found["class_names"], found["templates"]) == ("caltech101_vtab", "caltech101")


def test_what_is_not_whole_is_left_out_and_told_in_one_line(tmp_path, capsys):
    for name in ("objectnet", "imagenet-a"):
        write_task(tmp_path / f"wds_{name}_test", [[SAMPLE]], class_names=(), templates=())
    write_task(tmp_path / "wds_cars_test", [[SAMPLE]])
    for name, file in (("stl10", "classnames.txt"), ("food101", "dataset.json")):
        (tmp_path / f"wds_{name}_test").mkdir()
        (tmp_path / f"wds_{name}_test" / file).write_text("cat")
    write_task(tmp_path / "wds_gtsrb_test", [[SAMPLE]], class_names=(" ",))
    folder = write_task(tmp_path / "wds_vtab-pets_test", [[SAMPLE]] * 3)
    (folder / "test" / "1.tar").unlink()
    (tmp_path / "sugarcrepe").mkdir()
    (tmp_path / "sugarcrepe" / "swap_att.json").touch()
    assert suite("composition", tmp_path, every_steps=1) == {}
    assert "sugarcrepe: holds no prepared shards." in capsys.readouterr().err
    assert list(suite("datacomp38", tmp_path, every_steps=1)) == ["cars"]
    [line] = capsys.readouterr().err.splitlines()
    lists = "lacks classnames.txt and zeroshot_classification_templates.txt"
    for part in (
        "Left out of suite 'datacomp38'",
        f"wds_objectnet_test: {lists}",
        f"wds_imagenet-a_test: {lists}",
        "wds_stl10_test: holds neither dataset.json nor test/nshards.txt",
        "wds_vtab-pets_test: lacks 1 of 3 tars",
        "wds_food101_test: ",
        "dataset.json is damaged",
        "classnames.txt is empty",
    ):
        assert part in line
    (folder / "test" / "nshards.txt").write_text("3 tars")
    assert find_pets(tmp_path).lacks == "has no number in test/nshards.txt"


def find_pets(root):
    return suites.find(tasks.task("datacomp38/vtab/pets"), root)


def test_prepared_shards_are_looked_for_and_lists_may_lie_beside_them(tmp_path):
    folder = tmp_path / "wds_objectnet_test"
    prepare(folder, class_names=None)
    found = suites.find(tasks.task("datacomp38/objectnet"), tmp_path)
    assert found.lacks == "lacks classnames.txt and zeroshot_classification_templates.txt"
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}.\nno {c}")
    (folder / "classnames.txt").write_text("cat\n\n")
    section = suite("datacomp38", tmp_path, every_steps=1)["objectnet"]
    assert "templates" not in section and "class_names" not in section
    source = make_source(**section["data"])
    assert source.templates == ["a {}.", "no {}"] and source.class_names == ["cat", ""]
    next(folder.glob("*.array_record")).unlink()
    assert suite("datacomp38", tmp_path, every_steps=1) == {}
    assert "is missing" in suites.find(tasks.task("datacomp38/objectnet"), tmp_path).lacks


def test_instances_are_wanted_beside_prepared_images_too(tmp_path):
    prepare(tmp_path / "winogavil", class_names=None)
    task = tasks.task("datacomp38/misc/winogavil")
    assert suites.find(task, tmp_path).lacks == "lacks instances.jsonl"
    (tmp_path / "winogavil" / "instances.jsonl").touch()
    section = suites.find(task, tmp_path).section
    assert section["instances"] == str(tmp_path / "winogavil" / "instances.jsonl")
    assert section["data"]["name"] == "prepared"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: suite("datacomp", every_steps=1), "Unknown suite 'datacomp'.*'datacomp38'"),
        (lambda: suite("quick", every_steps=1, paper="cosmos_b16"), "Unknown published model"),
        (lambda: tasks.task("cosmos/imagenet"), "Unknown task.*'cosmos/imagenet1k'"),
    ],
)
def test_unknown_names(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_check_lists_every_set_once(tmp_path, capsys):
    write_task(tmp_path / "wds_vtab-pets_test", [[SAMPLE]])
    write_task(tmp_path / "wds_objectnet_test", [[SAMPLE]], class_names=(), templates=("{c}",))
    assert command.main(["check", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("there ", "missing ", "incomplete "))]
    by_folder = {line.split()[1]: line for line in rows}
    folders = {task.folder for name in tasks.SUITES for task in tasks.suite(name)}
    assert by_folder.keys() == folders and len(rows) == len(folders)
    assert by_folder["wds_vtab-pets_test"].startswith("there")
    assert by_folder["wds_objectnet_test"].endswith("lacks classnames.txt")
    assert by_folder["wds_cars_test"].endswith("Hugging Face: djghosh/wds_cars_test")
    assert any(line.startswith("1 of ") for line in lines)


def cars(names) -> list[str]:
    """As other lists spell them."""
    return [name.replace(" ", "_").upper() for name in names]


@pytest.mark.parametrize("shift", [0, 1])
def test_labels_that_count_classes_in_another_order_are_told(tmp_path, shift):
    """COSMOS has names of its own for classes that the data name, too."""
    task = tasks.task("cosmos/cars")
    names = list(tables.class_names(task.settings["class_names"]))
    brought = cars([*names[shift:], *names[:shift]])
    brought[7] = "something else"  # one name does not decide
    prepare(tmp_path / task.folder, brought)
    found = suites.find(task, tmp_path)
    if not shift:
        assert found.section["class_names"] == task.settings["class_names"]
        return
    assert found.section is None
    assert "in another order than the list cosmos_cars: " in found.lacks
    assert f"{names[1].lower()!r} is class 0 of the data and 1 of the list" in found.lacks
