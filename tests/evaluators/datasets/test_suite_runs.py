"""A suite from files on a disk to the last table, and what it costs."""

import json

import numpy as np
import pytest

from evaluators.datasets import report, suites
from evaluators.shared import towers
from evaluators.shared.base import make_evaluator
from evaluators.shared.sharing import sharing
from input_pipeline.sources import make_source
from tests.evaluators.shared import toy
from tests.input_pipeline.prepare.prepare_data import run_source, write_prepared
from tests.input_pipeline.sources.toy_task import array, image, write_task

SIZE = 6
FOLDERS = {  # folder: what a sample has besides its image
    "wds_cars_test": {},
    "wds_wilds-fmow_test": {"npy": lambda n: array([n % 3, 2016, 0])},
    "wds_dollar_street_test": {"npy": lambda n: array([n % 2, 0, 0])},
    "flickr30k_test": {"txt": lambda n: f"dog {n}\ncat {n}".encode()},
}


@pytest.fixture
def root(tmp_path):
    for folder, more in FOLDERS.items():
        tar = [
            {"png": image(2 * n), "cls": str(n % 3).encode()} | {k: f(n) for k, f in more.items()}
            for n in range(SIZE)
        ]
        write_task(tmp_path / folder, [tar[:4], tar[4:]], class_names=toy.WORDS[:7])
    (tmp_path / "winogavil" / "images").mkdir(parents=True)
    names = [f"thing{n}" for n in range(10)]
    for n, name in enumerate(names):
        (tmp_path / "winogavil" / "images" / f"{name}.png").write_bytes(image(2 * n))
    instance = {"cue": "owl", "candidates": names, "associations": names[:2]}
    (tmp_path / "winogavil" / suites.INSTANCES).write_text(json.dumps(instance))
    return tmp_path


def run(sections, model):
    evaluated = {}
    with sharing():
        for name, section in sections.items():
            asked = dict(section)
            del asked["every_steps"]
            weights, task, paper = (asked.pop(k) for k in ("weights", "task", "paper"))
            made = make_evaluator(
                asked.pop("evaluator"), toy.PREDICT_FNS, toy.PREPROCESS, toy.mesh(), **asked
            )
            evaluated[name] = report.Evaluated(dict(made.run(model)), weights, task, paper)
    return evaluated


def test_two_suites_of_five_sets_cost_five_passes(root, monkeypatch):
    read = []
    decode = towers.image_of
    monkeypatch.setattr(towers, "image_of", lambda r, p: read.append(r["id"]) or decode(r, p))
    options = {"every_steps": 1, "batch_size": 4}
    theirs = suites.suite("cosmos", root, paper="cosmos_vitb16_cc3m", **options)
    sections = suites.suite("datacomp38", root, **options) | theirs
    assert sections.keys() == {
        *("cars", "fairness_dollar_street", "misc_winogavil", "wilds_fmow"),
        "retrieval_flickr_1k_test_image_text_retrieval",
    }
    sections["again"] = suites.suite("datacomp38", root, **options)["cars"]
    model = toy.random_model()
    evaluated = run(sections, model)
    assert len(read) == 4 * SIZE + 10
    rows = {(row.name, row.metric): row for row in report.rows(evaluated)}
    assert rows["FMoW", "worst_region_top1_accuracy"].chance == 0.027193
    assert rows["WinoGAViL", "jaccard_10_to_12"].chance == 0.205
    assert {metric for _, metric in rows} == {
        *("top1_accuracy", "worst_region_top1_accuracy", "worst_income_top5_accuracy"),
        *("mean_R@1", "jaccard_10_to_12"),
    }
    assert "33 of the 38 tasks are missing" in report.text(evaluated)
    # "a {c}." and "the {c}" came with the data; CLIP's eight prompts for cars are COSMOS'.
    texts = [f"{a} {name}{b}" for name in toy.WORDS[:7] for a, b in (("a", "."), ("the", ""))]
    features = toy.text_features(model, texts).reshape(7, 2, -1)
    means = (features / np.linalg.norm(features, axis=-1, keepdims=True)).mean(axis=1)
    means = means / np.linalg.norm(means, axis=-1, keepdims=True)
    right = (model["image"][:SIZE] @ means.T).argmax(axis=1) == np.arange(SIZE) % 3
    assert evaluated["again"].values["top1_accuracy"] == right.mean()


PUBLISHED = {
    "mmvp_vlm": "id,kind,statement\n1,Texts,red cat\n2,Texts,blue dog\n",
    "svo_probes": (
        "sentence,pos_image_id,neg_image_id,subj_neg,verb_neg,obj_neg\n"
        "red cat,1,2,False,True,False\nblue dog,2,3,False,True,False\nsky,4,1,True,False,False\n"
    ),
    "winoground": json.dumps(
        {"id": 0, "image_0": "1", "image_1": "2", "caption_0": "red cat", "caption_1": "blue dog"}
    ),
}


@pytest.fixture
def published(tmp_path):
    """Compositional sets as they are published, prepared; of SVO-Probes' images one is a page that
    says that it is gone, and of SugarCrepe there is one file."""
    files = tmp_path / "files"
    (files / "Texts").mkdir(parents=True)
    for number in (1, 2, 3):
        for name in (f"{number}.jpg", f"{number}.png", f"Texts/{number}.jpg"):
            (files / name).write_bytes(image(2 * number))
    (tmp_path / "data").mkdir()
    (files / "4.jpg").write_bytes(b"<html>gone</html>")
    pair = {"filename": "1.jpg", "caption": "red cat", "negative_caption": "blue dog"}
    (files / "swap_att.json").write_text(json.dumps({"0": pair}))
    asked = {name: ("image_pairs", files / name) for name in PUBLISHED}
    for name, text in PUBLISHED.items():
        (files / name).write_text(text)
    asked["sugarcrepe"] = "sugarcrepe", files / "swap_att.json"
    for folder, (source, file) in asked.items():
        output, arguments = tmp_path / "data" / folder, {"annotations": file, "images": files}
        if folder == "svo_probes":
            said = [f"{name}={value}" for name, value in arguments.items()]
            assert run_source(output, source, *said) == 0
        else:  # the same, without a process of its own
            records = make_source(source, **arguments)
            write_prepared(output, [records[i] for i in range(len(records))])
    return tmp_path / "data"


def test_composition_from_the_published_files_to_the_table(published):
    model = toy.knowing_model(["?", "red cat", "blue dog", "tree"])
    evaluated = run(suites.suite("composition", published, every_steps=1), model)
    rows = report.rows(evaluated)
    assert {(row.name, row.metric): row.values["model"] for row in rows} == {
        ("SugarCrepe", "accuracy_of_kinds"): 1,
        ("MMVP-VLM", "image_accuracy"): evaluated["mmvp_vlm"].values["image_accuracy"],
        ("SVO-Probes", "image_accuracy_of_kinds"): 1,  # all that are left are of verbs
        ("Winoground", "image_accuracy"): 1,
        ("Winoground", "text_accuracy"): 1,
        ("Winoground", "group_accuracy"): 1,
    }
    values = evaluated["svo_probes"].values
    assert (values["pairs"], values["pairs_left_out"]) == (2, 1)
    assert "-" not in report.text(evaluated).splitlines()[1].split()[2:4]
