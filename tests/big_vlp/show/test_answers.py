"""The page of a model's answers: what it holds, and what a browser makes of it."""

import base64
import io
import itertools
import json
import re
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from big_vlp.show.__main__ import main
from evaluators.answers import vqa
from evaluators.answers.shared import asking
from input_pipeline import command_line
from input_pipeline.sources import Source
from tests.big_vlp.show.browser import Browser
from tests.evaluators.answers.test_each import CASES

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "big_vlp" / "show" / "page"
# Texts that a page must show as they are.
ODD = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "<!-- <script> </textarea> \\u003c ]]>",
    "a\u2028b\u2029c\x00d \U0001f600 \u202e",
    "\"quoted\" 'twice' &amp; &lt;b&gt; {title} {data} $& \\1",
    "long " * 200,
    "Long" * 200,
]


class Records(Source):
    """Records that are given."""

    def __init__(self, records):
        self._records = records

    def __len__(self):
        return len(self._records)

    def identity(self):
        return [repr(self._records)]

    def record(self, index):
        return dict(self._records[index])


def image(width, height, level=90):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (level, 120, 90)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a page of records and answers, by default one for each; returns its path."""
    folder = tmp_path_factory.mktemp("pages")

    def call(records, texts, metric, *words, ids=None):
        records = [{"id": f"r{i}", "question": "?", **one} for i, one in enumerate(records)]
        answers = folder / "answers.json"
        ids = ids or [one["id"] for one in records]
        rows = [{"question_id": name, "answer": text} for name, text in zip(ids, texts)]
        answers.write_text(json.dumps(rows))
        output = folder / f"{len(list(folder.iterdir()))}.html"
        given = ["--predictions", str(answers), "--input", "toy", "--metric", metric]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command_line, "open_source", lambda text: (text, {}, Records(records)))
            assert main(["predictions", *given, "--output", str(output), *words]) == 0
        return output

    return call


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def data_of(path):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>',
                          path.read_text(), re.DOTALL)  # fmt: skip
    return json.loads(found)


def questions(count):
    """Records and answers: a third right, a third half right, a third wrong; those odd ones too."""
    records, texts = [], []
    for i in range(count):
        odd = ODD[i % len(ODD)]
        answers = [["red"], ["red"] * 2 + ["blue"] * 8, [f"so {odd}"]][i % 3]
        more = dict(answers=answers, category="<b>x</b>" if i % 2 else "y", question=f"{i}? {odd}")
        records.append(dict(more, image=image(60, 40, i % 7)))
        texts.append(odd if i % 3 == 2 else "Red")
    return records, texts


def test_what_the_page_holds(make, capsys):
    records, texts = questions(30)
    path = make(records, texts, "vqa:by=category", "--limit", "10", "--size", "30")
    size = path.stat().st_size / 1e6
    assert f"Wrote {path}: 10 of 30 questions, {size:.1f} MB." in capsys.readouterr().out
    data = data_of(path)
    assert (data["total"], data["right"], data["by"]) == (30, 1, "category")
    assert data["metrics"] == ["vqa_accuracy", "exact_match"]
    assert dict(data["scores"])["exact_match"] == pytest.approx(1 / 3)  # of all, shown or not
    assert [one["id"] for one in data["records"]] == [f"r{i}" for i in range(0, 30, 3)]
    one = data["records"][1]
    assert (one["answer"], one["right"], one["values"]) == ("Red", [["red", 1]], [1, 1])
    # An image that several are about is there once.
    images = re.findall(r'<script type="text/plain" id="image-(\d+)">([\w+/=]+)<', path.read_text())
    assert [int(number) for number, _ in images] == list(range(len(data["sizes"]))) == [*range(7)]
    assert {one["image"] for one in data["records"]} == set(range(7))
    assert data["sizes"][0] == [60, 40]


def test_markup_in_texts_ends_nothing(make):
    records, texts = questions(14)
    text = make(records, texts, "vqa").read_text()
    images = text.count('id="image-')
    assert text.count("<script") == text.count("</script") == 2 + images


def test_images_are_scaled_down_and_never_up(make):
    sizes = [(500, 250), (50, 100)]
    records = [dict(answers=["a"], image=image(*size)) for size in sizes]
    path = make(records, ["a", "a"], "vqa", "--size", "100")
    found = re.findall(r'id="image-\d+">([\w+/=]+)<', path.read_text())
    opened = [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]
    assert [one.size for one in opened] == [(100, 50), (50, 100)]
    assert [tuple(size) for size in data_of(path)["sizes"]] == sizes


def test_boxes_are_read_from_texts(make):
    records = [
        dict(answers=["[[100,100,500,500]]"], image=image(8, 8)),
        dict(answers=["red"], image=image(8, 8)),
    ]
    texts = ["it is [[100,100,300,500]] or [[1,2,3,4;100,100,300,500]]", "[[1,2,3]]"]
    one, two = data_of(make(records, texts, "vqa"))["records"]
    assert one["written"] == [[0.1, 0.1, 0.3, 0.5], [0.001, 0.002, 0.003, 0.004]]
    assert one["true"] == [[0.1, 0.1, 0.5, 0.5]]
    assert one["iou"] is None  # which of them counts is for the metric to say
    assert (two["written"], two["true"], two["iou"]) == ([], [], None)


@pytest.mark.parametrize("name", CASES)
def test_every_metric_has_a_page(make, name):
    scoring, records, texts, expected, right = CASES[name]
    metric = type(scoring).__module__.rpartition(".")[2]
    records = [{"id": f"r{i}", **one} for i, one in enumerate(records)]
    ids = [kept["id"] for one in records for _, kept in scoring.questions_of(one)]
    shown = [dict(one, image=image(8, 8)) for one in records]
    data = data_of(make(shown, texts, metric, ids=ids))
    assert data["metrics"] == list(expected) and data["right"] == scoring.right
    values = np.array([one["values"] for one in data["records"]])
    np.testing.assert_allclose(values.T, list(expected.values()), atol=1e-9)
    assert [one["right"][0][0] for one in data["records"]] == right


def test_phrases_of_a_record_are_questions_of_their_own(make):
    boxes = [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.5, 0, 1, 0.5]]
    records = [dict(phrases=["a cat", "two dogs", "two dogs"], boxes=boxes, image=image(8, 8))]
    path = make(records, ["[[000,000,500,250]]", "no"], "referring", ids=["r0/1", "r0/0"])
    data = data_of(path)
    assert data["total"] == 2 and len(data["sizes"]) == 1
    one, two = data["records"]
    assert [one["id"], one["question"]] == ["r0/0", "Where is the cat?"]
    assert (one["answer"], two["answer"]) == ("no", "[[000,000,500,250]]")
    assert two["right"] == [["[[500,500,999,999;500,000,999,500]]", 1]] and len(two["true"]) == 2
    assert two["values"] == [0, 0, 0] and two["iou"] == 0


def test_boxes_overlap_as_the_metric_has_it(make):
    """The box itself is 0.3 of a thousandth larger than the text that is right; people said it
    three times, which is one right answer."""
    box = [0.1003, 0.1003, 0.2007, 0.2007]
    records = [dict(phrases=["a cat"] * 3 + ["dogs"], boxes=[box] * 3 + [[0, 0, 1, 1]])]
    records = [records[0] | {"image": image(8, 8)}]
    path = make(records, ["[[100,100,200,200]]", "a"], "referring", ids=["r0/0", "r0/1"])
    data = data_of(path)
    one, two = data["records"]
    assert one["right"] == [["[[100,100,200,200]]", 1]] and data["weighted"]
    assert 0.97 < one["iou"] == one["values"][data["metrics"].index("mean_iou")] < 1
    assert two["iou"] == 0
    caption = "a cat [[000,000,500,500]]"
    grounded = dict(captions={"caption": ["a cat, dogs"]}, phrases=["a cat", "dogs", "dogs"])
    grounded |= dict(boxes=[[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]], image=image(8, 8))
    [one] = data_of(make([grounded], [caption], "grounded_captions"))["records"]
    assert one["iou"] is None and one["values"][0] == 0  # it is the box of other words
    assert ["dogs [[000,000,500,500]]", 1] in one["right"]


def test_a_page_reads_each_record_once_and_many_together(make):
    asked = []

    def records(self, indices):
        asked.append(list(indices))
        return [self[index] for index in indices]

    phrases = dict(phrases=["a cat", "a dog"], boxes=[[0, 0, 1, 1]] * 2, image=image(8, 8))
    ids = [f"r{i}/{j}" for i in range(70) for j in range(2)]
    with (
        mock.patch.object(Records, "records", records),
        mock.patch.object(
            Records, "fields", lambda self, indices: [self[index] for index in indices]
        ),
    ):
        make([phrases] * 70, ["no"] * 140, "referring", ids=ids)
    assert [len(some) for some in asked] == [64, 6] and [*itertools.chain(*asked)] == [*range(70)]


def test_a_metric_that_says_nothing_of_single_answers_is_one_error(make, capsys):
    with mock.patch.object(vqa.Scoring, "each", asking.Scoring.each), pytest.raises(AssertionError):
        make([dict(answers=["a"], image=image(8, 8))], ["a"], "vqa")
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "write its Scoring.each" in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme):
    """Contrast of 4.5 and more, as WCAG asks."""
    blocks = re.findall(r":root \{(.*?)\}", (PAGE / "page.css").read_text(), re.DOTALL)
    colours = {}
    for block in blocks[: 1 + (scheme == "dark")]:
        colours |= dict(re.findall(r"--(\w+): (#\w+);", block))

    def light(name):
        digits = colours[name][1:]
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        parts = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return 0.05 + parts @ [0.2126, 0.7152, 0.0722]

    for name in ("text", "dim", "accent", "right", "partly", "wrong"):
        for ground in ("card", "back"):
            pair = sorted((light(name), light(ground)))
            assert pair[1] / pair[0] >= 4.5, (name, ground)


TEXTS = "[...document.querySelectorAll({})].map((one) => one.textContent)"
PICK = """(() => {{
  const input = document.querySelector({});
  input.{} = {};
  input.dispatchEvent(new Event('input', {{ bubbles: true }}));
}})()"""


def texts_of(browser, selector):
    return browser.run(TEXTS.format(json.dumps(selector)))


def pick(browser, selector, value, attribute="value"):
    browser.run(PICK.format(json.dumps(selector), attribute, json.dumps(value)))


def status_of(browser):
    return texts_of(browser, "#status")[0]


@pytest.fixture(scope="module")
def shown(make, browser):
    """The page of 60 questions, opened anew."""
    records, texts = questions(60)
    path = make(records, texts, "vqa:by=category")

    def open_page():
        browser.look(1200)
        browser.open(path)
        return browser, records, texts

    return open_page


def test_nothing_in_a_text_is_obeyed(shown):
    browser, records, texts = shown()
    answers = texts_of(browser, ".answer")
    for _ in range(2):
        browser.run("document.getElementById('next').click()")
        answers += texts_of(browser, ".answer")
    assert answers == texts
    pick(browser, "#search", "? <script>")
    assert texts_of(browser, ".question")[0] == records[0]["question"].strip()
    assert browser.run("window.hacked") is None
    assert browser.complaints() == [] and browser.requests() == []
    tags = "[...new Set([...document.querySelectorAll('main *')].map((one) => one.localName))]"
    assert set(browser.run(tags)) <= set("article div img p span dl dt dd".split())  # noqa: SIM905


def test_filters(shown):
    browser, *_ = shown()
    labels = texts_of(browser, "#verdicts label")
    assert labels == ["all 60", "✓ right 20", "◐ partly 20", "✗ wrong 20"]
    assert status_of(browser) == "1 to 24 of 60"
    pick(browser, "[value=wrong]", True, "checked")
    assert status_of(browser) == "1 to 20 of 20"
    assert set(texts_of(browser, ".verdict")) == {"✗ wrong"}
    pick(browser, "#group", "=<b>x</b>")
    assert status_of(browser) == "1 to 10 of 10"
    pick(browser, "#search", "R5")
    assert {one[:1] for one in texts_of(browser, ".id")} == {"r"}
    assert status_of(browser) == "1 to 3 of 3"  # r5, r53, r59
    pick(browser, "#search", "no such")
    assert status_of(browser) == "No question fits." and not texts_of(browser, "article")
    pick(browser, "#search", "")
    pick(browser, "#group", "")
    pick(browser, "[value=partly]", True, "checked")
    assert set(texts_of(browser, ".answers")) == {"blue (8), red (2)"}


def test_sorts(shown):
    browser, *_ = shown()

    def first(order):
        pick(browser, "#sort", order)
        return texts_of(browser, ".id")[0], texts_of(browser, ".numbers")[0]

    assert first("score, lowest first") == ("r2", "vqa_accuracy\u00a00.00 · exact_match\u00a00.00")
    assert first("score, highest first")[0] == "r0"
    assert first("longest answer first")[0] == "r5"
    assert first("as in the data")[0] == "r0"
    pick(browser, "#sort", "id")
    assert texts_of(browser, ".id") == [f"r{i}" for i in range(24)]  # by numbers
    assert "IoU, lowest first" not in texts_of(browser, "#sort option")


def test_keys(shown):
    browser, *_ = shown()
    browser.press("ArrowRight")
    assert status_of(browser) == "25 to 48 of 60"
    browser.press("ArrowRight")
    browser.press("ArrowRight")  # the last stays
    assert status_of(browser) == "49 to 60 of 60"
    browser.press("ArrowLeft")
    assert texts_of(browser, "#place") == ["2 / 3"]
    browser.press("/")
    assert browser.run("document.activeElement.id") == "search"
    browser.type("r59")
    assert status_of(browser) == "1 to 1 of 1"
    browser.press("Escape")
    assert status_of(browser) == "1 to 24 of 60"
    assert browser.run("document.activeElement.id") == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400, 320])
def test_nothing_is_wider_than_the_window(shown, width, scheme):
    browser, *_ = shown()
    browser.look(width, scheme=scheme)
    wide = """[...document.querySelectorAll('body *')].filter((one) => {
      const { left, right } = one.getBoundingClientRect();
      return left < 0 || right > innerWidth;
    }).length"""
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(wide) == 0
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(19, 22, 27)")


def test_boxes_lie_where_they_are(make, browser):
    right, other = [0.2, 0.1, 0.6, 0.85], [0.0, 0.5, 0.1, 0.999]
    choices = ["[[200,100,600,850]]", "[[000,500,100,999]]"]
    sizes = [(640, 480), (120, 400), (1500, 301), (64, 64)]
    records = [dict(choices=choices, answer=0, image=image(*size)) for size in sizes]
    texts = ["there [[199,120,610,800]]", choices[1], "[[900,900,700,700]]", "nowhere"]
    path = make(records, texts, "pointing")
    written = [[0.199, 0.12, 0.61, 0.8], other, [0.7, 0.7, 0.9, 0.9], None]
    rect = """((one) => {
      const { left, top, right, bottom } = one.getBoundingClientRect();
      return [left, top, right, bottom];
    })"""
    for width in (1200, 400):
        browser.look(width)
        browser.open(path)
        found = browser.run(f"""[...document.querySelectorAll('.picture')].map((one) => {{
          const all = (kind) => [...one.querySelectorAll(kind)].map({rect});
          return [all('img')[0], all('.box.true'), all('.box.written')];
        }})""")
        assert len(found) == 4
        for (picture, true, drawn), size, box in zip(found, sizes, written):
            left, top, end, bottom = picture
            sides = np.array([end - left, bottom - top])
            assert sides[0] / sides[1] == pytest.approx(size[0] / size[1], rel=0.01)
            for [rectangle], corners in ((true, right), (drawn, box))[: 1 + (box is not None)]:
                expected = np.tile(sides, 2) * corners + [left, top, left, top]
                np.testing.assert_allclose(rectangle, expected, atol=1)
        assert found[3][2] == []
    assert texts_of(browser, ".numbers")[0].startswith(
        "accuracy\u00a01.00 · parse_failures\u00a00.00 · IoU"
    )
    pick(browser, "#sort", "IoU, highest first")
    assert texts_of(browser, ".id") == ["r0", "r1", "r2", "r3"]
    pick(browser, "#sort", "IoU, lowest first")
    assert texts_of(browser, ".id") == ["r1", "r2", "r0", "r3"]  # without a box: last
    assert texts_of(browser, ".answers")[0] == choices[0]


def test_captions_are_neither_right_nor_wrong(make, browser):
    captions = ["a cat sat down on it", "a red bird flew off"]
    records = [dict(captions={"caption": [text] * 2}, image=image(8, 8)) for text in captions]
    browser.open(make(records, [captions[0], ""], "captions"))
    assert texts_of(browser, ".verdict") == [] and texts_of(browser, ".question") == []
    for hidden in ("verdicts", "key", "weighted"):
        shown = browser.run(f"getComputedStyle(document.getElementById('{hidden}')).display")
        assert shown == "none", hidden
    assert texts_of(browser, ".answer")[1] == "(no text)"
    pick(browser, "#sort", "score, lowest first")
    assert texts_of(browser, ".id") == ["r1", "r0"]


def test_scores_that_are_no_numbers(make, browser):
    each = vqa.Scoring.each

    def some(self, texts, kept):
        return {
            name: np.where([1, 0], values, np.nan)
            for name, values in each(self, texts, kept).items()
        }

    records = [dict(answers=["a"], image=image(8, 8))] * 2
    with mock.patch.object(vqa.Scoring, "each", some):
        path = make(records, ["a", "a"], "vqa")
    browser.open(path)
    assert browser.complaints() == []
    assert texts_of(browser, ".numbers")[1] == "vqa_accuracy\u00a0– · exact_match\u00a0–"
    assert texts_of(browser, "#verdicts label") == ["all 2", "✓ right 1", "✗ wrong 0"]
    pick(browser, "#sort", "score, lowest first")
    assert texts_of(browser, ".id") == ["r0", "r1"]  # last


def test_it_can_be_used_without_a_mouse_or_eyes(make, browser):
    records, texts = questions(30)
    records[0]["answers"] = ["[[100,100,200,200]]"]
    browser.look(1200)
    browser.open(make(records, texts, "vqa"))
    named = """[...document.querySelectorAll('article')].map(
      (one) => document.getElementById(one.getAttribute('aria-labelledby')).textContent)"""
    assert browser.run(named) == texts_of(browser, ".id")
    # Texts that scroll are reached by Tab, and no others.
    reached = """[...document.querySelectorAll('.text')].map(
      (one) => [one.scrollHeight > one.clientHeight, one.tabIndex === 0])"""
    found = browser.run(reached)
    assert all(scrolls == reachable for scrolls, reachable in found)
    assert {scrolls for scrolls, _ in found} == {True, False}
    # A button keeps the focus on the last page, where it does nothing.
    browser.run("document.getElementById('next').focus()")
    for _ in range(3):
        browser.run("document.activeElement.click()")
    assert texts_of(browser, "#place") == ["2 / 2"]
    assert browser.run("document.activeElement.id") == "next"
    pressed = "['previous', 'next'].map((id) => document.getElementById(id).ariaDisabled)"
    assert browser.run(pressed) == ["false", "true"]
    browser.run("document.getElementById('previous').click()")
    assert browser.run(pressed) == ["true", "false"]
    assert "solid and orange" in browser.run("document.getElementById('key').innerText")


def test_thousands_of_records(make, browser):
    rng = np.random.default_rng(0)
    records, texts = questions(3000)
    for number, record in enumerate(records):  # as large as photographs are
        file = io.BytesIO()
        noise = rng.integers(0, 256, (24, 32, 3), np.uint8)
        noise[0, 0] = number % 256, number // 256, 0
        Image.fromarray(noise).resize((240, 180)).save(file, "JPEG")
        record["image"] = file.getvalue()
    path = make(records, texts, "vqa", "--limit", "3000")
    browser.look(1200)
    start = time.perf_counter()
    browser.open(path)
    loaded = time.perf_counter() - start
    assert status_of(browser) == "1 to 24 of 3,000"
    slowest = 0
    for selector, value, attribute in (
        ("[value=wrong]", True, "checked"),
        ("#search", "29?", "value"),
        ("[value='']", True, "checked"),
        ("#sort", "longest answer first", "value"),
    ):
        start = time.perf_counter()
        pick(browser, selector, value, attribute)
        slowest = max(slowest, time.perf_counter() - start)
    print(f"{path.stat().st_size / 1e6:.0f} MB: loaded in {loaded:.2f} s, slowest {slowest:.3f} s")
    assert loaded < 10 and slowest < 1  # on any machine; far less on most


SCENES = "scenes:split=val,size=3,image_size=32"


def answers_to_scenes(split="val"):
    return json.dumps({f"scenes-{split}-{i}": "red" for i in range(3)})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answers": answers_to_scenes("test")}, "3 of its 3 ids are not in the data"),
        ({"--metric": "multiple_choice"}, "has 0 choices"),
        ({"--metric": "vqa2"}, "Unknown metric 'vqa2'"),
        ({"--metric": "vqa:by=colour"}, "no field 'colour'"),
        ({"--output": "nowhere/a.html"}, "there is no such directory"),
        ({"--output": "."}, "is a directory"),
        ({"--predictions": "none.json"}, "none.json"),
    ],
)
def test_what_cannot_be_shown_is_one_line(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("answers.json").write_text(change.pop("answers", answers_to_scenes()))
    given = {"--predictions": "answers.json", "--input": SCENES, "--metric": "vqa", **change}
    words = [word for pair in given.items() if pair[1] is not None for word in pair]
    assert main(["predictions", *words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]


def test_records_without_images_are_one_error(make, capsys):
    for more, message in (({}, "'r0' has no image"), ({"image": b"?"}, "'r0': cannot decode")):
        with pytest.raises(AssertionError):
            make([dict(answers=["a"], **more)], ["a"], "vqa")
        assert message in capsys.readouterr().err


def test_the_demo_of_the_documents(tmp_path, monkeypatch, capsys):
    """As docs/answers.md has it."""
    monkeypatch.chdir(ROOT)
    given = "--predictions docs/scenes_vqa.json --metric vqa --input".split()  # noqa: SIM905
    output = tmp_path / "demo.html"
    source = "scenes:split=val,size=200,image_size=240"
    assert main(["predictions", *given, source, "--output", str(output)]) == 0
    assert "200 of 200 questions" in capsys.readouterr().out
    assert data_of(output)["score"] == pytest.approx(0.4)
