"""Writes captions, answers and boxes with a CogVLM.

    python -m big_vlp.generate --model runs/sft --image photo.jpg --prompt "What is on the table?"

With --prompt it answers once; without, it converses: `clear` forgets what was said, `stop` ends.
Images stand in front of the prompt, or where it says <image>. Answers go to standard output as they
come, notes and errors to standard error.
"""

import argparse
import io
import sys

import jax
from absl import logging

from big_vlp import command
from big_vlp.api.conversation import GROUNDING, Conversation
from big_vlp.api.draw_boxes import draw_boxes, labelled_boxes
from big_vlp.api.errors import explained
from big_vlp.api.writer import Writer
from big_vlp.generation.beams import Beams
from big_vlp.generation.sampling import Sampling, Strategy, check_strategy
from big_vlp.run.compile_cache import open_compile_cache
from input_pipeline import command_line
from input_pipeline.checks import unicode
from input_pipeline.checks.ranges import SEED
from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.files.whole import write_whole
from input_pipeline.images.crops import decode
from input_pipeline.text import templates


def main(argv: list[str] | None = None) -> int:
    logging.set_verbosity(logging.ERROR)  # of the checkpoint library
    return command_line.run(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    _check(args)
    options = {"max_new_tokens": args.max_new_tokens, "strategy": _strategy(args)}
    images = []
    for path in args.image:
        with explained(path):
            images.append(path.read_bytes())
            decode(images[-1])
    open_compile_cache()
    writer = Writer(args.model, args.weights, args.devices)
    conversation = Conversation(writer, images, args.template)
    if args.prompt is None:
        _converse(conversation, args, images, options)
    else:
        _round(conversation, args.prompt, args, images, options)


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
    picture = io.BytesIO()
    draw_boxes(decode(images[0]), boxes).save(picture, "PNG")
    write_whole(args.draw, picture.getvalue())
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
    if not (is_in_bucket(args.draw) or args.draw.absolute().parent.is_dir()):
        raise ValueError(f"--draw {args.draw}: there is no directory {args.draw.parent}.")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(prog="python -m big_vlp.generate", description=__doc__)
    add = parser.add_argument
    command.add_model(parser)
    add(
        "--image",
        action="extend",
        nargs="+",
        type=command_line.path_argument,
        default=[],
        metavar="FILE",
        help="images in the order of the prompt; may be repeated; by default none",
    )
    add("--prompt", metavar="TEXT", help="what to answer; by default a conversation begins")
    add(
        "--template",
        choices=(*templates.TEMPLATES, GROUNDING),
        help="of the prompt; base: as it is, and with an empty prompt a caption; vqa: a short "
        "answer; chat_old, chat: a conversation; grounding: the prompt is a phrase to find, a box "
        "to describe, or empty for a description with boxes; by default chat_old, and Vicuna's "
        "without an image",
    )
    add(
        "--draw",
        type=command_line.path_argument,
        metavar="PNG",
        help="write the image with the boxes of the answer",
    )
    add(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of an answer, where it is cut"
    )
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="of sampling; at 0 the most probable token is taken",
    )
    add("--top-k", type=int, metavar="K", help="sample from the K most probable tokens")
    add("--top-p", type=float, metavar="P", help="sample from the most probable tokens of share P")
    add("--seed", type=SEED, default=0, metavar="N", help="of sampling")
    add("--beams", type=int, metavar="N", help="search with so many beams instead")
    add("--devices", type=int, default=1, metavar="N", help="split the model over N devices")
    return parser


if __name__ == "__main__":
    sys.exit(main())
