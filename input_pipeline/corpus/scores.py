"""The similarity of each row of a table, by the embeddings of its image and caption."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from etils import epath

from input_pipeline.checks.errors import BigVlpError
from input_pipeline.corpus import columns, jobs, runs
from input_pipeline.corpus.columns import Rows
from input_pipeline.corpus.sift import ROWS
from input_pipeline.files import outages, tables, whole
from input_pipeline.files.ranges import open_file, source_path
from input_pipeline.text.captions import split_sentences

SCORE = np.dtype([("id", "<u8"), ("caption", "<u8"), ("score", "<f4")])
ROW = np.dtype("<f4")
_PAIRS = 1024  # whose features are in memory


class OtherCaptionError(BigVlpError):
    """Embeddings are of another row than the one that has their id: no other table is worth
    reading."""


def write_scores(path: Path, embeddings: Path) -> str:
    """Writes (hashes of the id and of the first caption, similarity) of every image with captions,
    in sorted runs."""
    return jobs.attempt(embeddings, _write_scores, source_path(path), source_path(embeddings))


def _write_scores(path: Path, embeddings: Path) -> str:
    def parts():
        for ids, captions, values in pairs(embeddings):
            part = np.zeros(len(ids), SCORE)
            part["id"], part["caption"] = _hashes(ids), _caption_hashes(captions)
            part["score"] = values
            yield part[~np.isnan(values)]

    runs.write(path, parts(), SCORE)
    return ""


def write_range(path: Path, scores: Sequence[tuple[Path, str]], low: int, high: int) -> str:
    """Writes the scores of a range of hashes, ascending; `scores` are files of `write_scores`, with
    the names of their embeddings."""
    return jobs.attempt("--embeddings", _write_range, source_path(path), scores, low, high)


def _write_range(path: Path, scores: Sequence[tuple[Path, str]], low: int, high: int) -> str:
    parts, files = [np.zeros(0, SCORE)], [0]
    for number, (file, _) in enumerate(scores):
        for part in runs.between(source_path(file), SCORE, low, high):
            parts.append(np.array(part))
            files.append(number)
    found, origins = np.concatenate(parts), np.repeat(files, list(map(len, parts)))
    order = np.argsort(found["id"], kind="stable")
    found = found[order]
    if len(twice := np.flatnonzero(found["id"][1:] == found["id"][:-1])):
        one, other = (scores[origins[order[twice[0] + i]]][1] for i in (0, 1))
        if one == other:
            raise ValueError(f"{one}: an id is there twice: embed each image once")
        raise ValueError(f"an id is in two files of embeddings, {one} and {other}: give one")
    whole.write_whole(path, found.tobytes())
    return ""


def pairs(path: Path | epath.Path) -> Iterator[tuple[list[str], list[str], np.ndarray]]:
    """(ids, the first caption of each or "", f32: cosine of image and caption, the highest of
    several, NaN where there is none), in parts; of an .npz, which is read as a whole, too.

    Raises:
      ValueError: the file is damaged or of another kind, or has no captions.
    """
    path = source_path(path)
    if path.suffix == ".npz":
        ids, image, of_caption, captions, text = _read_npz(path)
        index = {id_: i for i, id_ in enumerate(ids.tolist())}
        if len(index) < len(ids) or not index.keys() >= set(of_caption.tolist()):
            raise ValueError("an id is there twice, or one of a caption has no image")
        parents = np.array([index[id_] for id_ in of_caption.tolist()], np.int64)
        for first in range(0, len(ids), _PAIRS):
            low, high = np.searchsorted(parents, (first, first + _PAIRS))
            chosen = slice(first, first + _PAIRS)
            own = parents[low:high] - first
            score = _cosines(image[chosen], text[low:high], own)
            yield ids[chosen].tolist(), _firsts(captions[low:high].tolist(), own, len(score)), score
        return
    schema, _ = tables.stream(path, _PAIRS)
    names = ["id", "image", "captions", "text"]
    _check(schema.names, names)
    for batch in tables.stream(path, _PAIRS, names)[1]:
        ids, image, captions, text = (batch.column(name) for name in names)
        parents = pa.compute.list_parent_indices(text).to_numpy()
        score = _cosines(_vectors(image), _vectors(text.flatten()), parents)
        yield ids.to_pylist(), _firsts(captions.flatten().to_pylist(), parents, len(score)), score


def _read_npz(path: Path | epath.Path) -> list[np.ndarray]:
    names = ("ids", "image", "caption_ids", "captions", "text")
    try:
        with open_file(path) as file, np.load(file) as archive:
            there = archive.files
            found = [archive[name] for name in names if name in there]
    except outages.Unreachable:
        raise
    except Exception as error:  # a damaged archive raises a dozen types
        raise ValueError(f"{path} cannot be read: {outages.text_of(error)}") from None
    _check(there, names)
    return found


def _firsts(captions: Sequence[str], parents: np.ndarray, images: int) -> list[str]:
    """The first caption of each image; the captions' `parents` ascend."""
    captions = [*captions, ""]
    places = np.searchsorted(parents, np.arange(images))
    some = np.append(parents, -1)[places] == np.arange(images)
    return [captions[place] if has else "" for place, has in zip(places.tolist(), some.tolist())]


def _vectors(column: pa.Array) -> np.ndarray:
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else np.zeros((0, 1), np.float32)


def _check(names: Iterable[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"it has no {' and no '.join(missing)}: make it by `python -m big_vlp.embed --captions "
            "FIELD`, which embeds captions, too"
        )


def _cosines(image: np.ndarray, text: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """f32[images] of image [images, D] and text [captions, D]; NaN of one without captions, or of
    length 0."""
    best = np.full(len(image), -np.inf, np.float32)
    if len(text):
        with np.errstate(invalid="ignore", divide="ignore"):
            image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
            np.maximum.at(best, parents, np.einsum("nd,nd->n", image[parents], text))
    return np.where(np.isinf(best), np.float32(np.nan), best)


def kinds(given: Mapping[str, Sequence[str]]) -> set[str]:
    """Of the columns that are read. An id by place may be of another row, where rows were dropped
    since, so its caption is compared; with ids of a column, it is if its column is given."""
    return {"caption"} | given.keys() if "id" not in given else set(given)


def write_rows(
    path: Path, table: Path, ranges: Sequence[Path], given: Mapping[str, Sequence[str]]
) -> str:
    """Writes f32[rows] of a table: the similarity of each row's id, or NaN; `ranges` are the files
    of `write_range`.

    Raises:
      OtherCaptionError: embeddings are of another row; then no table is worth reading.
    """
    return jobs.attempt(table, _write_rows, source_path(path), source_path(table), ranges, given)


def _write_rows(
    path: Path, table: Path, ranges: Sequence[Path], given: Mapping[str, Sequence[str]]
) -> str:
    with jobs.temporary(path.parent, path.name) as temporary:
        with open(temporary, "wb") as file:
            for ids, captions in rows_of(table, given):
                hit, scores = _look_up(_hashes(ids), ranges)
                if captions is not None:
                    _compare(table, hit, scores["caption"], ids, captions)
                file.write(np.where(hit, scores["score"], np.float32(np.nan)).tobytes())
        whole.place(temporary, path)
    return ""


def bounds(ranges: int) -> list[int]:
    """Of so many ranges of hashes, of about equal parts of them."""
    return [2**64 * i // ranges for i in range(ranges + 1)]


def _look_up(hashes: np.ndarray, ranges: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(bool[n]: there is a score; the scores [n])."""
    hit, scores = np.zeros(len(hashes), bool), np.zeros(len(hashes), SCORE)
    lows = np.array(bounds(len(ranges))[:-1], np.uint64)
    numbers = np.searchsorted(lows, hashes, "right") - 1
    for number in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == number)
        known = _range(ranges[number])
        places = np.searchsorted(known["id"], hashes[chosen])
        inside = places < len(known)
        chosen, places = chosen[inside], places[inside]
        scores[chosen] = known[places]
        hit[chosen] = scores["id"][chosen] == hashes[chosen]
    return hit, scores


@functools.lru_cache(maxsize=512)  # each that is mapped is an open file
def _range(path: Path | epath.Path) -> np.ndarray:
    return runs.mapped(source_path(path), SCORE)


def _compare(
    table: Path,
    hit: np.ndarray,
    embedded: np.ndarray,
    ids: Sequence[str | None],
    captions: Sequence[str | None],
) -> None:
    """Of rows with a score, the caption with the hash of the first that was embedded."""
    for row in np.flatnonzero(hit & (_caption_hashes(captions) != embedded)).tolist():
        # The source `table` can split a caption, and `prepare` drop the first sentences.
        sentences = split_sentences(captions[row] or "")
        if embedded[row] not in _caption_hashes(sentences):
            raise OtherCaptionError(
                f"{table}: the embeddings of {ids[row]!r} are of another caption than its "
                f"{(captions[row] or '')[:80]!r}. If rows were dropped since, ids by place are "
                "those of other rows: embed again, or give --column id=NAME. If another column was "
                "embedded, give --column caption=NAME"
            )


def rows_of(
    table: Path | epath.Path, given: Mapping[str, Sequence[str]]
) -> Iterator[tuple[list[str | None], list[str | None] | None]]:
    """(ids, captions or None if they are not compared) of a table's rows, in parts; ids are from
    the column that was given, or by place."""
    schema, _ = tables.stream(table, ROWS)
    found = {kind: columns.find(kind, schema.names, given) for kind in sorted(kinds(given))}
    first, names = 0, list({name: None for names in found.values() for name in names})
    for batch in tables.stream(table, ROWS, names)[1]:
        rows = Rows(batch, found, first)
        ids = [f"{table.stem}/{first + i}" for i in range(len(rows))]
        if "id" in found:
            ids = rows.text("id").to_pylist()
        yield ids, rows.text("caption").to_pylist() if "caption" in found else None
        first += len(rows)


def _caption_hashes(captions: Iterable[str | None]) -> np.ndarray:
    """u64[captions], whatever their white space."""
    return _hashes(" ".join((text or "").split()) for text in captions)


def _hashes(texts: Iterable[str | None]) -> np.ndarray:
    """u64[texts]; of one that is missing that of the empty string, which is no record's id."""
    parts = (hashlib.blake2b((text or "").encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(parts), "<u8")
