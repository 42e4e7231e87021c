"""Files of what a model answered, in the forms that benchmarks take them."""

import csv
import io
import json
import os
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from input_pipeline.checks.arguments import unknown
from input_pipeline.files import whole
from input_pipeline.files.buckets import is_in_bucket, make_directory, storage_path
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.records import given


class Form(NamedTuple):
    """How answers are written.

    Attributes:
      id, text: what the two are called.
      layout: "list", of JSON; "lines" of JSON; "map", a JSON of ids and texts; "table", of TSV;
        "places", a JSON {"results": {id: place}} of the choices that letters name, -1 of none.
      numbers: whether ids are written as numbers, where all of the data's are such.
      columns: what a judge reads beside, which the evaluator `transcripts` knows.
    """

    id: str
    text: str
    layout: str = "list"
    numbers: bool = True
    columns: Sequence[str] = ()


FORMS = {
    "coco": Form("image_id", "caption"),  # COCO, NoCaps, TextCaps, Flickr30k
    "vqa": Form("question_id", "answer"),  # VQAv2, OK-VQA, TextVQA, TDIUC
    "vizwiz": Form("image", "answer", numbers=False),
    "gqa": Form("questionId", "prediction", numbers=False),
    "seed": Form("question_id", "prediction", "lines", numbers=False),
    "pope": Form("question_id", "answer", "lines"),
    "mmbench": Form("index", "prediction", "table"),
    "mmmu": Form("", "", "map", numbers=False),
    "scienceqa": Form("", "", "places", numbers=False),
    "mmvet": Form("", "", "map", numbers=False),
    "llava_bench": Form(
        *("question_id", "text", "lines"), columns=("prompt", "answer_id", "model_id", "metadata")
    ),
    "touchstone": Form(
        *("index", "response", "table"),
        columns=("question", "human_annotation", "gpt4_ha_answer", "category", "task_name"),
    ),
}


def check_form(name: str) -> None:
    """Raises ValueError where there is no such form."""
    if name not in FORMS:
        raise ValueError(unknown("form", name, FORMS))


def is_by_place(form: str) -> bool:
    """Whether a form has places of choices for answers, which no other answer can stand in."""
    return FORMS[form].layout == "places"


def check_path(path: str | os.PathLike) -> None:
    """Raises ValueError where it is a directory; PathError as `storage_path`."""
    found = storage_path(path)
    if not is_in_bucket(found) and found.is_dir():
        raise ValueError(f"predictions={str(path)!r} is a directory; give a file in it.")


def ending(form: str) -> str:
    """What the name of a file of that form ends in."""
    return {"lines": ".jsonl", "table": ".tsv"}.get(FORMS[form].layout, ".json")


def identity(record: Mapping[str, Any]) -> str:
    """By what a record's answer is known: its `question_id`, or its `id` where it has none."""
    return str(record.get("question_id", record["id"]))


def check_ids(ids: Sequence[str], where: str) -> None:
    """Raises ValueError where an id is there twice."""
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"{where}: {len(twice):,} ids occur more than once, such as {twice[0]!r}; each "
            "question must have one answer."
        )


def write(
    path: str | os.PathLike,
    form: str,
    ids: Sequence[str],
    texts: Sequence[str],
    beside: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes a file, which is there as a whole or not at all.

    Args:
      beside: of each answer, what the form's `columns` hold.

    Raises:
      ValueError: no such form, an id is there twice, or a column is not known.
    """
    check_form(form)
    check_ids(ids, "The data")
    shape = FORMS[form]
    all_numbers = shape.numbers and all(map(_is_number, ids))
    names = [int(name) for name in ids] if all_numbers else ids
    rows = [
        {shape.id: name} | columns_of(form, name, more) | {shape.text: text}
        for name, text, more in zip(names, texts, beside or [{}] * len(texts))
    ]
    if shape.layout == "table":
        file = io.StringIO()
        columns = [shape.id, *shape.columns, shape.text]
        table = csv.DictWriter(file, columns, delimiter="\t")
        table.writeheader()
        table.writerows(rows)
        content = file.getvalue()
    elif shape.layout == "lines":
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif shape.layout == "list":
        content = json.dumps(rows) + "\n"
    else:
        found = dict(zip(names, texts))
        if shape.layout == "places":
            found = {"results": {name: _place(text) for name, text in found.items()}}
        content = json.dumps(found) + "\n"
    path = storage_path(path)
    make_directory(path.parent)
    whole.remove_abandoned(path)
    whole.write_whole(path, content.encode())


def columns_of(form: str, name: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a form has beside an id and its text, of what is known of that question.

    Raises:
      ValueError: something is not known.
    """
    columns = FORMS[form].columns
    if missing := [column for column in columns if known.get(column) is None]:
        raise ValueError(
            f"form={form!r} has a column {missing[0]!r}, which is not known of question {name!r}: "
            "it is written by the evaluator transcripts, of that benchmark's own data."
        )
    return {column: known[column] for column in columns}


def read(path: str | os.PathLike) -> dict[str, str]:
    """id -> text of a file in any of the forms.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it has another form, or an id is there twice.
    """
    try:
        content = given(read_files([source_path(path)])[0]).decode("utf-8-sig")  # Excel's, too
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    pairs = None
    for layout in _LAYOUTS.values():
        try:
            rows = layout(content)
            pairs = _pairs(rows) if rows else None
        except _NoTextError as error:
            raise ValueError(f"{path}: {error}") from None
        except (ValueError, TypeError, AttributeError, KeyError):
            continue
        if pairs:
            break
    if not pairs:
        raise ValueError(f"{path} holds no predictions in one of the forms {', '.join(FORMS)}.")
    check_ids([name for name, _ in pairs], os.fspath(path))
    return dict(pairs)


def matched(found: Mapping[str, str], ids: Sequence[str], where: str) -> list[str]:
    """The texts of a file in the order of the data's ids.

    Raises:
      ValueError: the file answers other questions (those of another split, it may be), or not all.
    """
    check_ids(ids, "The data")
    known = set(ids)
    others = [name for name in found if name not in known]
    if others:
        raise ValueError(
            f"{where}: {len(others):,} of its {len(found):,} ids are not in the data, such as "
            f"{others[0]!r}; they must be of the same split."
        )
    missing = [name for name in ids if name not in found]
    if missing:
        raise ValueError(
            f"{where}: {len(missing):,} of {len(ids):,} questions have no answer, such as "
            f"{missing[0]!r}; every question must have one."
        )
    return [found[name] for name in ids]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _list(content: str) -> list[dict]:
    rows = json.loads(content)
    if not isinstance(rows, list):
        raise ValueError
    return rows


def _place(letter: str) -> int:
    return string.ascii_uppercase.find(letter) if len(letter) == 1 else -1


class _Repeated(list):
    """The pairs of a JSON object, in which a key may be there twice."""


def _map(content: str) -> list[tuple]:
    pairs = json.loads(content, object_pairs_hook=_Repeated)
    if not isinstance(pairs, _Repeated) or not all(isinstance(text, str) for _, text in pairs):
        raise ValueError
    return pairs


def _lines(content: str) -> list[dict]:
    return [json.loads(line) for line in content.split("\n") if line.strip()]


def _places(content: str) -> list[tuple]:
    pairs = json.loads(content, object_pairs_hook=_Repeated)
    [results] = [found for name, found in pairs if name == "results"]
    letters = dict(enumerate(string.ascii_uppercase)) | {-1: ""}
    return _Repeated((name, letters[int(place)]) for name, place in results)


def _table(content: str) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # tables that images were left in
    try:
        file = io.TextIOWrapper(io.BytesIO(content.encode()), encoding="utf-8", newline="")
        return list(csv.DictReader(file, delimiter="\t"))
    except csv.Error as error:
        raise ValueError(str(error)) from None


_LAYOUTS: dict[str, Callable[[str], list]] = {
    "list": _list,
    "lines": _lines,  # before a map, which a single line could be taken for
    "map": _map,
    "places": _places,
    "table": _table,
}


def _pairs(rows: list) -> list[tuple[str, str]]:
    if isinstance(rows, _Repeated):
        return [(str(name), text) for name, text in rows]
    for form in FORMS.values():
        if form.id and form.id in rows[0] and form.text in rows[0]:
            return [(str(row[form.id]), _text(row[form.id], row[form.text])) for row in rows]
    raise ValueError


class _NoTextError(ValueError):
    """An answer that is none: null, a list, or missing in its line of a table."""


def _text(name: Any, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _NoTextError(f"the answer of {name!r} is {value!r}, no text")
    return str(value)
