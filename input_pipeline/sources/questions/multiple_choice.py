"""Source: questions with choices, about images in a folder (ScienceQA, SEED-Bench, MMVP)."""

import io
import os
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image

from input_pipeline.checks import unicode
from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.records import given as contents
from input_pipeline.sources.shared import lettered, listed, quoted
from input_pipeline.sources.shared.listed import Kind, read_json

Entry = tuple[str, dict[str, Any]]

WITHOUT_IMAGE = ("skip", "blank")
_BLANK_SIDE = 64
# MMVP's rows whose answer is known to be wrong, and what is right.
_CORRECTED = {99: "(b)", 100: "(a)", 279: "(b)", 280: "(a)"}


class _Given(NamedTuple):
    split: str | None
    without_image: str
    corrected: bool


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
        left out. SEED-Bench-2, with other data_types, is another set.
      mmvp (arXiv 2401.06209): Questions.csv: the index, from 1, Question, Options: "(a) Open (b)
        Closed", Correct Answer: "(a)"; NUMBER.jpg, in "MMVP Images". An odd row and the one after
        it have the same `pair`.

    Args:
      kind: one of these.
      questions: the file.
      images: directory that the images' names start from.
      split: of `scienceqa`: train, val, test, trainval, minitrain, minival, minitest.
      without_image: of `scienceqa`, half of which is text alone: "skip" leaves such questions out,
        "blank" gives them a white image.
      corrected: of `mmvp`: give the rows 99, 100, 279 and 280 their right answers, whether the file
        has the wrong ones of the published one or not.

    Raises:
      FileNotFoundError: a file or images are missing.
      ValueError: the file is of another form; a question is there twice, its answer is none of its
        choices, or some have an answer and some have none; a question of a pair is missing.
    """

    def __init__(
        self,
        kind: str,
        questions: str | os.PathLike,
        images: str | os.PathLike,
        split: str | None = None,
        without_image: str = "skip",
        corrected: bool = False,
    ):
        given = {
            "split": split,
            "without_image": None if without_image == "skip" else without_image,
            "corrected": corrected or None,
        }
        chosen, path = listed.choose(KINDS, kind, given), source_path(questions)
        if without_image not in WITHOUT_IMAGE:
            raise ValueError(f"without_image={without_image!r}; choose one of {WITHOUT_IMAGE}.")
        left_out: Counter[str] = Counter()
        with listed.understood(path, chosen.form):
            entries = chosen.read(path, _Given(split, without_image, corrected), left_out)
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


def _scienceqa(path, given: _Given, left_out: Counter) -> Iterator[Entry]:
    split = given.split
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
        if not image and given.without_image == "skip":
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


def _seedbench(path, given: _Given, left_out: Counter) -> Iterator[Entry]:
    content = annotation_files.read(path)
    names = {number: name for name, number in content["question_type"].items()}
    for one in content["questions"]:
        name = annotation_files.identity(one["question_id"])
        if one["data_type"] not in ("image", "video"):
            raise ValueError(
                f"question {name} is about a {one['data_type']!r}, not about an image or a video: "
                "SEED-Bench-2 is another set"
            )
        if one["data_type"] != "image":
            left_out[f"questions about a {one['data_type']}"] += 1
            continue
        choices = [str(one[f"choice_{letter}"]) for letter in "abcd"]
        number = one["question_type_id"]
        if number not in names:
            raise ValueError(f"question {name}: there is no question_type {number}")
        answer = None if one.get("answer") is None else str(one["answer"])
        yield (
            one["data_id"],
            lettered.fields(name, one["question"], choices, answer, category=names[number]),
        )


def _mmvp(path, given: _Given, left_out: Counter) -> Iterator[Entry]:
    table = unicode.decode(contents(read_files([path])[0])).removeprefix("\ufeff")
    rows = quoted.rows(io.StringIO(table, newline=""), ",")
    numbers = [int(next(iter(row.values()))) for row in rows]  # the first column, however spelt
    if sorted(numbers) != list(range(1, len(rows) + 1)) or len(rows) % 2:
        raise ValueError(
            f"it has {len(rows):,} rows, which should be numbered from 1 on and be an even number, "
            "as two questions are a pair"
        )
    for number, row in zip(numbers, rows):
        choices = _options(row["Options"])
        answer = row["Correct Answer"].strip()
        if given.corrected:
            answer = _CORRECTED.get(number, answer)
        fields = lettered.fields(
            str(number), row["Question"], choices, answer.strip("()").upper() or None
        )
        yield f"{number}.jpg", fields | {"pair": str((number + 1) // 2)}


def _options(text: str) -> list[str]:
    """The choices of "(a) Open (b) Closed (x)": each begins behind the next letter, in any case."""
    choices: list[str] = []
    for letter in string.ascii_lowercase:
        before, *behind = re.split(rf"\({letter}\)", text, maxsplit=1, flags=re.IGNORECASE)
        if choices:
            choices[-1] = before
        if not behind:
            break
        text = behind[0]
        choices.append(text)
    return choices


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
    "mmvp": Kind(
        _mmvp,
        "MMVP's columns Index, Question, Options, Correct Answer, in a .csv",
        takes=["corrected"],
    ),
}
