"""Source: questions about images with free answers, in the files that each data set publishes."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from input_pipeline.checks import unicode
from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.listing import names_in
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.records import given
from input_pipeline.sources.shared import listed
from input_pipeline.sources.shared.listed import Kind, only, read_json, text, unique

_SHOWN = 3
_POPE_FILE = re.compile(r"pope_(random|popular|adversarial)\.json$")
_OCR_SPLITS = {"train": 1, "val": 2, "test": 3}
_EASY_ANSWERS = dict.fromkeys(("yes", "no"), "yes/no")
_EASY_ANSWERS |= dict.fromkeys(("circle", "rectangle", "triangle"), "shape")
_SUBTYPE = re.compile(r"(?:train|val)2014|test(?:-dev)?2015")

Entry = tuple[str, dict[str, Any]]  # the image's name, and the other fields of a record


class Files(NamedTuple):
    """What a source was given: paths, or None."""

    questions: Any
    annotations: Any
    split: str | None


class Source(listed.Listed):
    """A record for each question, in the order of the file: `question`, `question_id`, `answers`
    (as often as each was given), and `category` and `split` where the set has them. `id` is the
    question's. Files of a test whose answers are kept secret give records without `answers`.

    kind, and what is read of its files (questions; annotations; images):
      vqav2 (arXiv 1612.00837): v2_OpenEnded_mscoco_SUBSET_questions.json (info: version; task_type,
        data_type, data_subtype, questions: image_id, question, question_id);
        v2_mscoco_SUBSET_annotations.json (annotations: question_id, image_id, answers: answer;
        answer_type is the category); COCO_SUBSET_000000123456.jpg.
      okvqa (arXiv 1906.00067): the same, OpenEnded_mscoco_val2014_questions.json and
        mscoco_val2014_annotations.json; question_types names the category.
      tdiuc (arXiv 1703.09684): the same; question_type is the category.
      textvqa (arXiv 1904.08920): TextVQA_0.5.1_SPLIT.json (data: image_id, question, question_id,
        answers, set_name); IMAGE_ID.jpg.
      vizwiz (arXiv 1802.08218): SPLIT.json (image, question, answers: answer; answer_type is the
        category).
      ocrvqa (Mishra et al., ICDAR 2019): dataset.json (NUMBER: imageURL, questions, answers, genre,
        the category, split 1, 2 or 3); NUMBER and the ending of the URL, as its own script saves
        them.
      gqa (arXiv 1902.09506): SPLIT_balanced_questions.json (ID: imageId, question, answer, types:
        structural, the category); IMAGE_ID.jpg.
      pope (arXiv 2305.10355): coco_pope_CATEGORY.json, lines of question_id, image, text, label; or
        the folder of the three, whose ids are then CATEGORY/ID.
      easy_vqa (PyPI easy-vqa 1.0): the folder data of the package; its images need not be given.
        What the answer is, yes/no, shape or color, is the category.
      mmvet (arXiv 2308.02490): mm-vet.json (ID: imagename, question, answer, capability, joined
        the category). Its answers, with <AND> and <OR>, are for a judge.
      llava_bench (arXiv 2304.08485): questions.jsonl (question_id, image, text, category);
        answers_gpt4.jsonl (question_id, text).

    Args:
      kind: one of these.
      questions: the file, or folder, of the questions.
      images: directory that the images' names start from.
      annotations: the file of the answers, where it is another.
      split: "train", "val" or "test", of a file that holds several; of easy_vqa "train" or "test".

    Raises:
      FileNotFoundError: a file or images are missing.
      ValueError: the file is of another form; a question is there twice or has no answer; questions
        and answers are of different versions or splits.
    """

    def __init__(
        self,
        kind: str,
        questions: str | os.PathLike,
        images: str | os.PathLike | None = None,
        annotations: str | os.PathLike | None = None,
        split: str | None = None,
    ):
        chosen = listed.choose(
            KINDS, kind, {"images": images, "annotations": annotations, "split": split}
        )
        path = source_path(questions)
        files = Files(path, annotations and source_path(annotations), split)
        folder = path / str(split) / "images" if images is None else source_path(images)
        with listed.understood(path, chosen.form):
            super().__init__(f"vqa {kind}", folder, chosen.read(files))


def _fields(
    id_: Any,
    question: Any,
    answers: list[Any],
    category: str | None = None,
    split: str | None = None,
    is_judged: bool = False,
) -> dict[str, Any]:
    """The fields of a record; answers that are all blank are none, but where a judge reads them."""
    name = annotation_files.identity(id_)
    fields = {"id": name, "question_id": name, "question": text(question, f"question {name}:")}
    for answer in answers:
        if isinstance(answer, bool) or not isinstance(answer, str | int):
            raise ValueError(f"question {name}: the answer {answer!r} is no text")
    answers = [str(answer).strip() for answer in answers]
    if any(answers) or (is_judged and answers):  # some may be blank: VQA's rule counts people
        fields["answers"] = answers
    return fields | only(category=category, split=split)


def _vqav2(files: Files) -> Iterator[Entry]:
    return _pairs(files, lambda annotation, _: annotation.get("answer_type"), version="2")


def _okvqa(files: Files) -> Iterator[Entry]:
    def category_of(annotation, names):
        if not names:
            raise ValueError("the annotations have no question_types, as those of OK-VQA do")
        return names.get(annotation["question_type"])

    return _pairs(files, category_of)


def _tdiuc(files: Files) -> Iterator[Entry]:
    return _pairs(files, lambda annotation, _: annotation["question_type"], is_vqa=False)


def _pairs(
    files: Files, category_of, is_vqa: bool = True, version: str | None = None
) -> Iterator[Entry]:
    """VQA's two files; `category_of` takes an annotation and its file's names of types.

    What both say of their images must be the same. Where `is_vqa` they must be of VQA's own task
    and of COCO's images; with `version` both of the same, which begins so.
    """
    content = annotation_files.read(files.questions)
    _check_head(content, files.questions, is_vqa, version)
    questions, subset = unique(content["questions"], "question_id"), _subset(content, files[0])
    told, names = {}, {}
    if files.annotations is not None:
        answers = read_json(files.annotations)
        _check_head(answers, files.annotations, is_vqa, version)
        for what, own, other in (
            ("images", subset, _subset(answers, files.annotations)),
            ("version", _version(content) if version else "", _version(answers)),
        ):
            if own and other and own != other:
                raise ValueError(
                    f"its questions are of {what} {own}, {files.annotations} is of {other}"
                )
        told, names = unique(answers["annotations"], "question_id"), answers.get("question_types")
        _check_ids(questions, told, files.annotations)
        _check_images(questions, told, files.annotations)
    elif not subset.startswith("test"):
        raise ValueError(f"the answers of {subset} are in another file: give annotations as well")
    folder = subset.replace("-dev", "")  # test-dev is a part of test
    for name, one in questions.items():
        annotation = told.get(name)
        answers = [] if annotation is None else [a["answer"] for a in annotation["answers"]]
        category = annotation and category_of(annotation, names or {})
        image = f"COCO_{folder}_{int(one['image_id']):012d}.jpg"
        yield image, _fields(name, one["question"], answers, category, subset)


def _version(content: dict[str, Any]) -> str:
    info = content.get("info")
    return str(info.get("version") or "") if isinstance(info, dict) else ""


def _check_head(content: dict[str, Any], path, is_vqa: bool, version: str | None) -> None:
    """Raises ValueError where a file says that it is of other images, another task or version."""
    for key, expected in (("data_type", "mscoco"), ("task_type", "Open-Ended")) if is_vqa else ():
        if content.get(key, expected) != expected:
            raise ValueError(f"{path} has the {key} {content[key]!r}, not {expected!r}")
    if version and not (_version(content) or version).startswith(version):
        raise ValueError(f"{path} is of version {_version(content)}, not {version}")


def _subset(content: dict[str, Any], path) -> str:
    """Of COCO, e.g. "val2014": said in the file, else in its name."""
    found = _SUBTYPE.search(str(content.get("data_subtype", ""))) or _SUBTYPE.search(path.name)
    if not found:
        raise ValueError(f"{path} does not say of which images it is (data_subtype)")
    return found[0]


def _check_ids(questions: dict[str, Any], told: dict[str, Any], path) -> None:
    without = [name for name in questions if name not in told]
    more = [name for name in told if name not in questions]
    if without or more:
        raise ValueError(
            f"{len(without):,} of {len(questions):,} questions have no annotation in {path} "
            f"and {len(more):,} of {len(told):,} there have no question, such as "
            f"{', '.join([*without, *more][:_SHOWN])}: the files are of different versions or "
            "splits"
        )


def _check_images(questions: dict[str, Any], told: dict[str, Any], path) -> None:
    for name, one in questions.items():
        both = one["image_id"], told[name]["image_id"]
        if both[0] != both[1]:
            raise ValueError(
                f"question {name} is of image {both[0]}, in {path} of {both[1]}: the files are of "
                "different versions"
            )


def _textvqa(files: Files) -> Iterator[Entry]:
    content = annotation_files.read(files.questions)
    listed.check_set(content, "textvqa")
    for one in content["data"]:
        name, answers = one["question_id"], one.get("answers", [])
        yield (
            f"{one['image_id']}.jpg",
            _fields(name, one["question"], answers, split=one.get("set_name")),
        )


def _vizwiz(files: Files) -> Iterator[Entry]:
    for one in annotation_files.read(files.questions):
        answers = [answer["answer"] for answer in one.get("answers", ())]
        name = one["image"]  # which submissions name, too
        yield name, _fields(name, one["question"], answers, one.get("answer_type"))


def _ocrvqa(files: Files) -> Iterator[Entry]:
    if files.split not in _OCR_SPLITS:
        raise ValueError(f"split={files.split!r} is none of {', '.join(_OCR_SPLITS)}")
    for name, one in annotation_files.read(files.questions).items():
        if one["split"] != _OCR_SPLITS[files.split]:
            continue
        image = name + os.path.splitext(one["imageURL"])[1]
        if len(one["questions"]) != len(one["answers"]):
            raise ValueError(
                f"{name} has {len(one['questions'])} questions and {len(one['answers'])} answers"
            )
        for number, (question, answer) in enumerate(zip(one["questions"], one["answers"])):
            id_ = f"{name}/{number}"
            yield image, _fields(id_, question, [str(answer)], one.get("genre"), files.split)


def _gqa(files: Files) -> Iterator[Entry]:
    for name, one in annotation_files.read(files.questions).items():
        answers = [one["answer"]] if "answer" in one else []
        category = one.get("types", {}).get("structural")
        yield f"{one['imageId']}.jpg", _fields(name, one["question"], answers, category)


def _pope(files: Files) -> Iterator[Entry]:
    # Other files lie beside those of questions, with the objects of images.
    names = sorted(name for name in names_in(files.questions) if _POPE_FILE.search(name))
    for path in [files.questions / name for name in names] or [files.questions]:
        category = path.stem.split("_")[-1]
        for one in _lines(path):
            label = text(one["label"], "label").lower()
            if label not in ("yes", "no"):
                raise ValueError(f"question {one['question_id']}: {label!r} is neither yes nor no")
            id_ = annotation_files.identity(one["question_id"])
            if names:  # each of them counts from 1
                id_ = f"{category}/{id_}"
            yield one["image"], _fields(id_, one["text"], [label], category)


def _easy_vqa(files: Files) -> Iterator[Entry]:
    path = files.questions / files.split / "questions.json"
    for number, (question, answer, image) in enumerate(read_json(path)):
        id_ = f"{files.split}/{number}"
        kind = _EASY_ANSWERS.get(answer, "color")
        yield f"{int(image)}.png", _fields(id_, question, [answer], kind, files.split)


def _mmvet(files: Files) -> Iterator[Entry]:
    for name, one in annotation_files.read(files.questions).items():
        category = "+".join(sorted(one["capability"]))
        fields = _fields(name, one["question"], [one["answer"]], category, is_judged=True)
        yield one["imagename"], fields


def _llava_bench(files: Files) -> Iterator[Entry]:
    told = {}
    questions = unique(_lines(files.questions), "question_id")
    if files.annotations is not None:
        told = unique(_lines(files.annotations), "question_id")
        _check_ids(questions, told, files.annotations)
    for name, one in questions.items():
        answers = [told[name]["text"]] if name in told else []
        fields = _fields(name, one["text"], answers, one.get("category"), is_judged=True)
        yield one["image"], fields


def _lines(path) -> Iterator[dict[str, Any]]:
    """The values of a file of JSON lines."""
    try:
        data = given(read_files([path])[0])
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise FileNotFoundError(f"Annotation file {path} does not exist.") from None
    for number, line in enumerate(unicode.decode(data).splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
                unicode.check(value)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield value


_VQA = "VQA's {data_subtype, questions: [{image_id, question, question_id}]}"
KINDS = {
    "vqav2": Kind(_vqav2, _VQA, ["images"], ["annotations"]),
    "okvqa": Kind(_okvqa, _VQA, ["images"], ["annotations"]),
    "tdiuc": Kind(_tdiuc, _VQA, ["images"], ["annotations"]),
    "textvqa": Kind(
        _textvqa,
        "TextVQA's {data: [{image_id, question, question_id, answers, set_name}]}",
        ["images"],
    ),
    "vizwiz": Kind(_vizwiz, "VizWiz's [{image, question, answers: [{answer}]}]", ["images"]),
    "ocrvqa": Kind(
        _ocrvqa,
        "OCR-VQA's {NUMBER: {imageURL, questions, answers, genre, split}}",
        ["images", "split"],
    ),
    "gqa": Kind(_gqa, "GQA's {ID: {imageId, question, answer, types}}", ["images"]),
    "pope": Kind(_pope, "POPE's lines of {question_id, image, text, label}", ["images"]),
    "easy_vqa": Kind(
        _easy_vqa,
        "easy-vqa's folders train and test, each with questions.json ([question, answer, image], "
        "...) and images",
        ["split"],
        ["images"],
    ),
    "mmvet": Kind(_mmvet, "MM-Vet's {ID: {imagename, question, answer, capability}}", ["images"]),
    "llava_bench": Kind(
        _llava_bench,
        "LLaVA-Bench's lines of {question_id, image, text, category}",
        ["images"],
        ["annotations"],
    ),
}
