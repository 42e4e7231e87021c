"""Writes captions, answers and boxes with a CogVLM: `python -m big_vlp.generate --model DIR ...`.

With --prompt it answers once; without, it converses: `clear` forgets what was said, `stop` ends.
Images stand in front of the prompt, or where it says <image>. Answers go to standard output as they
come, notes and errors to standard error.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from big_vlp import trees
from big_vlp.api.draw_boxes import draw_boxes, labelled_boxes
from big_vlp.augment.photometric import normalise
from big_vlp.generation.beams import Beams
from big_vlp.generation.sampling import Sampling, Strategy, check_strategy, generate, stream
from big_vlp.parallel import meshes
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.model_dir import open_model
from input_pipeline.checks import unicode
from input_pipeline.checks.ranges import SEED
from input_pipeline.images.crops import decode, eval_image
from input_pipeline.text import templates
from input_pipeline.text.boxes import BOX_FORM, find_boxes, parse_boxes
from input_pipeline.text.conversations import GROUNDED_QUERY, REGION_QUERY, where_query
from input_pipeline.views.cogvlm import LANGUAGE, VISION, Rows

IMAGE = "<image>"
GROUNDING = "grounding"
PROMPT_MULTIPLE = 128  # one compiled program for prompts of up to so many tokens more


class Answer(NamedTuple):
    """What a model wrote.

    ended: by itself; else there was no more room. forgotten: rounds that the context had no room
    for.
    """

    text: str
    ended: bool
    forgotten: int


class Prompt(NamedTuple):
    """tokens, types: i32[1, T] as of `models.layout`; layout: see `CogVLM`; text: how many tokens
    of text there are."""

    tokens: np.ndarray
    types: np.ndarray
    layout: str
    text: int


def lay_out(rows: Rows, prompt: str, num_images: int) -> Prompt:
    """A row of images and text.

    Images stand where the prompt says <image>, or if it never does in front, a line end between
    them.

    Raises:
      ValueError: the prompt names another number of images.
    """
    places = prompt.count(IMAGE)
    if places == 0 and num_images:
        pieces = ["", *["\n"] * (num_images - 1), prompt]
    elif places == num_images:
        first, *others = prompt.split(IMAGE)
        pieces = [first.rstrip(" ") if others else first, *(p.lstrip(" ") for p in others)]
        # Two images need a token between them.
        pieces[1:-1] = [piece.rstrip(" ") or "\n" for piece in pieces[1:-1]]
    else:
        raise ValueError(
            f"The prompt says {IMAGE} {places} times, but the number of images is {num_images}: "
            "give each with --image."
        )
    tokens, types = [rows.text.bos_id], [LANGUAGE]
    for i, piece in enumerate(pieces):
        if i:
            tokens += [rows.text.pad_id] * rows.num_slots
            types += [VISION] * rows.num_slots
        ids = rows.text.encode(piece)
        tokens += ids
        types += [LANGUAGE] * len(ids)
    static = num_images == 1 and types[1] == VISION
    arrays = (np.array([row], np.int32) for row in (tokens, types))
    return Prompt(*arrays, "static" if static else "general", types.count(LANGUAGE) - 1)


class Writer:
    """A model that writes.

    Args:
      directory: of the model.
      weights: see `open_model`.
      devices: how many the model is split over.

    Raises:
      CheckpointError: it is no model directory.
      ValueError: it is not that of a CogVLM with a tokenizer, or cannot be split like that.
      OSError: its tokenizer is missing.
    """

    def __init__(self, directory: str, weights: str | None = None, devices: int = 1):
        stored = open_model(directory, weights)
        name, preprocess = stored.meta["config"]["method"]["name"], stored.preprocess
        if name != "cogvlm":
            raise ValueError(f"{directory} holds a model of {name!r}; only 'cogvlm' writes text.")
        if not 1 <= devices <= jax.device_count():
            raise ValueError(f"devices={devices}: there are {jax.device_count()}.")
        self._mesh = meshes.make_mesh(tensor=devices, devices=jax.devices()[:devices])
        method = stored.make_method()
        self._preprocess, model = preprocess, method.network
        try:
            self.rows = Rows.of(preprocess)
        except ValueError as error:
            raise ValueError(f"{directory}: {error} Convert the model again.") from error
        if self.rows.text.vocab_size > model.text["vocab_size"]:
            raise ValueError(
                f"The tokenizer {preprocess.tokenizer!r} has {self.rows.text.vocab_size} tokens, "
                f"the model {model.text['vocab_size']}: it is another model's."
            )
        self._model, self._params = model, stored.load(self._mesh)
        self._lora_active = method.lora_active
        self._encode = jax.jit(
            lambda params, images: model.apply(
                trees.variables(params),
                normalise(images, preprocess.mean, preprocess.std),
                method="encode_images",
            )
        )

    def features(self, images: Sequence[bytes]):
        """Features [1, I, N + 2, D] of encoded images; None where there are none.

        Raises:
          ValueError: one cannot be decoded, or the model has no image tower.
        """
        if not images:
            return None
        if self._model.image is None:
            raise ValueError("This is a language model: ask it without an image.")
        pixels = np.stack([eval_image(data, self._preprocess) for data in images])
        with jax.set_mesh(self._mesh), self._lora_active():
            return self._encode(self._params, pixels[None])

    def write(
        self,
        prompt: Prompt,
        features,
        max_new_tokens: int,
        strategy: Strategy = None,
        key=None,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> tuple[str, bool]:
        """The continuation of a prompt, and whether it ended by itself.

        Args:
          max_new_tokens: at most so many, and no more than the context has room for.
          strategy, key: see `generation.generate`.
          on_text: called with each piece of text as it comes; at the end with beam search.

        Raises:
          ValueError: the context has no room for one more token.
        """
        room = self.rows.context_length - prompt.text
        if room < 1:
            raise ValueError(
                f"The prompt has {prompt.text} tokens of text; the model's context takes "
                f"{self.rows.context_length} with the answer. Ask something shorter."
            )
        text = self.rows.text
        arguments = self._model, self._params, prompt.tokens, prompt.types, features
        options = dict(eos_id=text.eos_id, pad_id=text.pad_id, strategy=strategy, key=key)
        options |= dict(layout=prompt.layout, multiple=PROMPT_MULTIPLE)
        options["max_new_tokens"] = max_new_tokens
        with jax.set_mesh(self._mesh), self._lora_active():
            if isinstance(strategy, Beams):
                options["max_new_tokens"] = min(max_new_tokens, room)
                ids = np.asarray(generate(*arguments, **options))[0].tolist()
            else:
                tokens = itertools.islice(stream(*arguments, **options), room)
                ids = (int(token[0]) for token in tokens)
            return self._read(ids, on_text)

    def _read(self, ids, on_text) -> tuple[str, bool]:
        kept, shown, ended = [], "", False
        for token in ids:
            ended = token == self.rows.text.eos_id
            if ended:
                break
            kept.append(token)
            whole = self.rows.text.decode(kept)
            if not whole.endswith("\ufffd"):  # a character of which bytes are to come
                on_text(whole[len(shown) :])
                shown = whole
        whole = self.rows.text.decode(kept)
        on_text(whole[len(shown) :])
        return whole, ended


class Conversation:
    """Rounds of questions and answers about the same images.

    Args:
      images: encoded.
      template: one of `text.templates`, or "grounding", see `grounding_query`; None is "chat_old"
        with an image and Vicuna's own prompt without.

    Raises:
      ValueError: an image cannot be decoded, or the template needs one.
    """

    def __init__(self, writer: Writer, images: Sequence[bytes], template: str | None = None):
        if template == GROUNDING and not images:
            raise ValueError("The template 'grounding' needs an image.")
        self._writer, self._template, self._count = writer, template, len(images)
        self._features = writer.features(images)
        self.history: list[tuple[str, str]] = []

    def ask(self, query: str, max_new_tokens: int, **options) -> Answer:
        """Answers, remembering the round; `options` are those of `Writer.write`.

        Raises:
          ValueError: the query alone is too long, or names another number of images.
        """
        if self._template == GROUNDING:
            query = grounding_query(query)
        history = list(self.history)
        prompt = self._prompt(query, history)
        while history and prompt.text >= self._writer.rows.context_length:
            history = history[1:]
            prompt = self._prompt(query, history)
        text, ended = self._writer.write(prompt, self._features, max_new_tokens, **options)
        forgotten = len(self.history) - len(history)
        self.history = [*history, (query, text.strip())]
        return Answer(text, ended, forgotten)

    def _prompt(self, query: str, history: list[tuple[str, str]]) -> Prompt:
        if self._template is None and not self._count:
            text = templates.text_only_prompt(query, history)
        else:
            template = "chat_old" if self._template in (None, GROUNDING) else self._template
            text = templates.make_prompt(template, query, history)
        return lay_out(self._writer.rows, text, self._count)


def grounding_query(query: str) -> str:
    """The question that models are trained on, in place of a phrase (where is it?), a box (what is
    in it?) or nothing (describe with boxes). Other questions stay as they are.

    Raises:
      ValueError: what stands in double brackets is no box.
    """
    query = query.strip()
    if not query:
        return GROUNDED_QUERY
    for brackets in re.findall(r"\[\[.*?(?:\]\]|$)", query):
        if brackets != BOX_FORM:
            parse_boxes(brackets)  # raises for what only looks like a box
    boxes = find_boxes(query)
    if boxes and boxes[0][:2] == (0, len(query)):
        return REGION_QUERY.format(box=query)
    return query if query.endswith("?") or boxes else where_query(query)


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    unicode.escape_output()
    logging.set_verbosity(logging.ERROR)  # of the checkpoint library
    try:
        _check(args)
        options = {"max_new_tokens": args.max_new_tokens, "strategy": _strategy(args)}
        images = [path.read_bytes() for path in args.image]
        for path, data in zip(args.image, images):
            try:
                decode(data)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        writer = Writer(args.model, args.weights, args.devices)
        conversation = Conversation(writer, images, args.template)
        if args.prompt is None:
            _converse(conversation, args, images, options)
        else:
            _round(conversation, args.prompt, args, images, options)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _converse(conversation: Conversation, args, images: list[bytes], options: dict) -> None:
    _note("'clear' forgets what was said, 'stop' ends.")
    while True:
        try:
            query = input("You: " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            query = "stop"
        if query == "stop":
            return
        if query == "clear":
            conversation.history.clear()
        elif query:
            try:
                _round(conversation, query, args, images, options)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)


def _round(conversation: Conversation, query: str, args, images: list[bytes], options: dict):
    """Asks, prints the answer as it comes, and draws."""
    key = jax.random.fold_in(jax.random.key(args.seed), len(conversation.history))

    def show(text):
        print(text, end="", flush=True)

    answer = conversation.ask(query, **options, key=key, on_text=show)
    print()
    if answer.forgotten:
        _note(f"the context had no room for the first {answer.forgotten} rounds of what was said.")
    if not answer.ended:
        _note("the answer was cut: it reached --max-new-tokens, or the context is full.")
    if args.draw is None:
        return
    boxes, unreadable = labelled_boxes(answer.text, query)
    for text in unreadable:
        _note(f"cannot draw all of {text!r}: a box is [[x0,y0,x1,y1]] with x0 < x1 and y0 < y1.")
    if not boxes:
        _note(f"the answer has no box to draw; {args.draw} is not written.")
        return
    draw_boxes(decode(images[0]), boxes).save(args.draw, "PNG")
    _note(f"wrote {args.draw}.")


def _note(text: str) -> None:
    print(f"({text})", file=sys.stderr)


def _strategy(args) -> Strategy:
    """Raises ValueError where options are out of range or exclude each other."""
    if args.temperature == 0 and (args.top_k is not None or args.top_p is not None):
        raise ValueError("--top-k and --top-p limit what is sampled: give a --temperature above 0.")
    if args.beams is not None and args.temperature:
        raise ValueError("Give --beams or --temperature, not both.")
    strategy = None
    if args.beams is not None:
        strategy = Beams(args.beams)
    elif args.temperature:
        top_p = 1.0 if args.top_p is None else args.top_p
        strategy = Sampling(args.temperature, args.top_k or 0, top_p)
    check_strategy(strategy)
    return strategy


def _check(args) -> None:
    """Raises ValueError for what can be said before the model is read."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens}: give 1 or more.")
    unicode.check(args.prompt, "--prompt")
    if args.draw is None:
        return
    if len(args.image) != 1:
        raise ValueError(f"--draw draws on one image; {len(args.image)} are given with --image.")
    if not args.draw.absolute().parent.is_dir():
        raise ValueError(f"--draw {args.draw}: there is no directory {args.draw.parent}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m big_vlp.generate", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="of a run or converted")
    add("--image", action="append", type=Path, default=[], metavar="FILE", help="can be repeated")
    add("--prompt", metavar="TEXT", help="default: a conversation")
    add(
        "--template",
        choices=(*templates.TEMPLATES, GROUNDING),
        help="of the prompt; base: as it is, and with an empty prompt a caption; vqa: a short "
        "answer; chat_old, chat: a conversation; grounding: the prompt is a phrase to find, a box "
        "to describe, or empty for a description with boxes; default: chat_old, and Vicuna's "
        "without an image",
    )
    add("--draw", type=Path, metavar="PNG", help="the image with the boxes of the answer")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="default: 256")
    add("--temperature", type=float, default=0.0, metavar="T", help="default: 0, no sampling")
    add("--top-k", type=int, metavar="K", help="sample from the K most probable tokens")
    add("--top-p", type=float, metavar="P", help="sample from the most probable tokens of share P")
    add("--seed", type=SEED, default=0, help="of sampling")
    add("--beams", type=int, metavar="N", help="beam search")
    add("--weights", choices=("model", "averaged"), help="default: the average")
    add("--devices", type=int, default=1, metavar="N", help="split the model over N devices")
    return parser


if __name__ == "__main__":
    sys.exit(main())
