"""Source: questions with choices, about images that lie in a folder (ScienceQA, SEED-Bench)."""

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import lettered, listed
from input_pipeline.sources.shared.listed import Kind, read_json

Entry = tuple[str, dict[str, Any]]

WITHOUT_IMAGE = ("skip", "blank")
_BLANK_SIDE = 64


class Source(listed.Listed):
    """A record for each question: `question`, `question_id`, `choices`, `answer` (the place of the
    right choice), `answers` (its text) and `category`; `hint` and `split` where there are some.

    kind, and what is read of its files (questions; images):
      scienceqa (arXiv 2209.09513): problems.json (ID: question, choices, answer, hint, image,
        subject, the category, split), and beside it pid_splits.json (SPLIT: IDs), which says what
        `split` holds; SPLIT/ID/image.png.
      seedbench (arXiv 2307.16125): SEED-Bench.json (questions: question_id, question, choice_a to
        choice_d, answer, data_type, data_id, question_type_id; question_type: the categories'
        numbers by name); the images, named DATA_ID without an ending. Questions about videos are
        left out.

    Args:
      kind: one of these.
      questions: the file.
      images: directory that the images' names start from.
      split: of `scienceqa`: train, val, test, trainval, minitrain, minival, minitest.
      without_image: of `scienceqa`, half of which is text alone: "skip" leaves such questions out,
        "blank" gives them a white image.

    Raises:
      FileNotFoundError: a file or images are missing.
      ValueError: the file is of another form; a question is there twice, or its answer is none of
        its choices.
    """

    def __init__(
        self,
        kind: str,
        questions: str | os.PathLike,
        images: str | os.PathLike,
        split: str | None = None,
        without_image: str = "skip",
    ):
        given = {
            "split": split,
            "without_image": None if without_image == "skip" else without_image,
        }
        chosen, path = listed.choose(KINDS, kind, given), source_path(questions)
        if without_image not in WITHOUT_IMAGE:
            raise ValueError(f"without_image={without_image!r}; choose one of {WITHOUT_IMAGE}.")
        left_out: Counter[str] = Counter()
        with listed.understood(path, chosen.form):
            entries = chosen.read(path, split, without_image, left_out)
            super().__init__(f"multiple_choice {kind}", source_path(images), entries)
        self.left_out = dict(left_out)

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Those of questions with an image as of any files; a blank one is made here."""
        blank = [index for index in indices if not self._names[index]]
        read = iter(super().records([index for index in indices if self._names[index]]))
        made = {index: self.record_of(index, _blank()) for index in blank}
        return [made[index] if index in made else next(read) for index in indices]


def _blank() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), "white").save(file, "PNG")
    return file.getvalue()


def _scienceqa(path, split: str, without_image: str, left_out: Counter) -> Iterator[Entry]:
    problems = annotation_files.read(path)
    splits = read_json(path.parent / "pid_splits.json")
    if split not in splits:
        raise ValueError(f"there is no split {split!r}, but {', '.join(splits)}")
    if missing := [name for name in splits[split] if name not in problems]:
        raise ValueError(
            f"{len(missing):,} of {len(splits[split]):,} questions of {split} are not in it, such "
            f"as {missing[0]}: pid_splits.json is of another version"
        )
    for name in splits[split]:
        one = problems[name]
        image = one["image"] and f"{one['split']}/{name}/{one['image']}"
        if not image and without_image == "skip":
            left_out["questions without an image"] += 1
            continue
        yield (
            image or "",
            lettered.fields(
                name,
                one["question"],
                one["choices"],
                one["answer"],
                category=one["subject"],
                split=one["split"],
                hint=one.get("hint") or None,
            ),
        )


def _seedbench(path, split: None, without_image: str, left_out: Counter) -> Iterator[Entry]:
    content = annotation_files.read(path)
    names = {number: name for name, number in content["question_type"].items()}
    for one in content["questions"]:
        if one["data_type"] != "image":
            left_out[f"questions about a {one['data_type']}"] += 1
            continue
        choices = [str(one[f"choice_{letter}"]) for letter in "abcd"]
        number = one["question_type_id"]
        if number not in names:
            raise ValueError(f"question {one['question_id']}: there is no question_type {number}")
        name = annotation_files.identity(one["question_id"])
        yield (
            one["data_id"],
            lettered.fields(
                name, one["question"], choices, str(one["answer"]), category=names[number]
            ),
        )


KINDS = {
    "scienceqa": Kind(
        _scienceqa,
        "ScienceQA's {ID: {question, choices, answer, hint, image, subject, split}}",
        ["split"],
        ["without_image"],
    ),
    "seedbench": Kind(
        _seedbench,
        "SEED-Bench's {questions: [{question_id, question, choice_a, ..., answer, data_type, "
        "data_id, question_type_id}], question_type}",
    ),
}
