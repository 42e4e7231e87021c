"""Source: questions in tables that hold their images, too: MMBench, MMMU, MathVista, TouchStone."""

import ast
import base64
import functools
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from input_pipeline.files import listing
from input_pipeline.files.ranges import disk_path
from input_pipeline.images import crops
from input_pipeline.sources.shared import base, lettered, listed, quoted
from input_pipeline.sources.shared.listed import Kind, only, text

IMAGES = ("first", "all")
QUESTIONS = {"all": None, "choices": True, "open": False}
_MMMU_IMAGES = [f"image_{number}" for number in range(1, 8)]
_MMMU_ID = re.compile(r"(?P<split>[a-z]+)_(?P<subject>\w+)_\d+")
_MATHVISTA_TEXT = (
    *("pid", "question", "choices", "answer", "question_type", "answer_type", "precision"),
    *("unit", "metadata"),
)
_TOUCHSTONE = (
    *("index", "question", "human_annotation", "gpt4_ha_answer", "category", "task_name"),
    "image",
)
# From here on MMBench numbers the same questions with their choices in other orders.
_COPIES = 1_000_000
# A name of another row in the place of an image; the shortest image is longer.
_MAX_REFERENCE = 64


class Place(NamedTuple):
    """Where the image of a record is: file, part of it (row group of a parquet), row of the part.

    Attributes:
      file: its number among those of the source.
    """

    file: int
    part: int
    row: int


Entry = tuple[Place, dict[str, Any]]


class Source(base.Source):
    """A record for each question, in the order of the tables: `question`, `question_id`,
    `category`, `split`, and `choices` with `answer`, the place of the right one; `answers`, the
    right texts. Questions without choices have `answers`, and the `answer_type` of these; those of
    a test whose answers are kept secret, no answers at all.

    kind, and what is read of its tables:
      mmbench (arXiv 2307.06281): mmbench_dev_20230712.tsv and the like: index, question, hint, A,
        B, C, D, and so on, answer, category, l2-category, the `domain`, split, image (base64, or
        the index of the row that has it). A `hint` stands by itself. A row of 1,000,000 and more
        whose last six digits are another row's is a copy of that one, with the choices moved: it
        is left out, as `multiple_choice` moves choices by itself. With `copies` it is a record,
        too, and all have an `original`, the index of the question that they ask.
      mmmu (arXiv 2311.16502): SUBJECT/SPLIT-*.parquet: id, which names split and category,
        question, options, answer, question_type, image_1 to image_7. "<image 1>" in texts stays.
      mathvista (arXiv 2310.02255): data/testmini-*.parquet: pid, question, choices, answer,
        question_type, answer_type, precision, unit, which goes behind the question, metadata: task,
        the category, category, the domain, split; decoded_image.
      touchstone (arXiv 2308.16890): touchstone_20230831.tsv: index, question, human_annotation, the
        `description` of the image that its judge reads, gpt4_ha_answer, the answer, category,
        task_name, the `task`, image (base64).

    Args:
      kind: one of these.
      path: the table, or a pattern of several.
      images: of `mmmu`, whose questions have up to seven: the "first" alone, or "all" beside each
        other from left to right on white, as one image.
      questions: of `mmmu` and `mathvista`: "all", those with "choices" alone, or the "open" ones.
      copies: of `mmbench`: keep the copies, which its server and its own scripts want answers to.

    Raises:
      FileNotFoundError: there is no such table.
      ValueError: a table is of another form; a question is there twice, its answer is none of its
        choices, or some have an answer and some have none.
    """

    def __init__(
        self,
        kind: str,
        path: str | os.PathLike,
        images: str = "first",
        questions: str = "all",
        copies: bool = False,
    ):
        given = {
            "images": None if images == "first" else images,
            "questions": None if questions == "all" else questions,
            "copies": copies or None,
        }
        chosen = listed.choose(KINDS, kind, given)
        for name, value, known in (
            ("images", images, IMAGES),
            ("questions", questions, tuple(QUESTIONS)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}; choose one of {known}.")
        disk_path(path, "tables of images are read")
        self._kind, self._images = kind, images
        self._tables = listing.matches(path)
        if not self._tables:
            raise FileNotFoundError(
                f"Table {path} does not exist (a pattern knows *, ? and [0-9])."
            )
        places: list[Place] = []
        left_out: Counter[str] = Counter()
        entries = self._entries(chosen, places, left_out, QUESTIONS[questions], copies)
        self._fields = listed.Fields(entries)
        self.left_out = dict(left_out)
        self._places = np.array(places, np.int32)

    def _entries(
        self,
        chosen: Kind,
        places: list[Place],
        left_out: Counter,
        with_choices: bool | None,
        copies: bool,
    ) -> Iterator[dict[str, Any]]:
        for number, table in enumerate(self._tables):
            with listed.understood(table, chosen.form):
                for (part, row), fields in chosen.read(table):
                    if not copies and fields.pop("original", fields["id"]) != fields["id"]:
                        left_out["copies with the choices moved"] += 1
                        continue
                    if with_choices not in (None, "choices" in fields):
                        left_out[f"questions with{'out' if with_choices else ''} choices"] += 1
                        continue
                    places.append(Place(number, part, row))
                    yield fields

    def __len__(self) -> int:
        return len(self._fields)

    def record(self, index: int) -> dict[str, Any]:
        fields, (file, part, row) = self._fields[index], self._places[index].tolist()
        path = self._tables[file]
        found = _PICTURES[self._kind](path, part, row)
        if not found:
            raise ValueError(f"Record {fields['id']!r} has no image in {path}.")
        image = found[0] if self._images == "first" or len(found) == 1 else _beside(found)
        return {"id": fields["id"], "image": image, "captions": {}} | fields

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        return [{"id": "", "captions": {}} | self._fields[index] for index in indices]

    def files(self) -> Sequence[Path]:
        """The tables."""
        return self._tables

    def identity(self) -> Iterable[str | bytes]:
        """The questions, and the tables' sizes."""
        return f"choice_tables {self._kind} {self._images}", self._fields.lines, self.sizes()


def _beside(images: Sequence[bytes]) -> bytes:
    """PNG of images from left to right, their upper edges in line, on white."""
    decoded = [crops.decode(image) for image in images]
    height = max(len(pixels) for pixels in decoded)
    filled = [
        np.pad(pixels, ((0, height - len(pixels)), (0, 0), (0, 0)), constant_values=255)
        for pixels in decoded
    ]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(filled, axis=1)).save(file, "PNG")
    return file.getvalue()


def _mmbench(path: Path) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    rows = _tsv(path)
    places = {row["index"]: number for number, row in enumerate(rows)}
    for number, row in enumerate(rows):
        name = row["index"]
        original = str(int(name) % _COPIES)
        image = row["image"]
        if len(image) <= _MAX_REFERENCE:
            if image not in places or len(rows[places[image]]["image"]) <= _MAX_REFERENCE:
                raise ValueError(f"question {name}: it has no image, but {image!r}")
            number = places[image]
        letters = [chr(ord("A") + i) for i in range(26)]
        choices = [row[letter] for letter in letters if row.get(letter, "").strip()]
        yield (
            (0, number),
            lettered.fields(
                name,
                row["question"],
                choices,
                row.get("answer") or None,
                **{
                    field: row.get(column) or None
                    for field, column in (
                        ("hint", "hint"),
                        ("category", "category"),
                        ("domain", "l2-category"),
                        ("split", "split"),
                    )
                },
                original=original if original in places else name,
            ),
        )


def _tsv(path: Path) -> list[dict[str, str]]:
    status = path.stat()
    return _read_tsv(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read_tsv(path: str, *status: int) -> list[dict[str, str]]:
    del status  # a file that was changed is read anew
    with open(path, encoding="utf-8-sig", newline="") as file:
        return quoted.rows(file, "\t")


def _tsv_pictures(path: Path, part: int, row: int) -> list[bytes]:
    return [base64.b64decode(_tsv(path)[row]["image"], validate=True)]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """((row group, row in it), values of the columns) of a parquet."""
    with pa.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise ValueError(f"it has no column {missing[0]!r}")
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=list(columns)).to_pylist()
            yield from (((group, number), row) for number, row in enumerate(rows))


def _pictures(columns: Sequence[str]) -> Callable[[Path, int, int], list[bytes]]:
    """Reads the images of a row that have bytes, in the order of the columns."""

    def read(path: Path, group: int, row: int) -> list[bytes]:
        status = path.stat()
        table = _read_group(str(path), group, tuple(columns), status.st_size, status.st_mtime_ns)
        found = [table[name][row].as_py() for name in columns if name in table.column_names]
        return [image["bytes"] for image in found if image and image["bytes"]]

    return read


@functools.lru_cache(maxsize=4)
def _read_group(path: str, group: int, columns: tuple[str, ...], *status: int) -> pa.Table:
    del status
    with pa.parquet.ParquetFile(path) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        return file.read_row_group(group, columns=there)


def _mmmu(path: Path) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    columns = ("id", "question", "options", "answer", "question_type")
    for place, row in _rows(path, columns):
        name = row["id"]
        if not (parts := _MMMU_ID.fullmatch(name)):
            raise ValueError(f"the id {name!r} is not SPLIT_SUBJECT_NUMBER")
        answer = None if row["answer"] in (None, "", "?") else row["answer"]
        if row["question_type"] == "multiple-choice":
            choices = [str(choice) for choice in ast.literal_eval(row["options"])]
            fields = lettered.fields(name, row["question"], choices, answer)
        else:
            answers = answer and _listed(answer)
            fields = _open(name, row["question"], answers) | {"answer_type": "text"}
        yield place, fields | {"category": parts["subject"], "split": parts["split"]}


def _listed(answer: str) -> list[str]:
    """Of an answer that is a text, or a list of several as Python writes it."""
    if not answer.startswith("["):
        return [answer]
    try:
        return [str(one) for one in ast.literal_eval(answer)]
    except (SyntaxError, ValueError):
        return [answer]


def _mathvista(path: Path) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    for place, row in _rows(path, _MATHVISTA_TEXT):
        name, answer, choices = row["pid"], row["answer"] or None, row["choices"]
        unit = f" (Unit: {row['unit']})" if row["unit"] else ""
        question = f"{text(row['question'], f'question {name}:')}{unit}"
        if row["question_type"] == "multi_choice":
            if answer is not None and answer not in choices:
                raise ValueError(f"question {name}: the answer {answer!r} is not in {choices}")
            at = None if answer is None else choices.index(answer)
            fields = lettered.fields(name, question, choices, at)
        else:
            fields = _open(name, question, None if answer is None else [answer])
        yield (
            place,
            fields
            | only(
                category=row["metadata"]["task"],
                domain=row["metadata"].get("category"),
                split=row["metadata"]["split"],
                answer_type=row["answer_type"],
                precision=row["precision"],
            ),
        )


def _touchstone(path: Path) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    for number, row in enumerate(_tsv(path)):
        fields = _open(row["index"], row["question"], [row["gpt4_ha_answer"].strip()])
        yield (
            (0, number),
            fields
            | {
                "description": row["human_annotation"].strip(),
                "category": row["category"],
                "task": row["task_name"],
            },
        )


def _open(name: str, question: Any, answers: list[str] | None) -> dict[str, Any]:
    """The fields of a question without choices."""
    where = f"question {name}:"
    fields = {"id": name, "question_id": name, "question": text(question, where)}
    return fields | only(answers=answers)


KINDS = {
    "mmbench": Kind(
        _mmbench,
        "MMBench's columns index, question, hint, A, B, ..., answer, category, image, in a .tsv",
        takes=["copies"],
    ),
    "mmmu": Kind(
        _mmmu,
        "MMMU's columns id, question, options, answer, question_type, image_1, ..., in parquet",
        takes=["images", "questions"],
    ),
    "mathvista": Kind(
        _mathvista,
        f"MathVista's columns {', '.join(_MATHVISTA_TEXT)}, decoded_image, in parquet",
        takes=["questions"],
    ),
    "touchstone": Kind(_touchstone, f"TouchStone's columns {', '.join(_TOUCHSTONE)}, in a .tsv"),
}
_PICTURES = {
    "mmbench": _tsv_pictures,
    "mmmu": _pictures(_MMMU_IMAGES),
    "mathvista": _pictures(["decoded_image"]),
    "touchstone": _tsv_pictures,
}
