"""`python -m big_vlp.convert` for CogVLM: files of any size <-> model directories.

Nothing is in memory but what is being written: a parameter, which are the blocks' weights stacked.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from big_vlp import trees
from big_vlp.convert.cogvlm import names, starts
from big_vlp.convert.cogvlm.parts import from_parts, from_sat
from big_vlp.convert.common import ConversionError, Tensor
from big_vlp.convert.files import appearing, read_model, read_parts, read_state, write_state
from big_vlp.models import lora
from big_vlp.models.cogvlm import CogVLM
from big_vlp.models.layers.positions import resize_grid
from big_vlp.storage.model_dir import StoredModel, open_model, save_model
from evaluators.datasets import tasks
from input_pipeline.checks.ranges import SEED
from input_pipeline.command_line import Parser, path_argument
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_whole
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.tokenizers import make_tokenizer

CONFIG, TOKENIZER, LLAMA3 = "config.json", "tokenizer.model", "tokenizer.json"


def import_released(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A directory in Hugging Face's form, of CogVLM or CogVLM2; for `options` see `add_options`."""
    config = _read_config(source / CONFIG)
    params, arguments, _ = names.from_reference(read_state(source), config, lazy=True)
    about = options.name and {"name": options.name, "published": tasks.paper(options.name)}
    _save(params, arguments, source, target, options, about=about)


def import_sat(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A checkpoint of SwissArmyTransformer, with a config.json in the released form."""
    if options.config_json is None:
        raise ConversionError(
            "Weights do not tell all sizes: give --config-json, the config.json of the released "
            "model that the checkpoint is a version of."
        )
    config = _read_config(options.config_json)
    text = names.from_config(config)["text"]
    base = config.get("rope_theta", 10000.0)
    state = from_sat(read_parts(source, "module")["module"], text["width"] // text["heads"], base)
    params, arguments, _ = names.from_reference(state, config, lazy=True)
    _save(params, arguments, source.parent, target, options)


def import_parts(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A language model's directory and the file of an EVA-CLIP: where pretraining starts. By its
    names, the tower is EVA2-CLIP-E's, or EVA02-CLIP-L's."""
    if options.eva is None:
        raise ConversionError(
            "The image tower is missing: give --eva, the file of EVA2-CLIP-E or EVA02-CLIP-L."
        )
    config, llama, eva = _read_config(source / CONFIG), read_state(source), read_state(options.eva)
    if starts.is_eva02(eva):
        made = starts.with_eva02(llama, config, eva, seed=options.seed)
    else:
        state, config = from_parts(llama, config, eva, seed=options.seed)
        made = names.from_reference(state, config, lazy=True)[:2]
    _save(*made, source, target, options, options.image_size)


def import_language(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A language model's directory, without any image tower."""
    config = _read_config(source / CONFIG)
    _save(*starts.language_alone(read_state(source), config), source, target, options)


def export_released(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A model directory -> a directory in Hugging Face's form."""
    stored = open_model(source, options.weights)
    arguments = stored.meta["config"]["method"]["model"]
    model = _without_lora(stored)
    names.check_kind(arguments)
    model.pop("feature_head", None)  # what training alone needs
    arguments, model = _at_size(arguments, model, stored.preprocess.image_size)
    state = names.to_reference(model, arguments, lazy=True)
    if options.dtype is not None:
        state = {key: _cast(tensor, np.dtype(options.dtype)) for key, tensor in state.items()}
    # A run keeps what it trains in fp32, what it froze in the compute dtype.
    dtypes = {str(tensor.dtype) for tensor in state.values()}
    others = {} if options.config_json is None else _read_config(options.config_json)
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    own = {"architectures": ["CogVLMForCausalLM"], "torch_dtype": dtype}
    config = others | names.to_config(arguments, **own)
    with appearing(target) as directory:
        write_whole(directory / CONFIG, json.dumps(config, indent=1).encode())
        write_state(directory, state)


def _at_size(arguments: dict, model: dict, size: int) -> tuple[dict, dict]:
    """Arguments and parameters of the same model with the position table of an image size: here
    the tower interpolates its table, there it cannot."""
    image = arguments["image"]
    if image["image_size"] == size:
        return arguments, model
    table, side = model["vision"]["position_embedding"], size // image["patch_size"]

    def read():
        return np.asarray(resize_grid(np.asarray(table, np.float32), (side, side)))

    resized = Tensor((side**2 + 1, table.shape[1]), np.dtype(np.float32), read)
    vision = {**model["vision"], "position_embedding": _cast(resized, table.dtype)}
    return {**arguments, "image": {**image, "image_size": size}}, {**model, "vision": vision}


def _cast(tensor: Tensor, dtype: np.dtype) -> Tensor:
    return Tensor(tensor.shape, dtype, lambda: np.asarray(tensor).astype(dtype))


def merge(source: Path, target: Path, options: argparse.Namespace) -> None:
    """A model directory with LoRA's factors -> one without, whose kernels hold what they learnt."""
    stored = open_model(source, options.weights)
    method = dict(stored.meta["config"]["method"])
    if not method.get("lora"):
        raise ConversionError(f"{source} was trained without LoRA: there is nothing to merge.")
    model = _without_lora(stored)
    save_model(target, {"model": model}, {**method, "lora": None}, stored.preprocess, None)


def _without_lora(stored: StoredModel) -> dict:
    """The parameters, merged as they are read: nested dict of `Tensor`s."""
    method, flat = stored.make_method("cogvlm"), trees.flatten(read_model(stored))
    for path in [path.removesuffix("lora_a") for path in flat if path.endswith("/lora_a")]:
        kernel = flat[f"{path}kernel"]
        parts = {path + name: flat.pop(path + name) for name in ("kernel", *lora.FACTORS)}

        def read(parts=parts, path=path):
            arrays = trees.unflatten({name: np.asarray(part) for name, part in parts.items()})
            return np.asarray(trees.flatten(method.merged(arrays))[f"{path}kernel"])

        flat[f"{path}kernel"] = Tensor(kernel.shape, kernel.dtype, read)
    return trees.unflatten(flat)


def add_options(parser: Parser) -> None:
    """The flags of these functions' `options`."""
    add = parser.add_argument_group("import cogvlm, cogvlm_sat, cogvlm_parts, llama").add_argument
    add(
        "--context-length",
        type=int,
        default=2048,
        metavar="TOKENS",
        help="of text, the longest input",
    )
    add(
        "--eva",
        type=path_argument,
        metavar="FILE",
        help="cogvlm_parts: EVA02-CLIP-bigE-14 or EVA02-CLIP-L-14, .pt or other",
    )
    add("--seed", type=SEED, default=0, metavar="N", help="cogvlm_parts: of the adapter's weights")
    parser.add_renamed("--config", "--config-json")
    add = parser.add_argument_group("export cogvlm").add_argument
    add("--dtype", choices=("bfloat16", "float32"), help="of all tensors; by default as they are")


def _save(
    params: dict,
    arguments: dict,
    beside: Path,
    target: Path,
    options: argparse.Namespace,
    image_size: int | None = None,
    about: dict | None = None,
) -> None:
    name = _tokenizer(options.tokenizer, beside)
    text = arguments["text"]
    pad_id = _pad_id(name, text["vocab_size"])
    if text["pad_id"] is None:  # the model never had padding, rows here do
        arguments = {**arguments, "text": {**text, "pad_id": pad_id}}
    image, token_size = arguments.get("image"), None
    size = 224 if image is None else image["image_size"]
    if image is not None:
        token_size = CogVLM(**arguments).image_token_size
    if image_size is not None:
        # The tower interpolates its positions.
        if image_size < 1 or image_size % token_size:
            raise ConversionError(f"--image-size {image_size}: give a multiple of {token_size}.")
        size = image_size
    preprocess = Preprocess(
        size,
        resize="squash",
        tokenizer=name,
        context_length=options.context_length,
        image_token_size=token_size,
    )
    method = {"name": "cogvlm", "model": arguments}
    save_model(target, {"model": params}, method, preprocess, None, about)


def _tokenizer(given: str | None, directory: Path) -> str:
    """A name for `make_tokenizer`, with an absolute path or a URL."""
    if given is None:
        kinds = {"llama": directory / TOKENIZER, "llama3": directory / LLAMA3}
        found = [f"{kind}:{path}" for kind, path in kinds.items() if path.exists()]
        if not found:
            raise ConversionError(
                f"{directory} has no {TOKENIZER}: give --tokenizer llama:PATH (CogVLM has "
                "Vicuna-7B's) or llama3:PATH (CogVLM2 has Llama 3's tokenizer.json)."
            )
        given = found[0]
    kind, _, path = given.partition(":")
    if kind not in ("llama", "llama3") or not path:
        raise ConversionError(f"--tokenizer {given}: it must read llama:PATH or llama3:PATH.")
    return given if given == "llama:scenes" else f"{kind}:{storage_path(path)}"


def _pad_id(name: str, count: int) -> int:
    """That of a tokenizer, which must be one of so many tokens."""
    try:
        tokenizer = make_tokenizer(name)
        size, pad_id = tokenizer.vocab_size, tokenizer.pad_id
    except RuntimeError as error:  # SentencePiece's
        raise ConversionError(f"{name}: the file is no SentencePiece model.") from error
    if size > count:
        raise ConversionError(
            f"The tokenizer {name} has {size} tokens, the language model {count}: it is another "
            "model's."
        )
    return pad_id


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConversionError(f"{path} is missing; it tells the model's sizes.") from None
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{path} is no model's {CONFIG}.")
    return config
