"""Turns released weights into model directories, and back.

    python -m big_vlp.convert import catlip WEIGHTS.pt models/catlip --vocabulary VOCABULARY.pkl
    python -m big_vlp.convert import open_clip CLIP-ViT-B-16-DataComp.XL-s13B-b90K models/b16
    python -m big_vlp.convert export cogvlm runs/sft exported --dtype bfloat16

`import` reads a .safetensors or .npz file, or a .pt file where torch is installed (weights only:
nothing stored in it is executed), and writes a model directory that training starts from
(config.init) and `big_vlp.show` and `big_vlp.generate` read. `export` writes a model directory's
weights in the reference's names, with the config that the reference's tool wants.

openai_clip, open_clip (ViTs), clip_hf, siglip and siglip2 are models of two towers, as those
libraries, transformers and big_vision have them: a file, or a directory with its configs. What is
loaded is told in a table. siglip and siglip2 export to a directory for transformers, or to a .npz
file. COSMOS' towers export to open_clip, too.

CogVLM and CogVLM2 are directories as Hugging Face's libraries read them, with config.json and
shards. cogvlm_sat is a checkpoint of SwissArmyTransformer. cogvlm_parts makes a CogVLM of a
language model in such a directory, and of an image tower; llama is the language model alone.
`merge cogvlm` turns a model directory with LoRA into one without; an export merges by itself.

Files and directories may lie in a bucket (gs://...); weights that do are copied to this machine
while they are read or written.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from absl import logging

from big_vlp.convert import catlip, catlip_dense, cosmos
from big_vlp.convert.cogvlm import command
from big_vlp.convert.common import ConversionError
from big_vlp.convert.dual import command as dual
from big_vlp.convert.dual import published
from big_vlp.convert.dual.forms import Dual, split, table
from big_vlp.convert.files import read_parts, read_state, write_file, write_parts
from big_vlp.storage.model_dir import WEIGHTS, Labels, open_model, save_model
from input_pipeline import command_line
from input_pipeline.checks.ranges import whole
from input_pipeline.command_line import Parser, path_argument
from input_pipeline.words.vocabulary import Vocabulary


def import_catlip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A classifier's state dict -> model directory; for `options` see `main`."""
    model, arguments, preprocess = catlip.from_reference(read_state(source))
    size = 224 if options.image_size is None else options.image_size
    if size != preprocess.image_size:
        # Released at 512: the shorter side is resized to the very size of the crop.
        preprocess = dataclasses.replace(preprocess, image_size=size, resize_size=None)
    method = {"name": "catlip", **arguments}
    if options.task != "words":
        tower = {"name": "transfer", "tower": "catlip_vit"}
        method = {**method, **tower, "multi_label": options.task == "multi"}
    labels = _labels(arguments["num_classes"], options)
    save_model(target, {"model": model}, method, preprocess, labels)


def _labels(count: int, options: argparse.Namespace) -> Labels:
    if options.vocabulary is not None:
        found = Vocabulary.load(options.vocabulary, count)
        names, keys = tuple(found.names), tuple(found.keys)
    elif options.names is not None:
        names, keys = tuple(options.names.read_text("utf-8").split("\n")), None
        names = names[:-1] if names[-1] == "" else names
    else:
        names, keys = tuple(f"class {i}" for i in range(count)), None
    if len(names) != count:
        given = options.vocabulary or options.names
        raise ConversionError(f"{given} has {len(names)} classes, the weights {count}.")
    return Labels(names, keys)


def import_segmentation(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A segmentation model's state dict -> model directory."""
    model, arguments, preprocess = catlip_dense.segmentation_from_reference(read_state(source))
    save_model(target, {"model": model}, {"name": "segmentation", **arguments}, preprocess, None)


def import_cosmos(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A training checkpoint with student and teacher -> model directory."""
    parts = read_parts(source, *cosmos.NETS)
    student, teacher, model, preprocess = cosmos.from_reference(parts)
    left_out = sorted({key for state in parts.values() for key in split(state)[1]})
    name, found = options.name, Dual(model, False, preprocess)
    if name is None and source.stem in published.PUBLISHED:
        name = source.stem
    if name is not None:
        published.check_name(name, found)
    numbers = published.numbers(name)
    method = {"name": "cosmos", "model": model, "ema_decay": 1.0}
    about = {"format": "cosmos", "file": source.name, "name": name, "published": numbers}
    save_model(target, {"model": student, "averaged": teacher}, method, preprocess, None, about)
    print(table(found, left_out, numbers, student))
    print("These are the student's; the teacher has as many.")


def export_catlip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A classifier -> a .safetensors file."""
    write_file(target, catlip.to_reference(_catlip_model(source, options, "catlip", "transfer")))


def export_segmentation(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A segmentation model -> a .safetensors file."""
    model = _catlip_model(source, options, "segmentation")
    write_file(target, catlip_dense.segmentation_to_reference(model))


def _catlip_model(source: Path, options: argparse.Namespace, *methods: str) -> dict:
    stored = open_model(source, options.weights)
    stored.make_method(*methods)
    model = stored.load()
    if "stem" not in model["tower"]:
        raise ConversionError(f"{source} has another image tower than CatLIP's.")
    return model


def export_cosmos(source: Path, target: Path, options: argparse.Namespace) -> None:
    """Student and teacher -> a .pt file as the reference's, or a .safetensors file with these words
    in front of their keys."""
    cosmos.check(open_model(source).make_method("cosmos"))
    nets = {"student": "model", "teacher": "averaged"}
    write_parts(
        target,
        {
            net: cosmos.to_reference(open_model(source, weights).load())
            for net, weights in nets.items()
        },
    )


# All take (source, target, options).
IMPORTS = {
    "catlip": import_catlip,
    "catlip_segmentation": import_segmentation,
    "cosmos": import_cosmos,
    "openai_clip": dual.import_openai_clip,
    "open_clip": dual.import_open_clip,
    "clip_hf": dual.import_clip_hf,
    "siglip": dual.import_siglip,
    "siglip2": dual.import_siglip2,
    "cogvlm": command.import_released,
    "cogvlm_sat": command.import_sat,
    "cogvlm_parts": command.import_parts,
    "llama": command.import_language,
}
EXPORTS = {
    "catlip": export_catlip,
    "catlip_segmentation": export_segmentation,
    "cosmos": export_cosmos,
    "openai_clip": dual.export_openai_clip,
    "open_clip": dual.export_open_clip,
    "clip_hf": dual.export_clip_hf,
    "siglip": dual.export_siglip,
    "siglip2": dual.export_siglip2,
    "cogvlm": command.export_released,
}
MERGES = {"cogvlm": command.merge}
DIRECTIONS = {"import": IMPORTS, "export": EXPORTS, "merge": MERGES}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m big_vlp.convert", description=__doc__)
    add = parser.add_argument
    add("direction", choices=tuple(DIRECTIONS), help="to a model directory, from one, or within")
    add("system", choices=tuple(IMPORTS), help="whose weights they are")
    add(
        "source",
        type=path_argument,
        metavar="FROM",
        help="file or directory of the reference; of an export or merge a model directory",
    )
    add(
        "target",
        type=path_argument,
        metavar="TO",
        help="model directory to write; of an export a file, or the directory of the format",
    )
    group = parser.add_argument_group("import catlip")
    group.add_argument(
        "--task",
        choices=("words", "single", "multi"),
        default="words",
        help="what the classifier was trained for: words, one label per image, or several",
    )
    group.add_argument(
        "--vocabulary",
        type=path_argument,
        metavar="FILE",
        help="names the classes, which are words",
    )
    group.add_argument(
        "--names", type=path_argument, metavar="FILE", help="names the classes, one in each line"
    )
    group = parser.add_argument_group("import catlip, cogvlm_parts, siglip, siglip2")
    group.add_argument(
        "--image-size",
        type=whole(1),
        metavar="PIXELS",
        help="side of the images that the model will see (default: 224; that of EVA2-CLIP-E's "
        "positions; of SigLIP's .npz what whole patches fill)",
    )
    group = parser.add_argument_group("import of what has texts")
    group.add_argument(
        "--tokenizer",
        metavar="KIND:PATH",
        help="of cogvlm llama:PATH or llama3:PATH, of SigLIP sentencepiece:PATH, of SigLIP 2 "
        "siglip2:PATH, of CLIPA wordpiece:PATH; by default the file of the vocabulary beside the "
        "weights",
    )
    group.add_argument(
        "--name",
        metavar="NAME",
        help="of two towers: a published model, such as ViT-B-16/datacomp_xl_s13b_b90k or "
        "ViT-B-16-SigLIP/webli, with whose architecture and images the weights must agree, and "
        "whose published numbers are kept; of cogvlm, one that has such, as cogvlm-chat; a wrong "
        "name lists all",
    )
    group.add_argument(
        "--config-json",
        type=path_argument,
        metavar="FILE",
        help="the released model's config, where it is not beside the weights; of an export of "
        "cogvlm, where other fields come from, such as tokens and templates",
    )
    command.add_options(parser)
    group = parser.add_argument_group("export but of cosmos; merge")
    group.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="the weights as trained, or their average; by default the average where there is one",
    )
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # of the checkpoint library
    return command_line.run(_run, args)


def _run(args: argparse.Namespace) -> None:
    if not args.source.exists():
        raise ConversionError(f"{args.source} does not exist.")
    systems = DIRECTIONS[args.direction]
    if args.system not in systems:
        raise ConversionError(f"{args.direction} is for {', '.join(systems)}.")
    if args.direction == "export" and args.target.exists():
        raise ConversionError(f"{args.target} exists; give a new file or directory.")
    systems[args.system](args.source, args.target, args)
    print(f"Wrote {args.target}.")


if __name__ == "__main__":
    sys.exit(main())
