"""The published prompts and class names are all there, to the letter."""

import ast
import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from evaluators.datasets import tables

# How many strings each list has, and the start of the SHA-256 of its lines.
TEMPLATES = {
    "cifar10": (18, "9bbf912e1144ca4c"),
    "cifar100": (18, "9bbf912e1144ca4c"),
    "imagenet1k": (80, "4f976686fb651bb5"),
    "food101": (1, "77a79bac7d9cf25b"),
    "sun397": (2, "c97a3d1ad5819800"),
    "cars": (8, "255ecc632c41182c"),
    "fgvc_aircraft": (2, "91522de75ad44711"),
    "dtd": (8, "1f6888d2130f62a4"),
    "pets": (1, "16a0790f0e45e97e"),
    "caltech101": (34, "90561580b7ea5dba"),
    "flowers": (1, "bfcd4bbb214d5015"),
    "mnist": (1, "c0341e0a1fdfd8fb"),
    "stl10": (2, "c97a3d1ad5819800"),
    "eurosat": (3, "9bc85d9f1798d03b"),
    "gtsrb": (3, "a6794061485dcfa2"),
    "country211": (5, "038d0d5e084b6ee1"),
    "renderedsst2": (1, "9034019e8a14384c"),
    "voc2007": (1, "e8e367e769f86c27"),
    "voc2007_multilabel": (1, "e8e367e769f86c27"),
    "fer2013": (6, "ae805dccc6d01c6a"),
    "clevr_count_all": (1, "d22723f1ebf29d50"),
    "clevr_closest_object_distance": (1, "0d1d916c64bc15b7"),
    "pcam": (2, "f15b46876205c9db"),
    "svhn": (6, "89f08e8bbeaa6bd5"),
    "resisc45": (4, "5a87542b5e4d426c"),
    "kitti_closest_vehicle_distance": (1, "44136fa355b3678a"),
    "smallnorb_label_azimuth": (4, "5db50af4199c1ba6"),
    "smallnorb_label_elevation": (4, "5db50af4199c1ba6"),
    "dsprites_label_x_position": (1, "b4d0482f31d6a38d"),
    "dsprites_label_orientation": (4, "5db50af4199c1ba6"),
    "dmlab": (1, "44136fa355b3678a"),
    "diabetic_retinopathy": (1, "6873b80434f5ed05"),
}
CLASS_NAMES = {
    "flowers": (102, "5429e1ef6e0e5aa3"),
    "gtsrb": (43, "953036bc5aedbe6b"),
    "country211": (211, "027b30d283f3a153"),
    "eurosat": (10, "ee2e41b9973e7206"),
    "fer2013": (7, "0fece1ddf1a3ebf7"),
    "caltech101": (102, "e0ecbf33d0f07158"),
    "caltech101_vtab": (102, "8cd73f5d8e14e75f"),
    "imagenet1k": (1000, "571ae1c583b4be7d"),
    "clevr_count_all": (8, "d949e12b895f424a"),
    "clevr_closest_object_distance": (6, "747824b2730ecf44"),
    "mnist": (10, "29dd21f55e4611d4"),
    "svhn": (10, "dfab20279a085795"),
    "kitti_closest_vehicle_distance": (4, "ecc16a4f92ee9fb1"),
    "dmlab": (6, "e16a64c8859bb2bb"),
    "pets": (37, "50be1443390f8a02"),
    "pcam": (2, "27352df7ede1fd87"),
    "diabetic_retinopathy": (5, "4c2896af07cd8e30"),
    "cosmos_food101": (101, "9c0eeb5a368baacb"),
    "cosmos_cifar10": (10, "bb3914949cecedee"),
    "cosmos_cifar100": (100, "60ae3a3ac1355fcf"),
    "cosmos_sun397": (397, "dd1277b1cfcf09ba"),
    "cosmos_cars": (196, "93d089469409bbd0"),
    "cosmos_fgvc_aircraft": (100, "e1c9e72060e63d52"),
    "cosmos_dtd": (47, "681d23b9cd3c2ede"),
    "cosmos_pets": (37, "47ec130d6998f38e"),
}
# Classes, all their names, and the start of the SHA-256 of the lines.
SEGMENTATION_CLASSES = {
    "voc21": (21, 56, "80e643a9a1439668"),
    "voc20": (20, 30, "c68f65a2b342397c"),
    "context60": (60, 60, "e29ff1a0eaea71eb"),
    "context59": (59, 59, "cd808465f06a1616"),
    "coco_object": (81, 113, "3475d03d61f85ce0"),
    "coco_stuff": (171, 171, "fb98709b9ab1baff"),
    "cityscapes": (19, 19, "6f6782fc1bf92bfd"),
    "ade20k": (150, 150, "e53ded02c488bdb9"),
}
LISTS = [
    *((tables.templates, name, *known) for name, known in TEMPLATES.items()),
    *((tables.class_names, name, *known) for name, known in CLASS_NAMES.items()),
]


@pytest.mark.parametrize("table, name, count, digest", LISTS)
def test_counts_and_hashes(table, name, count, digest):
    texts = table(name)
    assert len(texts) == count
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == digest
    assert all(text == text.strip() for text in texts)
    assert texts.count("") == (name == "clevr_closest_object_distance" and "{" not in texts[0])
    assert all(text.count("{}") == (table is tables.templates) for text in texts)


@pytest.mark.parametrize("name", SEGMENTATION_CLASSES)
def test_counts_and_hashes_of_segmentation(name):
    count, names, digest = SEGMENTATION_CLASSES[name]
    classes = tables.segmentation_classes(name)
    assert (len(classes), sum(map(len, classes))) == (count, names)
    lines = "\n".join(map(", ".join, classes))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == digest
    assert all(name and name == name.strip() for names in classes for name in names)


def mmsegmentations_classes(file: str, name: str) -> list[str]:
    """What a data set of that package calls its classes; read, as importing it needs mmcv."""
    found = importlib.util.find_spec("mmseg")
    if found is None:
        pytest.skip("the package mmsegmentation is not installed")
    tree = ast.parse((Path(found.origin).parent / "datasets" / f"{file}.py").read_text())
    [dataset] = [node for node in tree.body if getattr(node, "name", None) == name]
    [info] = [node.value for node in dataset.body if isinstance(node, ast.Assign)]
    [classes] = [keyword.value for keyword in info.keywords if keyword.arg == "classes"]
    return list(ast.literal_eval(classes))


@pytest.mark.parametrize(
    "name, file, theirs, glued",
    [
        ("context60", "pascal_context", "PascalContextDataset", False),
        ("context59", "pascal_context", "PascalContextDataset59", False),
        ("cityscapes", "cityscapes", "CityscapesDataset", True),
        ("coco_stuff", "coco_stuff", "COCOStuffDataset", True),
        ("ade20k", "ade", "ADE20KDataset", True),
    ],
)
def test_classes_are_in_mmsegmentations_order(name, file, theirs, glued):
    """Whose masks are numbered by it. Some lists have no spaces within a name."""
    classes = mmsegmentations_classes(file, theirs)
    expected = [text.replace(" ", "") if glued else text for text in classes]
    assert [name for (name,) in tables.segmentation_classes(name)] == expected


def test_vocs_classes_are_in_mmsegmentations_order():
    """Three of them have other names."""
    others = {"boat": "ship", "diningtable": "table", "tvmonitor": "television monitor"}
    classes = mmsegmentations_classes("voc", "PascalVOCDataset")[1:]
    expected = [others.get(text, text) for text in classes]
    for name, start in (("voc21", 1), ("voc20", 0)):
        assert [names[0] for names in tables.segmentation_classes(name)[start:]] == expected


def test_cocos_objects_are_the_first_of_its_stuff():
    objects = [names[0].replace(" ", "") for names in tables.segmentation_classes("coco_object")]
    stuff = [names[0] for names in tables.segmentation_classes("coco_stuff")]
    assert objects[1:] == stuff[:80]


def test_no_list_has_gone_unseen():
    for table, known in (
        ("templates", TEMPLATES),
        ("class_names", CLASS_NAMES),
        ("segmentation_classes", SEGMENTATION_CLASSES),
    ):
        assert tables._read(table).keys() == known.keys()
    assert set(tables.SEGMENTATION) == SEGMENTATION_CLASSES.keys()


def test_an_unknown_list_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown list of templates 'imagenet'.*'imagenet1k'"):
        tables.templates("imagenet")


def test_they_are_those_of_clip_benchmark():
    found = importlib.util.find_spec("clip_benchmark")
    if found is None:
        pytest.skip("the package clip-benchmark is not installed")
    folder = Path(found.origin).parent / "datasets"
    theirs = json.loads((folder / "en_zeroshot_classification_templates.json").read_text())
    theirs.pop("dummy")
    assert theirs == tables._read("templates")
    ours = {k: v for k, v in tables._read("class_names").items() if not k.startswith("cosmos_")}
    assert json.loads((folder / "en_classnames.json").read_text()) == ours


def test_cosmos_names_are_in_the_order_of_the_labels():
    """Of the data sets whose labels follow the alphabet, and of pets as clip_benchmark has them."""
    for name in ("food101", "cifar10", "cifar100", "fgvc_aircraft", "dtd", "sun397"):
        names = tables.class_names(f"cosmos_{name}")
        assert list(names) == sorted(names)
    pairs = zip(tables.class_names("cosmos_pets"), tables.class_names("pets"))
    assert {(a, b) for a, b in pairs if a != b} == {
        ("Persian'", "Persian"),
        ("Yorkshire Terrie", "Yorkshire Terrier"),
    }
