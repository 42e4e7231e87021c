"""The rules over metadata: what they count and keep, against the same written plainly."""

import collections
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from input_pipeline.corpus import captions, columns, command, jobs, rules, sift
from tests.input_pipeline.corpus import corpus_data as data

PLANTED = 30


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(20,000 rows in three files, what each plain rule says of them, the JSONs, the output)."""
    folder = tmp_path_factory.mktemp("rules")
    tables = [data.metadata(size, PLANTED // 3, i) for i, size in enumerate((9000, 8000, 3000))]
    data.write(folder / "meta", tables)
    output = folder / "out"
    arguments = ["--input", f"{folder}/meta/*.parquet", "--output", str(output)]
    words = ["filter", *arguments, *data.arguments(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("input_pipeline.command_line.in_processes", lambda workers: here)
        assert command.main(words) == 0
    rows = pa.concat_tables(tables).to_pylist()
    copies = collections.Counter(row["TEXT"].strip() for row in rows)
    infos = [json.loads(path.read_bytes()) for path in sorted(output.glob("*.parquet.json"))]
    return tables, data.plainly(rows, copies), infos, output


def here(function, tasks, unit, console):
    """`workers.run_all` in this process."""
    for label, arguments in tasks:
        assert label.size >= 0
        yield label, function(*arguments)


def test_the_counts_are_those_that_were_planted_and_those_of_the_plain_rules(found):
    _, verdicts, infos, output = found
    report = json.loads((output / jobs.REPORT).read_bytes())
    first = [next((r for r, bad in v.items() if bad or bad is None), None) for v in verdicts]
    for rule, faults in zip(report["rules"], data.FAULTS, strict=True):
        assert rule["rule"] == faults
        gaps = PLANTED if faults in data.MISSING else 0
        assert rule["dropped"] == first.count(faults) == PLANTED + gaps, faults
        assert rule["no_value"] == gaps, faults
        assert rule["alone"] == sum(v[faults] in (True, None) for v in verdicts), faults
    kept = first.count(None)
    assert report["rows"] == 20_000 and report["kept"] == kept == sum(i["kept"] for i in infos)
    left = [20_000 * rule["share_left"] for rule in report["rules"]]
    assert sorted(left, reverse=True) == left and left[-1] == pytest.approx(kept)


def test_what_is_kept_are_those_rows_with_all_their_columns(found):
    tables, verdicts, _, output = found
    passing = np.array([not any(bad or bad is None for bad in v.values()) for v in verdicts])
    for table, path in zip(tables, sorted(output.glob("*.parquet")), strict=True):
        part, passing = passing[: len(table)], passing[len(table) :]
        kept = pyarrow.parquet.read_table(path)
        assert kept.schema == table.schema
        assert kept.equals(table.filter(pa.array(part)))


def test_samples_are_of_what_the_rule_drops(found):
    tables, verdicts, infos, output = found
    lines = (output / jobs.DROPPED).read_text().splitlines()
    assert lines[0] == "rule\tfile\trow\tvalue\turl\tcaption"
    counts = collections.Counter()
    starts = dict(zip((info["source"]["file"] for info in infos), (0, 9000, 17_000)))
    for line in lines[1:]:
        rule, file, row, value, _, caption = line.split("\t")
        counts[rule] += 1
        verdict = verdicts[starts[file] + int(row)]
        assert verdict[rule] or (verdict[rule] is None and value == ""), line
        text = pa.concat_tables(tables)["TEXT"][starts[file] + int(row)].as_py()
        assert " ".join(text.split())[:200] == caption
    assert counts == dict.fromkeys(data.FAULTS, sift.SAMPLED)


def test_missing_values_pass_if_asked(tmp_path):
    [path] = data.write(tmp_path / "meta", [data.metadata(3000, 10)])
    job, given = jobs.plan(str(path))[0], {}
    checks = rules.Rules(max_nsfw=0.5, min_caption_words=3).checks()
    (tmp_path / "out").mkdir()
    about = {"options": {}, "given": {}}
    strict, lenient = (
        sift.sift(job, tmp_path / "out", about, checks, given, keep) for keep in (False, True)
    )
    assert [rule["no_value"] for rule in strict["rules"]] == [10, 10]
    assert [rule["no_value"] for rule in lenient["rules"]] == [0, 0]
    assert lenient["kept"] == strict["kept"] + 20


TEXTS = [
    *(
        "a",
        "Ünï çödé",
        "日本 日本",
        "हिन्दी शब्द हिन्दी",
        "12:30 — 45 %",
        "ﬁne Fine FINE",
        "İzmir izmir",
    ),
    *("x\u2028y\x1cz", "e\u0301 é É", "🙂🙂 ok", "don't don't", "a\u00a0b", "...", "𝔄𝔄 aa"),
]


@pytest.fixture
def texts():
    letters = [
        *"abcXYZäß日本語é",
        " ",
        " ",
        "\t",
        "\u3000",
        "1",
        "-",
        "'",
        "\u0301",
        "🙂",
        "ﬁ",
        "İ",
    ]
    rng = np.random.default_rng(0)
    made = ("".join(rng.choice(letters, rng.integers(1, 30))).strip() for _ in range(500))
    return [*TEXTS, *(text for text in made if text)]


def test_captions_are_measured_as_python_does(texts):
    array = pa.array([*texts, None], pa.large_string())
    measured = {
        captions.characters: len,
        captions.fields: lambda t: len(t.split()),
        captions.letters: data.letters,
        lambda a: captions.Words(a).repeated(): repeated,
    }
    for ours, plain in measured.items():
        *values, missing = ours(array)
        assert np.isnan(missing)
        for text, value in zip(texts, values, strict=True):
            assert value == pytest.approx(plain(text)), (text, ours)


def repeated(text):
    found = data.words(text)
    return (len(found) - len(set(found))) / max(1, len(found))


def test_phrases_are_found_as_whole_words(texts):
    array = pa.array([*texts, None], pa.large_string())
    phrases = ["日本", "ab c", "fine", "हिन्दी शब्द", "É", "a b", "--"]
    known = captions.by_length(phrases)
    listed = [" ".join(data.words(phrase)) for phrase in phrases if data.words(phrase)]
    *found, missing = captions.Words(array).listed(known)
    assert np.isnan(missing)
    for text, number in zip(texts, found, strict=True):
        inside = data.words(text)
        plain = sum(
            inside[i : i + len(phrase.split())] == phrase.split()
            for phrase in set(listed)
            for i in range(len(inside))
        )
        assert number == plain, text


def test_text_that_is_no_utf8_has_no_value():
    column = pa.array([b"fine", b"\xff\xfe", None, b" "]).cast(pa.string(), safe=False)
    rows = columns.Rows(pa.record_batch({"TEXT": column}), {"caption": ["TEXT"]}, 0)
    assert rows.text("caption").to_pylist() == ["fine", None, None, None]


@pytest.mark.parametrize(
    ("names", "kind", "given", "found"),
    [
        (["URL", "TEXT", "WIDTH"], "caption", {}, ["TEXT"]),  # LAION
        (["uid", "text", "original_width"], "width", {}, ["original_width"]),  # DataComp
        (["WIDTH", "width", "original_width"], "width", {}, ["original_width"]),  # img2dataset
        (["a", "b"], "nsfw", {"nsfw": ["b", "a"]}, ["b", "a"]),
        (["a", "b"], "nsfw", {}, "no column is known to hold the nsfw .*; it has a, b. Give --col"),
        (["text", "caption"], "caption", {}, "may be in text or caption: choose one by"),
        (  # COYO
            ["clip_similarity_vitb32", "clip_similarity_vitl14"],
            *("similarity", {}, "or several of them, by"),
        ),
        (["a"], "url", {"url": ["b"]}, "no column 'b'; it has a"),
        (["url", "url"], "url", {"url": ["url"]}, "2 columns 'url'"),
    ],
)
def test_columns_are_found_or_the_error_says_what_there_is(names, kind, given, found):
    if isinstance(found, list):
        assert columns.find(kind, names, given) == found
    else:
        with pytest.raises(ValueError, match=found):
            columns.find(kind, names, given)


def test_several_scores_must_all_pass():
    """Those that are known decide, also where another is missing."""
    a, b = [0.1, 0.9, 0.1, None, None], ["0.9", "0.1", "0.1", "0.1", "0.9"]
    batch = pa.record_batch({"a": a, "b": b})
    for limits, expected in (
        ({"max_nsfw": 0.5}, [True, True, False, False, True]),
        ({"min_similarity": 0.5}, [True, True, True, True, False]),
    ):
        [check] = rules.Rules(**limits).checks()
        values, fails = check(columns.Rows(batch, {check.kinds[0]: ["a", "b"]}, 0))
        assert fails.tolist() == expected
        missing = [None in (x, y) and not bad for x, y, bad in zip(a, b, expected)]
        assert np.isnan(values).tolist() == missing


def test_scores_of_32_bits_are_on_the_limit_also_beside_those_of_64():
    narrow, wide = pa.array([0.1], pa.float32()), pa.array([0.1], pa.float64())
    rows = columns.Rows(pa.record_batch({"a": narrow, "b": wide}), {"nsfw": ["a", "b"]}, 0)
    [check] = rules.Rules(max_nsfw=0.1).checks()
    assert check(rows)[1].tolist() == [False]


def test_words_in_place_of_numbers_are_an_error():
    batch = pa.record_batch({"a": ["1", "", "x"]})
    with pytest.raises(ValueError, match=r"'a' holds no numbers: .*x"):
        columns.Rows(batch, {"width": ["a"]}, 0).numbers("width")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "No rule is given"),
        ({"min_side": 9, "max_side": 8}, "--min-side 9 and --max-side 8 leave nothing"),
    ],
)
def test_rules_that_make_no_sense(limits, message):
    with pytest.raises(ValueError, match=message):
        rules.Rules(**limits)


def test_domains_stand_for_all_below_them(tmp_path):
    (tmp_path / "list").write_text("*.Bad.example\n#good.example\nbücher.de\n.shop\n")
    urls = {
        "https://bad.example/x": 1,
        "https://a.b.bad.example.:8080?x": 1,
        "//bad.example": 1,
        "http://xn--bcher-kva.de/": 1,
        "http://www.BÜCHER.de": 1,
        "http://x.shop#": 1,
        "http://good.example/bad.example": 0,
        "http://user:pw@good.example": 0,
        "http://good.example@me@bad.example": 1,
        "http://x@bad.example@good.example": 0,
        "http://notbad.example": 0,
        "bad.example/x": None,
        "": None,
    }
    [check] = rules.Rules(drop_domains=rules.Listed.of(f"{tmp_path}/list")).checks()
    batch = pa.record_batch({"url": list(urls)})
    values, _ = check(columns.Rows(batch, {"url": ["url"]}, 0))
    assert [None if np.isnan(v) else v for v in values.tolist()] == list(urls.values())


def test_a_list_that_changed_since_the_command_began_is_refused(tmp_path):
    (tmp_path / "list").write_text("bad.example\n")
    [check] = rules.Rules(drop_domains=rules.Listed.of(f"{tmp_path}/list")).checks()
    (tmp_path / "list").write_text("other.example\n")
    batch = pa.record_batch({"url": ["http://bad.example"]})
    with pytest.raises(ValueError, match="list was changed meanwhile"):
        check(columns.Rows(batch, {"url": ["url"]}, 0))
