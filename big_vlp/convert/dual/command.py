"""`python -m big_vlp.convert` for two towers: files of several libraries <-> model directories.

All functions take (source, target, options), whose flags are in `convert.__main__`.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from big_vlp import trees
from big_vlp.convert.common import ConversionError, State
from big_vlp.convert.dual import forms, hugging_face, open_clip, published, shapes
from big_vlp.convert.dual.card import card
from big_vlp.convert.dual.forms import Dual, Form
from big_vlp.convert.files import appearing, read_model, read_of_run, write_file
from big_vlp.storage.model_dir import StoredModel, open_model, save_model
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_whole
from input_pipeline.text.tokenizers import make_tokenizer

# The vocabulary beside SigLIP's weights, the best first: (file, kind of tokenizer).
_VOCABULARIES = {
    "siglip": (("spiece.model", "sentencepiece"),),
    "siglip2": (("tokenizer.json", "siglip2"), ("tokenizer.model", "siglip2")),
}
# How images are resized, which a .npz does not say: as the ports of the same weights do it in
# transformers. (big_vision's demonstrations are bilinear without antialiasing, for both.)
_INTERPOLATION = {"siglip": "bicubic", "siglip2": "bilinear"}
# Kinds of tokenizers.
_KINDS = {
    "openai_clip": ("clip",),
    "clip_hf": ("clip",),
    "open_clip": ("clip", "sentencepiece", "siglip2", "wordpiece"),
    "siglip": ("sentencepiece",),
    "siglip2": ("siglip2",),
}
# Those with an id for each row of the model's table.
_WHOLE = ("sentencepiece", "siglip2")


def import_openai_clip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """OpenAI's file, or a state dict in its names -> model directory."""
    state, left_out = _read(source)
    given = {} if options.tokenizer is None else {"tokenizer": _named(options.tokenizer)}
    _save("openai_clip", forms.OPENAI, state, shapes.openai_clip(state, given), left_out,
          source, target, options)  # fmt: skip


def import_open_clip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A directory as open_clip's hub has it, or a file and its config -> model directory."""
    beside = (source if source.is_dir() else source.parent) / open_clip.CONFIG
    known = None if options.name is None else published.config(options.name)
    if known is None or options.config_json is not None or beside.exists():
        config = _config(source, open_clip.CONFIG, options.config_json)
    else:
        config = known
    if "preprocess_cfg" not in config:
        if known is None:
            raise ConversionError(
                "The config says nothing of images, which are prepared in several ways: add a "
                "section preprocess_cfg, with mean, std, interpolation and resize_mode, or give "
                "--name of a published model."
            )
        config = {"model_cfg": config, "preprocess_cfg": known["preprocess_cfg"]}
    tokenizer = None if options.tokenizer is None else _named(options.tokenizer)
    dual = open_clip.from_config(config, tokenizer)
    for line in open_clip.remarks(config, dual):
        print(line)
    state, left_out = _read(source)
    _save("open_clip", forms.open_clip_form(state), state, dual, left_out,
          source, target, options)  # fmt: skip


def import_clip_hf(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A directory of transformers' CLIPModel -> model directory."""
    _import_hugging_face("clip_hf", ("clip",), source, target, options)


def import_siglip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """big_vision's .npz, or a directory of transformers' SiglipModel -> model directory."""
    _import_siglip("siglip", ("siglip",), source, target, options)


def import_siglip2(source: Path, target: Path, options: argparse.Namespace) -> None:
    """As `import_siglip`; also Siglip2Model, for square images of one size."""
    _import_siglip("siglip2", ("siglip", "siglip2"), source, target, options)


def _import_siglip(system, kinds, source, target, options) -> None:
    if source.suffix != ".npz":
        if options.image_size is not None:
            raise ConversionError(f"--image-size is for .npz files; {source} has a config.")
        _import_hugging_face(system, kinds, source, target, options)
        return
    state, left_out = _read(source)
    state = shapes.below_params(state)
    tokenizer = _tokenizer(system, source.parent, options)
    dual = shapes.big_vision(state, tokenizer, _INTERPOLATION[system], options.image_size)
    if options.image_size is None:
        size, side = dual.preprocess.image_size, dual.model["image"]["patch_size"]
        print(
            f"Images have {size} pixels, which its patches fill; the file says no more. Released "
            f"for up to {size + side - 1}? Then give --image-size."
        )
    form = forms.LOOPED_BIG_VISION if shapes.is_looped(state) else forms.BIG_VISION
    _save(system, form, state, dual, left_out, source, target, options)


def _import_hugging_face(system, kinds, source, target, options) -> None:
    config = _config(source, hugging_face.CONFIG, options.config_json)
    if config.get("model_type") not in kinds:
        raise ConversionError(
            f"{source} is of a model of type {config.get('model_type')!r}; {system} is for "
            f"{' and '.join(kinds)}."
        )
    beside = source if source.is_dir() else source.parent
    tokenizer = _tokenizer(system, beside, options)
    dual, form = hugging_face.from_config(config, _preprocessor(beside), tokenizer)
    if form is forms.SIGLIP2_HF:
        print("The original keeps an image's proportions; here its images are squares.")
    state, left_out = _read(source)
    _save(system, form, state, dual, left_out, source, target, options)


def _preprocessor(beside: Path) -> dict:
    path = beside / hugging_face.PREPROCESSOR
    if path.exists():
        return _read_json(path)
    of_both = beside / hugging_face.PROCESSOR  # as transformers 5 writes it, texts' beside images'
    found = _read_json(of_both).get("image_processor") if of_both.exists() else None
    if not isinstance(found, dict):
        raise ConversionError(
            f"{path} is missing: it tells how images are prepared, which weights do not."
        )
    return found


def _read(source: Path) -> tuple[State, list[str]]:
    """(weights, what is left out)."""
    state, rest = read_of_run(source)
    state, left_out = forms.split(state)
    return state, left_out + rest


def export_openai_clip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A model directory -> a file in OpenAI's names: .safetensors, or .pt."""
    _, dual, params, left_out = _stored(source, options)
    state = forms.to_form(forms.OPENAI, params, dual)
    _check_told("OpenAI's CLIP", dual, shapes.openai_clip(state, {}))
    write_file(target, state)
    print(forms.table(dual, left_out))


def export_open_clip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A model directory -> a directory that open_clip reads as local-dir:."""
    stored, dual, params, left_out = _stored(source, options)
    config, form = open_clip.to_config(dual)
    state = forms.to_form(form, params, dual)
    files = {open_clip.CONFIG: config}
    _write_directory(target, open_clip.WEIGHTS, state, files, dual, left_out, stored, "open_clip")


def export_clip_hf(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A model directory -> a directory of transformers' CLIPModel."""
    _export_hugging_face("clip", source, target, options)


def export_siglip(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A model directory -> a directory of transformers' SiglipModel, or big_vision's .npz."""
    _export_siglip("siglip", source, target, options)


def export_siglip2(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A model directory -> a directory of transformers' Siglip2Model, or big_vision's .npz."""
    _export_siglip("siglip2", source, target, options)


def _export_siglip(kind, source, target, options) -> None:
    if target.suffix != ".npz":
        _export_hugging_face(kind, source, target, options)
        return
    _, dual, params, left_out = _stored(source, options)
    hugging_face.to_config(dual, "siglip")  # the same models
    state, pre = forms.to_form(forms.BIG_VISION, params, dual), dual.preprocess
    told = shapes.big_vision(state, pre.tokenizer, _INTERPOLATION[kind], pre.image_size)
    _check_told(f"big_vision's {kind}", dual, told)
    write_file(target, state)
    print(forms.table(dual, left_out))


def _check_told(name: str, dual: Dual, told: Dual) -> None:
    """Files without a config are read as `told`."""
    forms.compare(
        "This format has no words for what the model computes otherwise", name, dual, told
    )


def _export_hugging_face(kind, source, target, options) -> None:
    stored, dual, params, left_out = _stored(source, options)
    config, preprocessor = hugging_face.to_config(dual, kind)
    state = forms.to_form(hugging_face.FORMS[kind], params, dual)
    files = {hugging_face.CONFIG: config, hugging_face.PREPROCESSOR: preprocessor}
    _write_directory(
        target, hugging_face.WEIGHTS, state, files, dual, left_out, stored, "transformers"
    )


def _config(source: Path, name: str, given: Path | None) -> dict:
    path = (source if source.is_dir() else source.parent) / name if given is None else given
    if not path.exists():
        raise ConversionError(
            f"{path} is missing: it tells what the weights do not. Put it there, or give "
            "--config-json FILE, or for open_clip --name of a published model."
        )
    return _read_json(path)


def _read_json(path: Path | epath.Path) -> dict:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error
    return content


def _tokenizer(system: str, beside: Path, options: argparse.Namespace) -> str:
    if options.tokenizer is not None or system == "clip_hf":
        return _named(options.tokenizer or "clip")
    for name, kind in _VOCABULARIES[system]:
        if (beside / name).exists():
            return _named(f"{kind}:{beside / name}")
    wanted = " or ".join(f"{kind}:PATH of {name}" for name, kind in _VOCABULARIES[system])
    raise ConversionError(f"There is no vocabulary beside the weights: give --tokenizer {wanted}.")


def _named(tokenizer: str) -> str:
    """The name with an absolute path, or a URL: the model will be read from elsewhere."""
    kind, _, path = tokenizer.partition(":")
    return f"{kind}:{storage_path(path)}" if path else tokenizer


def _save(
    system: str,
    form: Form,
    state: State,
    dual: Dual,
    left_out: list[str],
    source: Path,
    target: Path,
    options: argparse.Namespace,
) -> None:
    name, numbers = options.name, published.numbers(options.name)
    if name is not None:
        published.check_name(name, dual, as_released=system in ("siglip", "siglip2"))
    _check_tokenizer(system, dual)
    model = forms.from_state(form, state, dual)
    about = {"format": system, "file": source.name, "name": name, "published": numbers}
    save_model(target, {"model": model}, dual.section, dual.preprocess, None, about)
    print(forms.table(dual, left_out, numbers))


def _check_tokenizer(system: str, dual: Dual) -> None:
    """Raises ConversionError for a vocabulary of another model."""
    tokenizer, vocab_size = dual.preprocess.tokenizer, dual.model["text"]["vocab_size"]
    kind = tokenizer.partition(":")[0]
    if kind not in _KINDS[system]:
        raise ConversionError(
            f"{tokenizer} is no tokenizer of {system}, which has {' or '.join(_KINDS[system])}."
        )
    try:
        made = make_tokenizer(tokenizer)
        tokens = made.vocab_size
        made(["a photo of a dog"], dual.preprocess.context_length)
    except (RuntimeError, ValueError) as error:  # RuntimeError: SentencePiece's
        raise ConversionError(f"{tokenizer} is no vocabulary of its kind: {error}") from error
    if tokens > vocab_size or (kind in _WHOLE and tokens != vocab_size):
        raise ConversionError(
            f"The tokenizer {tokenizer} has {tokens} ids, the model {vocab_size}: they do not "
            "belong together."
        )


def _stored(source: Path, options: argparse.Namespace) -> tuple[StoredModel, Dual, dict, list[str]]:
    """A model directory, its two towers, their parameters, and the paths of others."""
    stored = open_model(source, options.weights)
    method = stored.make_method("clip", "cosmos")
    dual = Dual(
        method.model, getattr(method, "loss_type", "softmax") == "sigmoid", stored.preprocess
    )
    flat = trees.flatten(read_model(stored))
    wanted = trees.flatten(dual.shapes).keys()
    params = {path: forms.in_fp32(value) for path, value in flat.items() if path in wanted}
    return stored, dual, trees.unflatten(params), sorted(flat.keys() - wanted)


def _write_directory(
    target: Path,
    weights: str,
    state: State,
    files: Mapping[str, dict],
    dual: Dual,
    left_out: list[str],
    stored: StoredModel,
    library: str,
) -> None:
    if target.suffix in (".safetensors", ".pt", ".npz"):
        raise ConversionError(f"{target}: this format is a directory; give its name.")
    with appearing(target) as directory:
        for name, content in files.items():
            write_whole(directory / name, json.dumps(content, indent=1).encode())
        text = card(library, dual, left_out, stored.meta.get("source"))
        write_whole(directory / "README.md", text.encode())
        write_file(directory / weights, state)  # the last: with it, all files are there
    print(forms.table(dual, left_out))
