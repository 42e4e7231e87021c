"""Tables of captions: formats, the join to downloaded tars by URL, errors."""

import csv
import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from input_pipeline.files import delimited, tables
from input_pipeline.sources import make_source
from input_pipeline.tars import index
from input_pipeline.workers import in_processes

COLUMNS = {
    "image": [f"sub/{i}.jpg" for i in range(5)] + [None],
    "short": ["A cat. It sits", "12", "", "null", " padded\n", "no image"],
    "long": ["one", "two\nlines", "", 'a "quoted", one', "...", "x"],
    "unused": [1, 2, 3, 4, 5, 6],
}
LISTS = {**COLUMNS, "long": [["one", " "], ["two", "lines"], [], ["a", "b."], None, ["x"]]}
FORMATS = ["csv", "tsv", "parquet", "arrow", "arrow stream"]


def write_images(folder):
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for i in range(5):
        (folder / "sub" / f"{i}.jpg").write_bytes(f"image {i}".encode())
    return folder


def write(folder, kind="csv", columns=COLUMNS, name="table"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{kind.split()[0]}"
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if kind == "csv":
        with open(path, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(columns)
            rows.writerows(zip(*columns.values()))
    elif kind == "tsv":  # no quoting, so no line ends
        rows = [columns, *zip(*columns.values())]
        lines = ["\t".join(str(v or "").replace("\n", " ") for v in row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines))
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        new = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def open_table(path, images, captions=("short", "long"), **more):
    more = {"image_column": "image", "image_root": images, **more}
    return make_source("table", path=path, captions=list(captions), **more)


def all_of(source):
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_with_captions_and_image(tmp_path, images, kind):
    found = all_of(open_table(write(tmp_path, kind), images))
    assert [r["id"] for r in found] == ["table/0", "table/1", "table/3", "table/4"]
    assert [r["image"] for r in found] == [f"image {i}".encode() for i in (0, 1, 3, 4)]
    assert [list(r["captions"].items()) for r in found] == [
        [("short", ["A cat. It sits"]), ("long", ["one"])],
        [("short", ["12"]), ("long", ["two lines" if kind == "tsv" else "two\nlines"])],
        [("short", ["null"]), ("long", ['a "quoted", one'])],
        [("short", ["padded"]), ("long", ["..."])],
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream"])
def test_lists_of_strings(tmp_path, images, kind):
    found = all_of(open_table(write(tmp_path, kind, LISTS), images, ("long",)))
    assert [r["id"] for r in found] == ["table/0", "table/1", "table/3"]
    assert [r["captions"]["long"] for r in found] == [["one"], ["two", "lines"], ["a", "b."]]


def test_splitting_into_sentences(tmp_path, images):
    source = open_table(write(tmp_path), images, split_sentences=True)
    assert source[0]["captions"] == {"short": ["A cat", "It sits"], "long": ["one"]}
    assert source[1]["captions"]["long"] == ["two", "lines"]
    lists = open_table(write(tmp_path, "parquet", LISTS), images, ("long",), split_sentences=True)
    assert lists[2]["captions"]["long"] == ["a", "b"]


@pytest.mark.parametrize("kind", FORMATS)
def test_only_the_columns_that_are_needed_are_loaded(tmp_path, images, kind):
    source = open_table(write(tmp_path, kind), images, ("long",))
    assert [t.column_names for t in source._tables()] in ([["long", "image"]], [["image", "long"]])


@pytest.mark.parametrize("kind", ["arrow", "arrow stream"])
def test_arrow_files_are_mapped(tmp_path, images, kind):
    columns = {**COLUMNS, "long": ["words " * 10**6] * 6}
    path = write(tmp_path, kind, columns)
    before = pa.total_allocated_bytes()
    [table] = tables.load_all([path], ["long"])
    assert table.nbytes > 3e7
    assert pa.total_allocated_bytes() - before < 1e6


def test_dictionaries_of_strings(tmp_path, images):
    columns = {**COLUMNS, "short": pa.array(COLUMNS["short"]).dictionary_encode()}
    source = open_table(write(tmp_path, "parquet", columns), images, ("short",))
    assert [r["captions"]["short"] for r in all_of(source)] == [
        ["A cat. It sits"],
        ["12"],
        ["null"],
        ["padded"],
    ]


def test_several_files(tmp_path, images):
    for i in (1, 0):
        part = {name: values[3 * i : 3 * i + 3] for name, values in COLUMNS.items()}
        write(tmp_path / "parts", "parquet", part, f"part-{i}")
    found = all_of(open_table(tmp_path / "parts" / "*.parquet", images))
    assert [r["id"] for r in found] == ["part-0/0", "part-0/1", "part-1/0", "part-1/1"]
    whole = all_of(open_table(write(tmp_path), images))
    assert [{**r, "id": ""} for r in found] == [{**r, "id": ""} for r in whole]


def test_pickling_ships_no_table(tmp_path, images):
    columns = {name: values * 1000 for name, values in COLUMNS.items()}
    source = open_table(write(tmp_path, "csv", columns), images)
    expected = all_of(source)[:20]
    data = pickle.dumps(source)
    assert len(data) < 8 * len(source) + 2000  # which rows are used
    copy = pickle.loads(data)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, range(20))) == expected
    assert copy.fingerprint() == source.fingerprint()


def test_the_fingerprint_covers_contents_and_options(tmp_path, images):
    source = open_table(write(tmp_path), images)
    assert open_table(write(tmp_path / "copy"), images).fingerprint() == source.fingerprint()
    changed = {**COLUMNS, "long": ["ONE", *COLUMNS["long"][1:]]}
    others = [
        open_table(write(tmp_path / "changed", columns=changed), images),
        open_table(write(tmp_path), images, ("long", "short")),
        open_table(write(tmp_path), images, split_sentences=True),
    ]
    assert len({s.fingerprint() for s in (source, *others)}) == 4


def write_downloads(folder, urls):
    """One tar per list of URLs, in which img2dataset's `url` is None for one that has none."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(urls):
        with tarfile.open(folder / f"{i:05d}.tar", "w") as tar:
            for j, url in enumerate(part):
                members = {"jpg": f"{i} {j}".encode(), "json": json.dumps({"url": url}).encode()}
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{j}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    index.build(f"{folder}/*.tar", folder / "index", in_processes(1))
    return folder / "index"


URLS = {
    "Image Path": ["http://a/1", "http://a/2", "http://a/3", None, "http://a/5", "http://a/1"],
    "raw_caption": ["one", "two", "three", "none", " ", "one again"],
    "longSV_captions": ["It is. One", "b", "c", "d", ".", "f"],
}
CAPTIONS = ["raw_caption", "longSV_captions"]


def join(path, downloads, **more):
    options = {"captions": CAPTIONS, "url_column": "Image Path", "downloads": downloads, **more}
    return make_source("table", path=path, **options)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    urls = [["http://a/9", None, "http://a/3", "http://a/1"], ["http://a/1", "http://a/5"]]
    return write_downloads(tmp_path_factory.mktemp("tars"), urls)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_joined_to_downloads(tmp_path, downloads, kind):
    """The first sample of a URL wins; rows that were not downloaded, or say nothing, are out."""
    source = join(write(tmp_path, kind, URLS), downloads, split_sentences=True)
    assert all_of(source) == [
        {
            "id": f"table/{row}",
            "image": image,
            "captions": {"raw_caption": [raw], "longSV_captions": long},
        }
        for row, image, raw, long in [
            (0, b"0 3", "one", ["It is", "One"]),
            (2, b"0 2", "three", ["c"]),
            (5, b"0 3", "one again", ["f"]),
        ]
    ]
    copy = pickle.loads(pickle.dumps(source))
    assert all_of(copy) == all_of(source)


def test_the_fingerprint_covers_the_downloads(tmp_path, downloads):
    path = write(tmp_path, "csv", URLS)
    fewer = write_downloads(tmp_path / "tars", [["http://a/3", "http://a/1"]])
    assert join(path, downloads).fingerprint() != join(path, fewer).fingerprint()
    assert join(path, downloads).fingerprint() == join(path, downloads).fingerprint()


def test_a_join_of_many_rows(tmp_path):
    """Against a dictionary; half of the rows were downloaded, many of them twice."""
    rng = np.random.default_rng(0)
    have = rng.integers(0, 2000, (3, 400))
    index = write_downloads(tmp_path / "tars", [[f"http://a/{u}" for u in part] for part in have])
    wanted = rng.permutation(2000)
    columns = {"url": [f"http://a/{u}" for u in wanted], "text": [f"t{u}" for u in wanted]}
    path = write(tmp_path, "parquet", columns)
    source = make_source("table", path=path, captions=["text"], url_column="url", downloads=index)
    first = {}
    for i, part in enumerate(have):
        for j, url in enumerate(part):
            first.setdefault(url, f"{i} {j}".encode())
    expected = [(f"t{u}", first[u]) for u in wanted if u in first]
    assert [(r["captions"]["text"][0], r["image"]) for r in all_of(source)] == expected


def test_no_url_matches(tmp_path, downloads):
    columns = {**URLS, "Image Path": [f"http://b/{i}" for i in range(6)]}
    message = r"None of the 6 URLs .*'Image Path' was downloaded.*'http://b/0'.*5 samp.*'http://a/"
    with pytest.raises(ValueError, match=message):
        join(write(tmp_path, "csv", columns), downloads)


def test_downloads_without_urls(tmp_path):
    index = write_downloads(tmp_path / "tars", [[None, None]])
    with pytest.raises(ValueError, match=r"No sample of the tars indexed in .* has a `url`"):
        join(write(tmp_path, "csv", URLS), index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": ["none"]}, r"has no column 'none'; it has image, short, long, unused"),
        ({"image_column": "picture"}, "has no column 'picture'; it has image"),
        ({"image_column": None}, "either image_column or url_column"),
        ({"url_column": "image"}, "either image_column or url_column"),
        ({"image_column": None, "url_column": "image"}, "url_column and downloads belong together"),
        ({"downloads": "x"}, "url_column and downloads belong together"),
        ({"captions": "short"}, "captions='short': give a list"),
        ({"captions": []}, "give at least one field"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_bad_arguments(tmp_path, images, kind, options, message):
    options = {"captions": ["short"], "image_column": "image", "image_root": images, **options}
    with pytest.raises(ValueError, match=message):
        make_source("table", path=write(tmp_path, kind), **options)


def test_missing_images(tmp_path, images):
    with pytest.raises(FileNotFoundError, match=r"4 of 4 images are missing: .*nowhere/sub/0\.jpg"):
        open_table(write(tmp_path), tmp_path / "nowhere")


def test_missing_tables(tmp_path, images):
    with pytest.raises(FileNotFoundError, match=r"Table .*none\.csv does not exist"):
        open_table(tmp_path / "none.csv", images)
    with pytest.raises(FileNotFoundError, match=r"nowhere/index\.json does not exist"):
        join(write(tmp_path, "csv", URLS), tmp_path / "nowhere")


@pytest.mark.parametrize("kind", FORMATS)
def test_empty_tables(tmp_path, images, kind):
    empty = {name: pa.array([], pa.string()) for name in ("image", "short", "long")}
    with pytest.raises(ValueError, match="has no rows"):
        open_table(write(tmp_path, kind, empty), images)


def test_no_row_is_left(tmp_path, images):
    with pytest.raises(ValueError, match=r"No row of .* has both a caption in .* and an image"):
        open_table(write(tmp_path, "csv", {**COLUMNS, "long": ["."] * 6}), images, ("long",))


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_tables(tmp_path, images, kind):
    path = write(tmp_path, kind)
    path.write_bytes(b'\xff\xfe"' if kind in ("csv", "tsv") else path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"table\.\w+ (cannot be read|has no column)"):
        open_table(path, images)


AS_WRITTEN = [
    *("plain", '"big" dog sits', '"unfinished', "next", 'the end of it"', '""', "\\", 'a "b" \\n'),
    *("007", "1e5", "NA", "null", "True", "2024-01-01", "nan", "a, b", "'", "nul \0 byte", "é"),
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("around", [("", ""), ("\ufeff", "\n"), ("", "\n\n")])
def test_fields_of_a_tsv_are_what_stands_between_the_tabs(tmp_path, images, line_end, around):
    lines = ["image\tshort", *(f"sub/{i % 5}.jpg\t{text}" for i, text in enumerate(AS_WRITTEN))]
    lines.insert(3, "")  # an empty line is no row
    data = around[0] + line_end.join(lines) + around[1].replace("\n", line_end)
    (tmp_path / "a.tsv").write_bytes(data.encode())
    found = all_of(open_table(tmp_path / "a.tsv", images, ("short",)))
    assert [r["captions"]["short"] for r in found] == [[text] for text in AS_WRITTEN]
    assert [r["id"] for r in found] == [f"a/{i}" for i in range(len(AS_WRITTEN))]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_fields_of_a_csv_are_what_was_written(tmp_path, images, quoting):
    texts = [*AS_WRITTEN, "two\nlines, one", "x\n\ny,\r\nz", '"', '"",""', "sub/1.jpg, b"]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, quoting=quoting)
        rows.writerow(["image", "short"])
        rows.writerows((f"sub/{i % 5}.jpg", text) for i, text in enumerate(texts))
    found = all_of(open_table(tmp_path / "a.csv", images, ("short",)))
    assert [r["captions"]["short"] for r in found] == [[text] for text in texts]


def test_quotes_within_fields_that_are_not_quoted_are_characters(tmp_path, images):
    (tmp_path / "a.csv").write_text(
        'image,short\nsub/0.jpg,a 5" screen\nsub/1.jpg,"say ""no"", or"\nsub/2.jpg,x""\n'
    )
    found = all_of(open_table(tmp_path / "a.csv", images, ("short",)))
    assert [r["captions"]["short"] for r in found] == [['a 5" screen'], ['say "no", or'], ['x""']]


@pytest.mark.parametrize(
    ("columns", "captions", "message"),
    [
        ("{i},{c}", ["x", '"never closed', "y"], "line 3: the quote .* is never closed"),
        ("{c},{i}", ["x", 'a 5" screen', '"open', "y"], "line 4: the quote .* is never closed"),
        ("{i},{c}", ["x", '"big" dog'], r"line 3: .* closes before ' ' in line 3"),
        ("{i},{c}", ["x", '"one', "y", '"two', "z"], r"line 3: .* closes before 't' in line 5"),
        ("{i},{c}", ['"back \\"slash\\" "'], "line 2: .* closes before 's' in line 2"),
        (
            "{i},{c}",
            ["x", '"open', "y", 'end"', "z"],
            r"row 1 .*over 3 lines, .*'sub/2.jpg,y' look",
        ),
        ("{i},{c}", ['"open', 'end"'], "row 0 .*over 2 lines, of which 'sub/1.jpg,end' looks like"),
        ("{c},{i}", ["x", '"open', "y", 'end"'], "row 1 .* 'open,sub/1.jpg' looks like a row"),
        ("{i},0,{c}", ["x", '"open', "y", 'end"'], "row 1 .* 'sub/2.jpg,0,y' looks like a row"),
        ("{i},{c},0", ["x", '"open', "y", 'end"'], "row 1 .* 'sub/2.jpg,y,0' looks like a row"),
    ],
)
def test_quotes_of_a_csv_that_do_not_fit_together(tmp_path, images, columns, captions, message):
    header = columns.format(i="image", c="short")
    rows = [columns.format(i=f"sub/{i}.jpg", c=text) for i, text in enumerate(captions)]
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(ValueError, match=rf"a\.csv cannot be read: {message}"):
        open_table(tmp_path / "a.csv", images, ("short",))


@pytest.mark.parametrize(
    "ids", [("sub/0.jpg", "sub/1.JPG"), ("0.jpg", "1.png"), ("000", "17"), ("http://a", "x://b")]
)
def test_rows_within_a_column_that_is_not_asked_for(tmp_path, ids):
    first, second = ids
    (tmp_path / "a.csv").write_text(f'i,title,short\n{first},"open,a\n{second},end",b\n')
    with pytest.raises(ValueError, match=rf"row 0 .* column 'title': .*'{second},end' looks like"):
        tables.check_rows(tmp_path / "a.csv", "i")
    (tmp_path / "a.csv").write_text(f'i,title,short\n{first},"two lines,\nbut, no row",b\n')
    tables.check_rows(tmp_path / "a.csv", "i")


def test_columns_that_are_not_asked_for_may_hold_anything(tmp_path, images):
    data = b'image,x,x,short\nsub/0.jpg,caf\xe9,"\xff,\n",a\nsub/1.jpg,1,,b\n'
    (tmp_path / "a.csv").write_bytes(data)
    found = all_of(open_table(tmp_path / "a.csv", images, ("short",)))
    assert [r["captions"]["short"] for r in found] == [["a"], ["b"]]


@pytest.mark.parametrize("block", [1, 3, 16])
def test_quotes_are_told_across_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", block)
    path = tmp_path / "a.csv"
    rng = np.random.default_rng(0)
    for _ in range(100):
        text = "".join(rng.choice(list('",a\n'), 12)) + "\n"
        path.write_text(text)
        try:
            list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error:
            with pytest.raises(ValueError, match="the quote that begins"):
                delimited._check_quotes(path)
        else:
            delimited._check_quotes(path)


def test_urls_within_a_field_of_a_csv(tmp_path, downloads):
    text = 'raw_caption,Image Path\n"open,http://a/1\nx,http://a/3\nend",http://a/5\n'
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"row 0 .* 'open,http://a/1' looks like a row"):
        join(tmp_path / "a.csv", downloads, captions=["raw_caption"])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["short", "image"])
def test_text_that_is_no_utf8_names_its_row(tmp_path, images, kind, column):
    offsets = pa.array([0, 1, 3], pa.int32()).buffers()[1]
    bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab\xff")])
    columns = {"image": ["sub/0.jpg", "sub/1.jpg"], "short": ["x", "y"]} | {column: bad}
    message = rf"table\.{kind} cannot be read: row 1 .*column '{column}': .*byte 0xff"
    with pytest.raises(ValueError, match=message):
        open_table(write(tmp_path, kind, columns), images, ("short",))


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_bytes_that_are_no_utf8_name_their_line(tmp_path, images, kind):
    path = tmp_path / f"a.{kind}"
    rows = [b"image|short", b"", b"sub/0.jpg|x", b"sub/1.jpg|caf\xe9"]
    path.write_bytes(b"\n".join(rows).replace(b"|", b"," if kind == "csv" else b"\t"))
    with pytest.raises(ValueError, match=rf"a\.{kind} cannot be read: line 4: invalid UTF8"):
        open_table(path, images, ("short",))
    path.write_bytes("image,short\nsub/0.jpg,x\n".encode("utf-16"))
    with pytest.raises(ValueError, match=rf"a\.{kind} cannot be read: line 1: invalid UTF8"):
        open_table(path, images, ("short",))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "arrow"])
def test_a_column_that_is_there_twice(tmp_path, images, kind):
    if kind in ("csv", "tsv"):
        path = tmp_path / f"table.{kind}"
        path.write_text("image,short,short\n1,2,3\n".replace(",", "," if kind == "csv" else "\t"))
    else:
        path = write(tmp_path, kind, pa.table([["a"], ["b"], ["c"]], ["image", "short", "short"]))
    with pytest.raises(ValueError, match="has 2 columns 'short'; rename all but one"):
        open_table(path, images, ("short",))


def test_a_file_without_a_line_of_names(tmp_path, images):
    (tmp_path / "cc3m.tsv").write_text("a caption\tsub/0.jpg\n")
    message = r"no column 'short'; it has a caption, sub/0.jpg \(its first line; if that is no line"
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / "cc3m.tsv", images, ("short",))


@pytest.mark.parametrize("row", ["sub/1.jpg", "sub/1.jpg\tb\tc"])
def test_rows_of_different_lengths_in_a_tsv(tmp_path, images, row):
    (tmp_path / "a.tsv").write_text(f"image\tshort\n\n\nsub/0.jpg\ta\n{row}\n")
    message = r"a\.tsv cannot be read: line 5: Expected 2 columns, got \d\. A \.tsv has no quoting"
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / "a.tsv", images, ("short",))


def test_every_row_counts_in_the_fingerprint_and_images_by_their_size(tmp_path, images):
    columns = {"image": ["sub/0.jpg"] * 3000, "short": ["x"] * 3000}
    before = open_table(write(tmp_path, columns=columns), images, ("short",)).fingerprint()
    columns["short"][1] = "y"
    after = open_table(write(tmp_path, columns=columns), images, ("short",))
    assert after.fingerprint() != before
    folder = write_images(tmp_path / "images")
    again = open_table(write(tmp_path, columns=columns), folder, ("short",))
    assert again.fingerprint() == after.fingerprint()
    (folder / "sub" / "0.jpg").write_bytes(b"of another size")
    assert again.fingerprint() != after.fingerprint()


def test_tables_and_folders_named_like_patterns(tmp_path):
    folder = write_images(tmp_path / "data[1]")
    path = write(folder / "t*", name="[ab]")
    assert len(open_table(path, folder)) == 4
    assert len(open_table(folder / "t*" / "*.csv", folder)) == 4


def test_rows_of_different_lengths(tmp_path, images):
    (tmp_path / "a.csv").write_text("image,short\nsub/0.jpg,a\nsub/1.jpg,b,c\n")
    with pytest.raises(ValueError, match=r"a\.csv cannot be read: .*Expected 2 columns, got 3"):
        open_table(tmp_path / "a.csv", images, ("short",))


def test_columns_of_other_types(tmp_path, images):
    path = write(tmp_path, "parquet", LISTS)
    with pytest.raises(ValueError, match="column 'unused': int64 where strings or lists"):
        open_table(path, images, ("unused",))
    with pytest.raises(ValueError, match="Column 'long' holds lists where one string"):
        open_table(path, images, ("short",), image_column="long")


def test_files_that_are_no_table(tmp_path, images):
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(ValueError, match=r"a\.xlsx is no table; known are \.csv, \.tsv"):
        open_table(tmp_path / "a.xlsx", images)


def test_tables_of_one_name(tmp_path, images):
    write(tmp_path / "a")
    write(tmp_path / "b")
    with pytest.raises(ValueError, match="would give the same shard name and record ids"):
        open_table(tmp_path / "*" / "table.csv", images)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range(tmp_path, images, index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range: there are 4"):
        open_table(write(tmp_path), images)[index]
