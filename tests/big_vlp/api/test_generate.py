"""The command that writes about images, with a small model that has learnt a few answers."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from big_vlp.api.conversation import Conversation, grounding_query
from big_vlp.api.draw_boxes import draw_boxes, labelled_boxes
from big_vlp.api.writer import Writer, lay_out
from big_vlp.generate import main
from big_vlp.methods import make_method
from big_vlp.models.layout import LANGUAGE, VISION
from big_vlp.storage.model_dir import save_model
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.conversations import GROUNDED_QUERY, Turn
from input_pipeline.views.cogvlm import Rows

PREPROCESS = Preprocess(
    28, tokenizer="llama:scenes", context_length=64, resize="squash", image_token_size=14
)
ROWS = Rows.of(PREPROCESS)
SECTION = {
    "name": "cogvlm",
    "model": {
        "image": {
            **{"image_size": 28, "patch_size": 14},
            **{"width": 16, "layers": 1, "heads": 2, "mlp_dim": 32},
        },
        "text": {"vocab_size": 640, "width": 48, "layers": 2, "heads": 4, "mlp_dim": 96},
        "adapter_mlp_dim": 32,
    },
    "dtype": "float32",
}
BOX = "the circle [[100,200,500,600]]"
FIRST = ("what is it?", "a circle")
LEARNT = (  # image, template, turn
    ("dark", "base", Turn("", "a dark picture")),
    ("light", "base", Turn("", "a light picture")),
    ("dark", "chat_old", Turn("Where is the circle?", BOX)),
    ("dark", "chat_old", Turn(*FIRST)),
    ("dark", "chat_old", Turn("which?", "the red one", (FIRST,))),
    ("dark", "chat_old", Turn("which?", "of what?")),
    ("dark", "vqa", Turn("which?", "é")),
)


def png(value):
    data = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


IMAGES = {"dark": png(20), "light": png(230)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "model"
    method = make_method(**SECTION, preprocess=PREPROCESS)
    params, _ = jax.jit(method.init)(jax.random.key(0))
    examples = [
        {"images": ROWS.image(IMAGES[image]), **ROWS.example(template, turn)}
        for image, template, turn in LEARNT
    ]
    batch = {key: jnp.stack([e[key] for e in examples]) for key in examples[0]}
    optimizer, key = optax.adam(5e-3), jax.random.key(1)

    @jax.jit
    def fit(params):
        def step(carry, _):
            params, state = carry
            loss = lambda p: method.loss(p, {}, {}, {}, batch, rng=key, step=0)[0]  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=150)
        return params, losses[-1]

    params, loss = fit(params)
    assert loss < 0.02
    save_model(directory, {"model": params}, SECTION, PREPROCESS, None)
    return directory


@pytest.fixture(scope="module")
def writer(directory):
    return Writer(str(directory))


@pytest.fixture
def files(tmp_path):
    paths = {name: tmp_path / f"{name}.png" for name in IMAGES}
    for name, path in paths.items():
        path.write_bytes(IMAGES[name])
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture
def run(directory, capsys, monkeypatch):
    def run(*arguments, said=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        code = main(["--model", str(directory), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_what_was_learnt_is_written(run, files):
    """Rows are laid out as in training, the one that ends with its image too."""
    for image, template, turn in LEARNT:
        if turn.history:
            continue
        arguments = "--image", files[image], "--template", template, "--prompt", turn.query
        assert run(*arguments) == (0, turn.answer + "\n", ""), turn


def test_every_strategy(run, files):
    arguments = "--image", files["light"], "--template", "base", "--prompt", ""
    for options in (
        ("--beams", "3"),
        ("--temperature", "9", "--top-k", "1"),
        ("--temperature", "0.01", "--top-p", "0.9"),
    ):
        assert run(*arguments, *options) == (0, "a light picture\n", ""), options
    wild = ("--temperature", "50", "--max-new-tokens", "5")
    texts = {run(*arguments, *wild, "--seed", seed)[1] for seed in ("0", "0", "1")}
    assert len(texts) == 2


def test_a_conversation(run, files):
    said = "what is it?\nwhich?\n\nclear\nwhich?\nstop\nwhich?\n"
    code, out, err = run("--image", files["dark"], said=said)
    assert code == 0 and out.splitlines() == ["a circle", "the red one", "of what?"]
    assert "'stop' ends" in err
    code, out, _ = run("--image", files["dark"], said="what is it?\n")  # ends with the input
    assert code == 0 and out == "a circle\n"


def test_a_conversation_goes_on_after_an_error(run, files):
    said = f"{'where ' * 60}\nwhat is <image> <image>?\nwhat is it?\n"
    code, out, err = run("--image", files["dark"], said=said)
    assert code == 0 and out == "a circle\n"
    assert "the model's context takes 64" in err and "says <image> 2 times" in err


def test_old_rounds_are_forgotten(writer):
    conversation = Conversation(writer, [IMAGES["dark"]])
    query = "is it the large red circle in front?"
    forgotten = [conversation.ask(query, max_new_tokens=6).forgotten for _ in range(5)]
    assert forgotten[0] == 0 and sum(forgotten) > 0
    assert len(conversation.history) == 5 - sum(forgotten)


def test_text_comes_in_whole_characters(writer):
    pieces = []
    conversation = Conversation(writer, [IMAGES["dark"]], "vqa")
    answer = conversation.ask("which?", max_new_tokens=9, on_text=pieces.append)
    assert answer.text == "é" and "".join(pieces) == "é"
    conversation = Conversation(writer, [IMAGES["dark"]], "base")
    pieces.clear()
    answer = conversation.ask("", max_new_tokens=9, on_text=pieces.append)
    assert len([piece for piece in pieces if piece]) > 2 and "".join(pieces) == answer.text


def test_answers_are_cut(run, files):
    arguments = "--image", files["dark"], "--template", "base"
    code, out, err = run(*arguments, "--prompt", "", "--max-new-tokens", "1")
    assert code == 0 and "a dark picture".startswith(out.strip()) and "was cut" in err
    long = "a circle and " * 19
    text = len(ROWS.text.encode(long))
    assert 50 < text < 64
    code, out, err = run(*arguments, "--prompt", long)
    assert code == 0 and len(ROWS.text.encode(out)) <= 66 - text


def test_text_without_an_image(run):
    code, _, err = run("--prompt", "which?", "--template", "base", "--max-new-tokens", "3")
    assert code == 0 and "error" not in err
    # Vicuna's own prompt alone is longer than what this model reads.
    code, _, err = run("--prompt", "which?")
    assert code == 1 and "The prompt has" in err and "context takes 64" in err


def test_several_images(run, files):
    both = "--image", files["dark"], "--image", files["light"]
    for prompt in ("which?", "<image> or <image>?", "<image><image> which?"):
        code, out, _ = run(*both, "--prompt", prompt, "--max-new-tokens", "3")
        assert code == 0 and out.strip(), prompt


@pytest.mark.parametrize(
    "prompt, images, expected, kind",
    [
        ("what?", 0, ["what?"], "general"),
        ("what?", 1, ["", "image", "what?"], "static"),
        ("", 1, ["", "image"], "static"),
        ("<image> what?", 1, ["", "image", "what?"], "static"),
        ("is <image> it?", 1, ["is", "image", "it?"], "general"),
        ("is it <image>", 1, ["is it", "image"], "general"),
        ("what?", 2, ["", "image", "\n", "image", "what?"], "general"),
        ("<image> <image>", 2, ["", "image", "\n", "image"], "general"),
        ("a <image> or <image> b", 2, ["a", "image", "or", "image", "b"], "general"),
        (" [INST] a [/INST] ", 1, ["", "image", " [INST] a [/INST] "], "static"),
    ],
)
def test_where_images_stand(prompt, images, expected, kind):
    found = lay_out(ROWS, prompt, images)
    vision = found.types[0] == VISION
    borders = np.flatnonzero(np.diff(vision.astype(int))) + 1
    pieces = [
        "image" if types[0] == VISION else ROWS.text.decode(tokens)
        for tokens, types in zip(
            np.split(found.tokens[0], borders), np.split(found.types[0], borders)
        )
    ]
    assert pieces == expected and found.layout == kind
    assert vision.sum() == 6 * images and found.tokens[0, 0] == ROWS.text.bos_id
    assert found.text == (found.types == LANGUAGE).sum() - 1


def test_a_row_is_that_of_the_evaluators():
    row = ROWS.prompt("Question: what? Answer:")
    found = lay_out(ROWS, "Question: what? Answer:", 1)
    length = found.tokens.shape[1]
    np.testing.assert_array_equal(row["tokens"][:length], found.tokens[0])
    np.testing.assert_array_equal(row["token_types"][:length], found.types[0])
    assert (row["token_types"][length:] == -1).all()


@pytest.mark.parametrize(
    "query, expected",
    [
        ("the red circle", "Where is the red circle?"),
        ("red circle", "Where is the red circle?"),
        ("", GROUNDED_QUERY),
        ("[[000,100,200,300]]", "Please describe the region [[000,100,200,300]] in the picture."),
        ("What is on the left?", "What is on the left?"),
        ("Is [[000,100,200,300]] red", "Is [[000,100,200,300]] red"),
    ],
)
def test_grounding_queries(query, expected):
    assert grounding_query(query) == expected


def test_prompts_may_speak_of_the_form_of_boxes():
    for query in (GROUNDED_QUERY, "where is the cat? answer in [[x0,y0,x1,y1]] format.?"):
        assert grounding_query(query) == query


@pytest.mark.parametrize(
    "query", ["[[1,2,3]]", "what is in [[a,b,c,d]]?", "[[1,2,3,4", "[[001,002,003,004]] [[5]]?"]
)
def test_boxes_that_are_none(query):
    with pytest.raises(ValueError, match="There is no box in"):
        grounding_query(query)


# Boxes


def test_a_box_is_drawn(run, files, tmp_path):
    out = tmp_path / "drawn.png"
    arguments = "--image", files["dark"], "--template", "grounding", "--draw", str(out)
    code, text, err = run(*arguments, "--prompt", "the circle")
    assert (code, text) == (0, BOX + "\n") and f"wrote {out}" in err
    with Image.open(out) as picture:
        pixels = np.array(picture).astype(int)
    height, width = pixels.shape[:2]
    assert (height, width) == (427, 640)  # enlarged
    coloured = np.abs(pixels - 20).max(axis=-1) > 30
    rows, columns = np.nonzero(coloured)
    assert columns.min() == pytest.approx(0.1 * width, abs=2)
    assert columns.max() == pytest.approx(0.5 * width, abs=2)
    assert rows.max() == pytest.approx(0.6 * height, abs=2)
    inside = coloured[int(0.3 * height) : int(0.55 * height), int(0.2 * width) : int(0.45 * width)]
    assert not inside.any()
    assert coloured[int(0.15 * height) : int(0.19 * height)].any()  # the label, above the box


def test_an_answer_without_a_box(run, files, tmp_path):
    out = tmp_path / "drawn.png"
    arguments = "--image", files["dark"], "--prompt", "what is it?", "--draw", str(out)
    code, text, err = run(*arguments)
    assert (code, text) == (0, "a circle\n") and "no box to draw" in err and not out.exists()


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_what_can_be_read_is_drawn(run, tmp_path, monkeypatch, place, request):
    answer = "a dog [[100,100,400,400]] and a cat [[1,2,3]] or [[900,900,100,100]] or [[12"
    monkeypatch.setattr(Writer, "write", lambda self, prompt, *_, **__: (answer, True))
    folder = tmp_path if place == "disk" else request.getfixturevalue("bucket")
    image, out = folder / "dark.png", folder / "drawn.png"
    image.write_bytes(IMAGES["dark"])
    arguments = "--image", str(image), "--prompt", "where?", "--draw", str(out)
    code, _, err = run(*arguments)
    assert code == 0 and out.read_bytes()[:4] == b"\x89PNG"
    assert all(text in err for text in ("'[[1,2,3]]'", "'[[900,900,100,100]]'", "'[[12'"))
    assert "100,100,400" not in err


@pytest.mark.parametrize(
    "answer, labels",
    [
        (
            "A piggy bank [[302,198,694,857]] with a smile [[400,520,582,643]] .",
            ["piggy bank", "smile"],
        ),
        ("Check the girl holding it, got the girl [[0,0,9,9]]", ["girl"]),
        ("two red circles [[0,0,9,9;5,5,8,8]]", ["two red circles"] * 2),
        ("there are now two red circles [[0,0,9,9]]", ["two red circles"]),
        ("[[0,0,9,9]]", ["where?"]),
        ("a dog [[0,0,9,9]] [[5,5,8,8]]", ["dog", "where?"]),
        (f"the {'very ' * 30}[[0,0,9,9]]", ["very very very very very very very ..."]),
    ],
)
def test_labels(answer, labels):
    boxes, unreadable = labelled_boxes(answer, "where?")
    assert [label for label, _ in boxes] == labels and not unreadable


def test_labels_do_not_hide_each_other():
    boxes, _ = labelled_boxes(
        "a first thing [[300,500,900,900]] and a second thing [[300,500,900,900]]"
    )
    image = np.zeros((700, 700, 3), np.uint8)

    def above(boxes, colour):
        """How many pixels above the boxes have a colour."""
        picture = np.array(draw_boxes(image, boxes))[:350]
        return (picture == colour).all(axis=-1).sum()

    orange, blue = (230, 159, 0), (86, 180, 233)
    assert above(boxes, orange) == above(boxes[:1], orange) > 500
    assert above(boxes, blue) == 0  # below the first one


def test_labels_stay_on_the_picture():
    boxes, _ = labelled_boxes("the long name of something [[950,000,999,100]]")
    picture = np.array(draw_boxes(np.zeros((700, 700, 3), np.uint8), boxes))
    label = (picture == (230, 159, 0)).all(axis=-1)[1]  # above its text
    assert 100 < label.sum() < 500 and label[-10:].all()


# What cannot be


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--model": "nowhere"}, "no model directory"),
        ({"--image": "nowhere.jpg"}, "nowhere.jpg"),
        ({"--image": "text.jpg"}, "text.jpg: cannot decode"),
        ({"--max-new-tokens": "0"}, "give 1 or more"),
        ({"--temperature": "-1"}, "temperature must be above 0"),
        ({"--top-k": "3"}, "give a --temperature"),
        ({"--top-p": "0.5"}, "give a --temperature"),
        ({"--beams": "0"}, "1 beam or more"),
        ({"--beams": "2", "--temperature": "1"}, "not both"),
        ({"--prompt": "<image> <image>"}, "says <image> 2 times, but the number of images is 1"),
        ({"--prompt": "<image>", "--image": None}, "but the number of images is 0"),
        ({"--prompt": "word " * 100}, "context takes 64"),
        ({"--prompt": "caf\udce9"}, "--prompt: the text"),
        ({"--image": None, "--draw": "out.png"}, "draws on one image; 0"),
        ({"--draw": "nowhere/out.png"}, "no directory nowhere"),
        ({"--image": None, "--template": "grounding"}, "needs an image"),
        ({"--weights": "averaged"}, "has no 'averaged' weights"),
        ({"--devices": "99"}, "devices=99"),
    ],
)
def test_what_cannot_be_written(run, files, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    options = {"--image": files["dark"], "--prompt": "which?", **change}
    arguments = [part for k, v in options.items() if v is not None for part in (k, v)]
    code, out, err = run(*arguments)
    assert code == 1 and out == "" and err.startswith("error: ") and message in err
    assert err.count("\n") == 1


change = functools.partial(dataclasses.replace, PREPROCESS)


@pytest.mark.parametrize(
    "section, preprocess, message",
    [
        (
            {"name": "clip"},
            Preprocess(28, tokenizer="clip", context_length=8),
            "a model of 'clip'; only 'cogvlm' writes text",
        ),
        (SECTION, change(tokenizer=None, context_length=0), "names no tokenizer"),
        (SECTION, change(resize="shortest"), "resize='squash'"),
        (SECTION, change(tokenizer="llama:nowhere"), "nowhere"),
        (SECTION, change(image_token_size=None), "preprocess.image_token_size=None"),
        (
            {**SECTION, "model": {**SECTION["model"], "text": {"vocab_size": 100}}},
            PREPROCESS,
            "has 640 tokens, the model 100",
        ),
    ],
)
def test_models_that_cannot_write(tmp_path, capsys, section, preprocess, message):
    save_model(tmp_path / "model", {"model": {"a": np.zeros(1)}}, section, preprocess, None)
    assert main(["--model", str(tmp_path / "model"), "--prompt", ""]) == 1
    assert message in capsys.readouterr().err
