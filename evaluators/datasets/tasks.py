"""The tasks of the suites: which data each needs, how it is asked, and what is reported of it.

A suite is a table of tasks. "datacomp38" is DataComp's (arXiv 2304.14108), "cosmos" what COSMOS
(arXiv 2412.01814) is compared by, "composition" tells captions apart that differ in one detail,
"long" retrieves by captions of many sentences, "multilingual" in each language, "quick" has three
sets to watch a run with. "cogvlm" and "llava" are of models that write, see `datasets.answered`.

COSMOS' classification is asked as its code asks it, on the images that DataComp publishes. Two of
its eleven sets are not these: its Caltech-101 is a random half without the background class, its
SUN397 a random fifth that is another in every run of its code. Their titles say so, and no number
of the paper stands beside them. Of SugarCrepe, MMVP-VLM and SVO-Probes there is no code of COSMOS':
the first two are asked as their papers do, the last as `evaluators.pairs.matching` says.
"""

import csv
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluators.datasets import answered
from input_pipeline.checks.arguments import unknown

_FOLDER = Path(__file__).parent / "data"
# Of DataComp's tasks: facts about the records, in the order in which .npy holds them, and the one
# whose worst group counts.
_GROUPS = {
    "wilds/fmow": ("region", "year"),
    "fairness/dollar_street": ("income", "income_group", "region"),
    "fairness/geode": ("region", "country"),
}
_OTHER_ORDER = {"caltech101": "caltech101_vtab"}
_COCO = "docs/data.md, Evaluation sets: COCO's val2017"
_FLICKR = "docs/data.md, Evaluation sets: images from Flickr30k's authors on request"


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of a suite.

    Attributes:
      id: "SUITE/NAME"; NAME is the published one and, of retrieval, has the split.
      title: for tables.
      images: of the data set; None where that is not known.
      folder: below the root of the data.
      source: where to get it: a repository, or a page.
      settings: the keys of the evaluator's section without `data`.
      metrics: of the evaluator, which are reported, the main one first.
      chance: what an answer at random gets; None where the evaluator says it, or nobody.
      groups: what the numbers beside each image are, see the source `clip_benchmark`.
      mean: the mean that it is a part of, such as that over all languages of a set.
      secret: what it is worth is for others to say: it is asked for its predictions alone.
    """

    id: str
    title: str
    images: int | None
    folder: str
    source: str
    settings: Mapping[str, Any]
    metrics: tuple[str, ...]
    chance: float | None = None
    groups: tuple[str, ...] = ()
    mean: str | None = None
    secret: bool = False

    @property
    def section(self) -> str:
        """Its name in `config.evals`."""
        return self.id.partition("/")[2].replace("/", "_").replace("-", "_")

    @property
    def published(self) -> dict[str, str]:
        """What its lists are called in `datasets.tables`, where there are such."""
        name = self.id.rpartition("/")[2]
        # VTAB counts the classes in another order.
        return {"templates": name, "class_names": _OTHER_ORDER.get(name, name)}


@functools.cache
def suite(name: str) -> tuple[Task, ...]:
    """The tasks of a suite.

    Raises:
      ValueError: there is no such suite.
    """
    if name not in SUITES:
        raise ValueError(unknown("suite", name, SUITES))
    return SUITES[name]()


def task(id: str) -> Task:
    """The task "SUITE/NAME".

    Raises:
      ValueError: there is no such task.
    """
    found = {task.id: task for task in suite(id.partition("/")[0])}
    if id not in found:
        raise ValueError(unknown("task", id, found))
    return found[id]


def paper(model: str) -> dict[str, dict[str, float]]:
    """Numbers that are published of a model: section of a task -> metric -> number.

    Raises:
      ValueError: none are known of it.
    """
    published = papers()
    if model not in published:
        raise ValueError(unknown("published model", model, published))
    return published[model]


@functools.cache
def papers() -> dict[str, dict[str, dict[str, float]]]:
    """What `paper` gives, of every model."""
    return json.loads((_FOLDER / "papers.json").read_text(encoding="utf-8"))


def _datacomp38() -> tuple[Task, ...]:
    with (_FOLDER / "datacomp38.tsv").open(encoding="utf-8", newline="") as file:
        return tuple(map(_of_datacomp, csv.DictReader(file, delimiter="\t")))


def _of_datacomp(row: Mapping[str, str]) -> Task:
    name = row["task"]
    settings = _SETTINGS.get(name.partition("/")[0]) or _zeroshot(name)
    return Task(
        id=f"datacomp38/{name}",
        title=row["name"],
        images=int(row["images"]),
        folder=row["folder"],
        source=_HOW.get(name.partition("/")[0], "") + f"Hugging Face: {row['repository']}",
        settings=settings,
        metrics=(row["metric"],),
        chance=float(row["chance"]) if row["chance"] else None,
        groups=_GROUPS.get(name, ()),
        mean="datacomp38",
    )


def _zeroshot(name: str) -> dict[str, Any]:
    group = {"group": _GROUPS[name][0]} if name in _GROUPS else {}
    return {"evaluator": "zeroshot", **group}


_RETRIEVAL = {
    "evaluator": "retrieval",
    "caption_field": "txt",
    "equal_captions": "reference",
}
# What has to be done with a set that is not published in a form that is read.
_HOW = {
    "retrieval": "prepare it (docs/evaluation.md): Karpathy's test split, as ",
    "misc": "export it to instances.jsonl and images/ (docs/evaluation.md): ",
}
_SETTINGS = {
    "retrieval": _RETRIEVAL,
    "misc": {"evaluator": "associations"},
}
_IMAGE = ("image_accuracy",)
_PREPARE = "prepare it (docs/evaluation.md) by the source "
_PAIRS = {
    "sugarcrepe": "sugarcrepe: GitHub RAIVNLab/sugar-crepe, and COCO's val2017",
    "mmvp_vlm": "image_pairs: Hugging Face MMVP/MMVP_VLM",
    "svo_probes": "image_pairs: GitHub google-deepmind/svo_probes, images by their links",
    "winoground": "image_pairs: Hugging Face facebook/winoground",
}
_BOTH = ("image_to_text_R@1", "text_to_image_R@1")
# The languages of both sets, as their files call them.
_XM3600 = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro ru sv sw "
    "te th tr uk vi zh"
)
_XTD = "de en es fr it jp ko pl ru tr zh"
# COSMOS' eleven sets in its order, under the names of its prompts: (DataComp's name, class names).
# Its names of flowers and of ImageNet's classes are those of clip_benchmark; its Caltech-101 has
# other classes than the images.
_ELEVEN = {
    "food101": ("food101", "cosmos_food101"),
    "cifar10": ("cifar10", "cosmos_cifar10"),
    "cifar100": ("vtab/cifar100", "cosmos_cifar100"),
    "sun397": ("sun397", "cosmos_sun397"),
    "cars": ("cars", "cosmos_cars"),
    "fgvc_aircraft": ("fgvc_aircraft", "cosmos_fgvc_aircraft"),
    "dtd": ("vtab/dtd", "cosmos_dtd"),
    "pets": ("vtab/pets", "cosmos_pets"),
    "caltech101": ("vtab/caltech101", None),
    "flowers": ("vtab/flowers", "flowers"),
    "imagenet1k": ("imagenet1k", "imagenet1k"),
}
_OTHER_IMAGES = {"caltech101": "Caltech-101 (of VTAB)", "sun397": "SUN397 (all images)"}


def _cosmos() -> tuple[Task, ...]:
    of_datacomp = {task.id: task for task in suite("datacomp38")}
    classified = []
    for name, (theirs, class_names) in _ELEVEN.items():
        known = of_datacomp[f"datacomp38/{theirs}"]
        lists = {"templates": name} | ({"class_names": class_names} if class_names else {})
        classified.append(
            dataclasses.replace(
                known,
                id=f"cosmos/{name}",
                title=_OTHER_IMAGES.get(name, known.title),
                settings={"evaluator": "zeroshot", **lists},
                metrics=("top1_accuracy",),
                chance=None,
                mean=None,
            )
        )
    pairs = [task for task in _composition("cosmos") if task.section != "winoground"]
    retrieval = _retrieval("cosmos", "coco_val2017", "flickr30k_val")
    return (*retrieval, *classified, *_segmentation("cosmos"), *pairs)


def _retrieval(suite: str, *names: str) -> tuple[Task, ...]:
    known = {
        "coco_val2017": ("COCO val2017", 5000, _COCO),
        "flickr30k_val": ("Flickr30k val", 1014, _FLICKR),
    }
    return tuple(
        Task(f"{suite}/{name}", title, images, name, how, _RETRIEVAL, _BOTH)
        for name, (title, images, how) in ((name, known[name]) for name in names)
    )


# Of data sets with masks: the folder, what is in it, and where it is to be had.
_VOC = (
    "VOCdevkit/VOC2012",
    {"images": "JPEGImages", "masks": "SegmentationClass"}
    | {"names": "ImageSets/Segmentation/val.txt"},
    "PASCAL VOC 2012's own archive",
)
_CONTEXT = (
    "VOCdevkit/VOC2010",
    {"images": "JPEGImages", "masks": "SegmentationClassContext"}
    | {"names": "ImageSets/SegmentationContext/val.txt"},
    "PASCAL VOC 2010's archive; masks by mmsegmentation's tools/dataset_converters/pascal_context",
)
_VAL2017 = {"images": "images/val2017", "masks": "annotations/val2017"}
_OBJECTS = (
    "coco_object",
    {**_VAL2017, "mask_ending": "_instanceTrainIds.png"},
    "COCO's val2017; masks by GroupViT's convert_dataset/convert_coco_object",
)
_STUFF = (
    "coco_stuff164k",
    {**_VAL2017, "mask_ending": "_labelTrainIds.png"},
    "COCO's val2017; masks by mmsegmentation's tools/dataset_converters/coco_stuff164k",
)
_CITYSCAPES = (
    "cityscapes",
    {"images": "leftImg8bit/val", "image_ending": "_leftImg8bit.png"}
    | {"masks": "gtFine/val", "mask_ending": "_gtFine_labelTrainIds.png"},
    "Cityscapes' own site; masks by its tool csCreateTrainIdLabelImgs",
)
_ADE20K = (
    "ade/ADEChallengeData2016",
    {"images": "images/validation", "masks": "annotations/validation"},
    "ADE20K's scene parsing benchmark",
)
# Of those that have a background, which is their class 0.
_THRESHOLD = {"probability_threshold": 0.1}
# name, title, images, data set, value of class 0, and what differs from the evaluator's settings.
_EIGHT = (
    *(
        (
            "voc21",
            "VOC21",
            1449,
            _VOC,
            0,
            _THRESHOLD | {"logit_scale": 65.0, "area_threshold": 0.1},
        ),
    ),
    *(("context60", "Context60", None, _CONTEXT, 0, _THRESHOLD | {"logit_scale": 50.0}),),
    *(("coco_object", "COCO-Object", 5000, _OBJECTS, 0, _THRESHOLD | {"logit_scale": 50.0}),),
    ("voc20", "VOC20", 1449, _VOC, 1, {}),
    ("cityscapes", "Cityscapes", 500, _CITYSCAPES, 0, {"image_side": 560}),
    ("context59", "Context59", None, _CONTEXT, 1, {}),
    ("ade20k", "ADE20K-150", 2000, _ADE20K, 1, {}),
    ("coco_stuff", "COCO-Stuff", 5000, _STUFF, 0, {"image_side": 448}),
)


def _segmentation(suite: str) -> tuple[Task, ...]:
    """SCLIP's eight tasks (arXiv 2312.01597)."""
    return tuple(
        Task(
            f"{suite}/{name}",
            title,
            images,
            folder,
            how,
            {
                "evaluator": "zeroshot_segmentation",
                "data": {"name": "label_images", **parts, "first_class": first},
                "class_names": name,
                **settings,
            },
            ("mean_iou", "correlative_mean_iou"),
        )
        for name, title, images, (folder, parts, how), first, settings in _EIGHT
    )


def _composition(suite: str = "composition") -> tuple[Task, ...]:
    matching = {"evaluator": "matching"}
    rows = (
        ("sugarcrepe", "SugarCrepe", {"evaluator": "hard_negatives"}, ("accuracy_of_kinds",), 0.5),
        ("mmvp_vlm", "MMVP-VLM", {**matching, "template": "a photo of {}"}, _IMAGE, 0.25),
        ("svo_probes", "SVO-Probes", matching, ("image_accuracy_of_kinds",), 0.5),
        ("winoground", "Winoground", matching, (*_IMAGE, "text_accuracy", "group_accuracy"), None),
    )
    return tuple(
        Task(
            f"{suite}/{name}",
            title,
            None,
            name,
            f"{_PREPARE}{_PAIRS[name]}",
            asked,
            metrics,
            chance,
        )
        for name, title, asked, metrics, chance in rows
    )


def _described(suite: str, name: str, title: str, images: int, how: str, field: str) -> Task:
    """A task of a set that the source `retrieval_sets` reads; several fields are of one folder."""
    section = name if field == "caption" else f"{name}_{field}"
    asked = {**_RETRIEVAL, "caption_field": field}
    how = f"{_PREPARE}retrieval_sets: {how}"
    return Task(f"{suite}/{section}", title, images, name, how, asked, _BOTH)


def _long() -> tuple[Task, ...]:
    rows = (
        ("urban1k", "Urban-1k", 1000, "Hugging Face BeichenZhang/Urban1k"),
        ("dci", "DCI", 7805, "GitHub facebookresearch/DCI, images of SA-1B"),
        ("docci", "DOCCI test", 5000, "google.github.io/docci"),
    )
    return tuple(_described("long", *row, "caption") for row in rows)


def _multilingual() -> tuple[Task, ...]:
    rows = (
        ("xm3600", "XM3600", 3600, "google.github.io/crossmodal-3600", _XM3600),
        ("xtd", "XTD", 1000, "GitHub adobe-research/Cross-lingual-Test-Dataset-XTD10", _XTD),
    )
    return tuple(
        dataclasses.replace(
            _described("multilingual", name, f"{title} {language}", images, how, language),
            mean=title,
        )
        for name, title, images, how, languages in rows
        for language in languages.split()
    )


def _quick() -> tuple[Task, ...]:
    names = "coco_val2017", "imagenet1k", "cifar100"
    known = {task.section: task for task in suite("cosmos")}
    return tuple(dataclasses.replace(known[name], id=f"quick/{name}") for name in names)


def _answered(suite: str, rows: tuple[answered.Row, ...]) -> tuple[Task, ...]:
    return tuple(
        Task(
            f"{suite}/{row.name}",
            row.title,
            row.images,
            row.name,
            f"prepare it (docs/answers.md): {row.source}",
            row.settings,
            row.metrics,
            secret=row.secret,
        )
        for row in rows
    )


SUITES = {
    "cosmos": _cosmos,
    "datacomp38": _datacomp38,
    "composition": _composition,
    "long": _long,
    "multilingual": _multilingual,
    "quick": _quick,
    "cogvlm": functools.partial(_answered, "cogvlm", answered.COGVLM),
    "llava": functools.partial(_answered, "llava", answered.LLAVA),
}
