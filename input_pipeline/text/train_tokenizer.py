"""Trains a small tokenizer of LLaMA's kind, for runs without LLaMA's weights:

    python -m input_pipeline.train_tokenizer --input data/mine --vocab-size 640 --output FILE.model

The model learns from captions, questions, answers, phrases, boxes and
conversations, in the form in which CogVLM's views tokenize them. The same input gives the same
file.
"""

import argparse
import io
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sentencepiece

from input_pipeline import command_line
from input_pipeline.checks.ranges import whole
from input_pipeline.files.buckets import make_directory
from input_pipeline.files.whole import write_whole
from input_pipeline.text import conversations, templates
from input_pipeline.views import cogvlm

# Printable ASCII, so that digits, brackets and capitals are single tokens whatever the data.
_CHARACTERS = "".join(chr(c) for c in range(33, 127))
_TEMPLATES = {"caption": "base", **cogvlm.TEMPLATES}


def texts_of(record: Mapping[str, Any], rng: random.Random) -> Iterator[str]:
    """Yields every caption of a record, and prompt and answer of one turn of each task.

    Raises:
      ValueError: what the record has is malformed.
    """
    yield from conversations.captions_of(record)
    for task, template in _TEMPLATES.items():
        turn = conversations.make_turn(task, record, rng)
        if turn is not None:
            yield templates.make_prompt(template, turn.query, turn.history)
            yield turn.answer


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece model file with LLaMA's settings: BPE, digits apart, text as it is, bytes for
    what is not in the vocabulary; unknown 0, bos 1, eos 2, no padding id.

    Raises:
      ValueError: the texts do not give so many pieces, or `vocab_size` cannot hold the bytes and
        characters; the message has the limit.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Sentences are lines to SentencePiece.
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.99995,
            required_chars=_CHARACTERS,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"A vocabulary of {vocab_size} cannot be trained: {error}") from None
    return model.getvalue()


def _texts(source, count: int) -> Iterator[str]:
    """Of `count` records, evenly spread over the source."""
    count = min(count, len(source))
    for i in range(count):
        index = i * len(source) // count
        yield from texts_of(source[index], random.Random(index))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = command_line.Parser(
        prog="python -m input_pipeline.train_tokenizer", description=__doc__
    )
    add = parser.add_argument
    add("--input", required=True, metavar=command_line.SOURCE, help=command_line.SOURCE_HELP)
    add("--vocab-size", required=True, type=int, metavar="N", help="pieces of the model")
    add(
        "--output",
        required=True,
        type=command_line.path_argument,
        metavar="FILE.model",
        help="the SentencePiece model to write",
    )
    add(
        "--records",
        type=whole(1),
        default=100_000,
        metavar="N",
        help="how many to read, evenly spread (default: 100,000)",
    )
    return command_line.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    if args.output.suffix != ".model":
        raise ValueError(f"--output must end in .model, got {str(args.output)!r}.")
    _, _, source = command_line.open_source(args.input)
    data = train(_texts(source, args.records), args.vocab_size)
    make_directory(args.output.parent)
    write_whole(args.output, data)
    print(f"Wrote {args.output}: {args.vocab_size} pieces, {len(data):,} bytes.")
