"""Writes the tables of recipes.md: the published hyper-parameters beside those of configs/.

    python docs/make_recipes.py

What stands before the tables is written by hand, and kept.
Ours are read from the configs, and from the defaults of what the configs build. A row whose two
values differ must say why, and only such a row may: else there is an error, and no table.
"""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from big_vlp.augment import Photometric
from big_vlp.config import PRETRAINING_PAIRS, mean_batch
from big_vlp.methods.clip import Method as ClipMethod
from big_vlp.models.two_towers import CosmosTowers
from big_vlp.optim import HELD, Optimizer
from big_vlp.preprocess import Preprocess
from big_vlp.range_augment import RangeAugment
from input_pipeline.captions import MAX_SENTENCES_PER_GLOBAL
from input_pipeline.views import VIEWS

HERE = Path(__file__).parent
PAGE = HERE / "recipes.md"
MARK = "<!-- What follows is made by make_recipes.py. -->"

# Reasons that several rows share.
CROPS = "a fifth of the cost of an exact filter, see Choices"
BF16 = "needs no loss scaling; parameters, moments and losses are fp32 in both"
FEW_PAIRS = "for sets of 3 to 27 million pairs; published for 400 million and more"
UNKNOWN = "not published"
SAT = "a guess: the default of SwissArmyTransformer, with which it was trained"
TEXT = "not in the recipe: `zeroshot` takes `class_names` and `templates`"


class Row(NamedTuple):
    """One hyper-parameter.

    Attributes:
      name: for people.
      published: its value; None where there is none.
      ours: dotted path in the config, with defaults filled in, or a function of the config.
      why: the reason of a difference.
    """

    name: str
    published: Any
    ours: str | Callable[[Mapping], Any]
    why: str = ""


class Recipe(NamedTuple):
    """A table: one config string, and what was published of it.

    Attributes:
      title: heading.
      source: where the published values come from.
      config: file name without ending.
      arg: its options.
    """

    title: str
    source: str
    config: str
    arg: str
    rows: list[Row]


def adam(rate, final, warmup, decay, beta2, epsilon=1e-8, clip=None) -> list[Row]:
    """Rows of AdamW and its schedule."""
    return [
        Row("learning rate, peak", rate, "optim.learning_rate"),
        Row("learning rate, last (cosine)", final, "optim.final_learning_rate"),
        Row("warm-up steps", warmup, "optim.warmup_steps"),
        Row("weight decay", decay, "optim.weight_decay"),
        Row("Adam beta1", 0.9, "optim.beta1"),
        Row("Adam beta2", beta2, "optim.beta2"),
        Row("Adam epsilon", epsilon, "optim.epsilon"),
        Row("gradient norm clipped at", clip, "optim.clip_norm"),
    ]


def tower(path: str, **published) -> list[Row]:
    """Rows of a tower's sizes."""
    kind = path.split(".")[-1]
    names = {"model": "tower", "image": "image tower", "text": "text tower"}
    return [
        Row(f"{names[kind]}: {key.replace('_', ' ')}", value, f"{path}.{key}")
        for key, value in published.items()
    ]


VIT_B16 = dict(patch_size=16, width=768, layers=12, heads=12)
CLIP_TEXT = dict(vocab_size=49_408, width=512, layers=12, heads=8)
CLIP_COLOURS = [
    Row("pixel mean", (0.48145466, 0.4578275, 0.40821073), "preprocess.mean"),
    Row("pixel deviation", (0.26862954, 0.26130258, 0.27577711), "preprocess.std"),
]


def epochs(pairs: int) -> Callable[[Mapping], int]:
    """Passes over so many examples, to the nearest whole one."""

    def count(config):
        per_step = mean_batch(
            config["plan"], config["preprocess"]["image_size"], config["global_batch"]
        )
        return round(config["total_steps"] * per_step / pairs)

    return count


def images_per_step(config: Mapping) -> float:
    size = config["preprocess"]["image_size"]
    return round(mean_batch(config["plan"], size, config["global_batch"]))


def size_range(config: Mapping) -> str:
    sizes = config["plan"]["sizes"]
    return f"{len(sizes)} sizes, {min(sizes)} to {max(sizes)}"


def photometric(view: str, key: str) -> Callable[[Mapping], float]:
    return lambda config: getattr(Photometric(**config["method"]["photometric"][view]), key)


def fixed(value) -> Callable[[Mapping], Any]:
    """What no config decides."""
    return lambda config: value


COSMOS_SETS = {  # global batch, GPUs, momentum, steps
    "cc3m": (1024, 16, 0.999, 88_576),
    "cc12m": (4096, 128, 0.99, 78_336),
    "yfcc15m": (4096, 128, 0.99, 110_080),
    "merged30m": (4096, 128, 0.99, 210_432),
    "pixelprose": (4096, 128, 0.99, 117_760),
}


def cosmos() -> list[Recipe]:
    source = "arXiv 2412.01814 and the training scripts of ExplainableML/cosmos"
    shared = [
        *adam(5e-4, 0.0, 2000, 0.5, 0.98),
        Row("precision", "fp16", "method.dtype", BF16),
        Row("image size, global and local", (224, 96), sizes_of_views),
        Row("crops, global and local", (2, 6), number_of_crops),
        Row("area of global crops", (0.4, 1.0), lambda c: (c["views"]["crop_scale"], 1.0)),
        Row("area of local crops", (0.05, 0.4), local_area),
        Row("resizing of crops", "PIL, bicubic", fixed("OpenCV, 2x2 means, bilinear"), CROPS),
        Row("flips", 0.5, "views.flip_prob"),
        *[
            Row(f"colour jitter: {name}", value, photometric("global_1", key))
            for name, key, value in (
                ("probability", "jitter_prob", 0.8),
                ("brightness", "brightness", 0.4),
                ("contrast", "contrast", 0.4),
                ("saturation", "saturation", 0.2),
                ("hue", "hue", 0.1),
            )
        ],
        Row("greyscale", 0.2, photometric("global_1", "grey_prob")),
        *[
            Row(f"blur, {view.replace('_', ' ')}", value, photometric(view, "blur_prob"))
            for view, value in (("global_1", 1.0), ("global_2", 0.1), ("local", 0.5))
        ],
        Row("solarise, global 2", 0.2, photometric("global_2", "solarize_prob")),
        *CLIP_COLOURS,
        Row("captions an image", 8, "views.num_captions"),
        Row("sentences of a global caption, at most", 5, fixed(MAX_SENTENCES_PER_GLOBAL)),
        Row("tokens of a caption", 77, "preprocess.context_length"),
        *tower("method.model.image", **VIT_B16),
        *tower("method.model.text", **CLIP_TEXT),
        Row("joint width", 512, "method.model.embed_dim"),
        Row("heads of the poolers", 8, fixed(CosmosTowers.pooler_heads)),
        Row("activation", "gelu", "preprocess.activation"),
        Row("temperatures at the start", 0.07, fixed(1 / CosmosTowers.init_scale)),
        Row("captions of retrieval", "own image only", rule_of_retrieval),
        Row("ImageNet, zero-shot", "1,000 names, 80 templates", fixed(None), TEXT),
    ]
    recipes = [Recipe("COSMOS, ViT-B/16", source, "cosmos", "data=cc12m", shared)]
    for data, (batch, gpus, momentum, steps) in COSMOS_SETS.items():
        rows = [
            Row("pairs", PRETRAINING_PAIRS[data], fixed(PRETRAINING_PAIRS[data])),
            Row("global batch", batch, "global_batch"),
            Row("epochs", 32, epochs(PRETRAINING_PAIRS[data])),
            Row("steps", steps, "total_steps"),
            Row("momentum of the teacher", momentum, "method.momentum"),
            Row(
                "gradients of the encoders, of the true ones",
                f"1/{gpus}",
                fixed("1"),
                "see Choices; the published ones are those of "
                f"`--config.optim.epsilon={_number(gpus * 1e-8)}`",
            ),
        ]
        recipes.append(Recipe(f"COSMOS on {data}", source, "cosmos", f"data={data}", rows))
    return recipes


def sizes_of_views(config):
    return config["preprocess"]["image_size"], config["views"]["local_size"]


def number_of_crops(config):
    return config["views"]["num_global"], config["views"]["num_local"]


def local_area(config):
    return config["views"]["min_local_scale"], config["views"]["crop_scale"]


def rule_of_retrieval(config):
    rules = {"reference": "own image only", "shared": "every image that has the string"}
    return rules[config["evals"]["coco"]["equal_captions"]]


def clip() -> list[Recipe]:
    rows = [
        Row("pairs", 400_000_000, fixed(PRETRAINING_PAIRS["merged30m"]), FEW_PAIRS),
        Row("global batch", 32_768, "global_batch", FEW_PAIRS),
        Row("epochs", 32, epochs(PRETRAINING_PAIRS["merged30m"])),
        *adam(5e-4, 0.0, 2000, 0.2, 0.98, epsilon=1e-6),
        Row("precision", "fp16", "method.dtype", BF16),
        Row("captions", "raw", "views.caption_mode"),
        Row("tokens of a caption", 77, "preprocess.context_length"),
        Row("image size", 224, "preprocess.image_size"),
        Row("area of crops (open_clip)", (0.9, 1.0), "views.crop_scale"),
        Row("resizing of crops", "PIL, bicubic", fixed("OpenCV, 2x2 means, bilinear"), CROPS),
        Row("flips", 0.0, "views.flip_prob"),
        *CLIP_COLOURS,
        *tower("method.model.image", **VIT_B16),
        *tower("method.model.text", **CLIP_TEXT),
        Row("joint width", 512, "method.model.embed_dim"),
        Row(
            "activation",
            "quick_gelu",
            "preprocess.activation",
            "the exact function, as in open_clip's models and COSMOS, whose baseline this is",
        ),
        Row("scale of the logits at the start", 1 / 0.07, scale_at_start),
    ]
    source = "arXiv 2103.00020, tables 18 and 19; open_clip where it says so"
    return [Recipe("CLIP, ViT-B/16", source, "clip", "data=merged30m", rows)]


def siglip() -> list[Recipe]:
    rows = [
        Row("global batch", 32_768, "global_batch", FEW_PAIRS),
        Row("learning rate, peak", 1e-3, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 0.0, "optim.final_learning_rate"),
        Row("warm-up, share of the run (LiT on COCO)", 0.03, warmup_share, LONGER_WARMUP),
        Row("decay of a kernel a step, at the peak", 1e-4, decay_per_step),
        Row("decay of tables, probe and vectors", 0.0, decay_of_tables),
        Row("Adam beta1", 0.9, "optim.beta1"),
        Row("Adam beta2", 0.95, "optim.beta2"),
        Row("Adam epsilon", 1e-8, "optim.epsilon"),
        Row("gradient norm clipped at", 1.0, "optim.clip_norm"),
        Row("image size", 224, "preprocess.image_size"),
        Row("crops", None, "views.crop_scale"),
        Row("resizing", "squash", "preprocess.resize"),
        Row("flips", 0.0, "views.flip_prob"),
        Row("pixel mean", (0.5, 0.5, 0.5), "preprocess.mean"),
        Row("pixel deviation", (0.5, 0.5, 0.5), "preprocess.std"),
        Row("captions", "raw", "views.caption_mode"),
        Row("tokens of a caption", 64, "preprocess.context_length"),
        Row(
            "vocabulary",
            32_000,
            "method.model.text.vocab_size",
            "CLIP's is at hand; `tokenizer=sentencepiece:PATH,vocab_size=32000` is the released",
        ),
        *tower("method.model.image", **VIT_B16, pool="map", norm_epsilon=1e-6),
        *tower("method.model.text", width=768, layers=12, heads=12, causal=False, pool="last",
               norm_epsilon=1e-6),
        Row("joint width", 768, "method.model.embed_dim"),
        Row("activation", "gelu_tanh", "preprocess.activation"),
        Row("scale of the logits at the start", 10.0, scale_at_start),
        Row("bias of the logits at the start", -10.0, bias_at_start),
    ]  # fmt: skip
    source = "arXiv 2303.15343; google-research/big_vision (optax.py, vit.py, siglip_lit_coco.py)"
    return [Recipe("SigLIP, ViT-B/16", source, "siglip", "data=cc3m", rows)]


def scale_at_start(config):
    return _towers(config).init_scale


def bias_at_start(config):
    return _towers(config).init_bias


def _towers(config):
    arguments = {key: value for key, value in config["method"].items() if key != "name"}
    return ClipMethod(preprocess=Preprocess(**config["preprocess"]), **arguments).towers


LONGER_WARMUP = "from random weights a longer one: a tenth of the run, at most 2,000 steps"


def warmup_share(config):
    return round(config["optim"]["warmup_steps"] / config["total_steps"], 3)


def decay_per_step(config):
    [(_, _, share)] = [rule for rule in config["optim"]["rules"] if rule[0] == ".*kernel"]
    return config["optim"]["learning_rate"] * config["optim"]["weight_decay"] * share


def decay_of_tables(config):
    return sum(share for pattern, _, share in config["optim"]["rules"] if "probe" in pattern)


CATLIP_SIZES = {  # learning rate, width, layers, heads
    "b16": (1e-3, 768, 12, 12),
    "l16": (6e-4, 1024, 24, 16),
    "h16": (4e-4, 1280, 32, 20),
}
CATLIP_SOURCE = "arXiv 2404.15653 and apple/corenet, projects/catlip"
BILINEAR = Row("resizing of crops", "PIL, bilinear", fixed("OpenCV, 2x2 means, bilinear"), CROPS)
CROP_ROWS = [
    Row("area of crops", (0.08, 1.0), "views.crop_scale"),
    BILINEAR,
    Row("flips", 0.5, "views.flip_prob"),
]
AUGMENT_ROWS = [
    Row("RangeAugment, dB of the target", (40.0, 20.0), lambda c: psnr(c)),
    Row("share of new weights in the average", 5e-4, "method.ema_momentum"),
]


CATLIP_ROWS = [  # of all sizes
    Row(
        "updates",
        200_001,
        "total_steps",
        "200,000 are asked for; the released loop makes one more, at the last rate",
    ),
    Row("warm-up steps", 10_000, "optim.warmup_steps"),
    Row("warm-up from", 1e-6, "optim.initial_learning_rate"),
    Row(
        "learning rates rounded to",
        "8 decimals",
        fixed("not rounded"),
        "at most 5e-9: a tenth of a per cent of the smallest rate of pretraining",
    ),
    Row("weight decay", 0.2, "optim.weight_decay"),
    Row("Adam beta1", 0.9, "optim.beta1"),
    Row("Adam beta2", 0.999, "optim.beta2"),
    Row("Adam epsilon", 1e-8, "optim.epsilon"),
    Row("gradient norm clipped at", 1.0, "optim.clip_norm"),
    Row("image sizes", "13 sizes, 128 to 320", size_range),
    Row("images of a step, on average", 83_333, images_per_step),
    *CROP_ROWS,
    *AUGMENT_ROWS,
    Row("precision", "bfloat16", "method.dtype"),
    Row(
        "BatchNorm normalises over",
        "each GPU's images",
        fixed("the batch"),
        "one number, however many devices there are",
    ),
    Row("probability of a label at the start", 0.5, "method.prior"),
]


def psnr(config):
    augment = RangeAugment(**config["method"]["augment"])
    return augment.start_psnr, augment.end_psnr


def catlip() -> list[Recipe]:
    recipes = []
    for model, (rate, width, layers, heads) in CATLIP_SIZES.items():
        rows = [
            Row("base batch, at 224 pixels", 65_536, "global_batch"),
            *tower("method.model", width=width, layers=layers, heads=heads),
            Row("learning rate, peak", rate, "optim.learning_rate"),
            Row("learning rate, last (cosine)", rate / 100, "optim.final_learning_rate"),
        ]
        if model == "b16":
            rows += CATLIP_ROWS
        title = f"CatLIP on DataComp, ViT-{model[0].upper()}/16"
        recipes.append(Recipe(title, CATLIP_SOURCE, "catlip", f"model={model}", rows))
    rows = [
        Row("base batch, at 224 pixels", 2048, "global_batch"),
        Row("epochs", 100, epochs(2_900_000)),
        Row("learning rate, peak", 2e-3, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 2e-5, "optim.final_learning_rate"),
        Row("warm-up steps", UNKNOWN, "optim.warmup_steps", "a guess: 4 % of the run"),
        Row("weight decay", 0.2, "optim.weight_decay"),
        Row("captions an image", "one, the raw one", caption_fields),
    ]
    recipes.append(Recipe("CatLIP on CC3M", f"{CATLIP_SOURCE[:16]}, table 6", "catlip",
                          "data=cc3m", rows))  # fmt: skip
    return recipes + transfer()


def caption_fields(config):
    found = config["views"]["caption_fields"]
    return "one, the raw one" if found == ("raw_caption",) else found


def transfer() -> list[Recipe]:
    by_epoch = Row("the cosine moves", "once an epoch", rhythm)
    shared = [
        by_epoch,
        Row("warm-up from", 1e-6, "optim.initial_learning_rate"),
        Row("warm-up steps", 500, "optim.warmup_steps"),
        Row("weight decay", 0.05, "optim.weight_decay"),
        Row("Adam beta2", 0.999, "optim.beta2"),
        Row("gradient norm clipped at", 1.0, "optim.clip_norm"),
        *CROP_ROWS,
        *AUGMENT_ROWS,
        Row("precision", "bfloat16", "method.dtype"),
    ]
    probe = [
        Row("epochs", 30, epochs(1_281_167)),
        Row("batch", 256, "global_batch"),
        Row("learning rate, peak", 3e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 1e-6, "optim.final_learning_rate"),
        Row("warm-up steps", UNKNOWN, "optim.warmup_steps", "a guess: that of fine-tuning"),
        Row("weight decay", 0.0, "optim.weight_decay"),
    ]
    imagenet = [
        Row("epochs", 10, epochs(1_281_167)),
        Row("batch (paper: 128)", 512, "global_batch"),
        Row("image sizes", "7 sizes, 128 to 320", size_range),
        Row("learning rate, peak", 3e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 3e-6, "optim.final_learning_rate"),
        Row("label smoothing", 0.1, "method.label_smoothing"),
        Row("shorter side, crop of validation", (232, 224), validation),
        *shared,
    ]
    coco = [
        Row("epochs", 10, epochs(118_287)),
        Row("batch", 128, "global_batch"),
        Row("image sizes", "25 sizes, 256 to 768", size_range),
        Row("learning rate, peak", 1e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 1e-6, "optim.final_learning_rate"),
        Row("shorter side, crop of validation", (512, 512), validation),
        *shared,
    ]
    ade = [
        Row("epochs", 50, epochs(20_210)),
        Row("batch", 32, "global_batch"),
        Row("learning rate, peak", 3e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 3e-6, "optim.final_learning_rate"),
        by_epoch,
        Row("warm-up from", 1e-6, "optim.initial_learning_rate"),
        Row("warm-up steps", 500, "optim.warmup_steps"),
        Row("weight decay", 0.1, "optim.weight_decay"),
        Row("gradient norm clipped at", None, "optim.clip_norm"),
        Row("share of new weights in the average", 1e-4, "method.ema_momentum"),
        Row("precision", "float32", "method.dtype"),
        Row("image size", 512, "preprocess.image_size"),
        Row("shorter side, of the image size", (0.5, 1.5), "views.short_side"),
        Row("longer side at most, of the image size", 2.0, "views.max_long_side"),
        Row("a class of a crop at most", 0.75, "views.max_class_share"),
        Row("pixels per token", 8, "method.model.output_stride"),
        Row("channels of the head", 512, "method.head.channels"),
        Row("rates of the head", (12, 24, 36), "method.head.rates"),
        Row("dropout of the head", 0.1, "method.head.dropout"),
    ]
    source = f"{CATLIP_SOURCE}; the probe from the paper only"
    return [
        Recipe("CatLIP, probe on ImageNet", source, "transfer", "mode=probe", probe),
        Recipe("CatLIP, fine-tuned on ImageNet", source, "transfer", "mode=finetune", imagenet),
        Recipe("CatLIP, fine-tuned on COCO's labels", source, "transfer",
               "task=coco,mode=finetune", coco),
        Recipe("CatLIP, DeepLabv3 on ADE20K", source, "segmentation", "", ade),
    ]  # fmt: skip


def rhythm(config):
    return "each step" if config["optim"]["epoch_steps"] is None else "once an epoch"


def validation(config):
    return config["preprocess"]["resize_size"], config["preprocess"]["image_size"]


def cogvlm() -> list[Recipe]:
    paper, code = "arXiv 2311.03079, table 5 and appendix", "CogVLM's released code"
    common = [
        Row("Adam beta1", 0.9, "optim.beta1"),
        Row("Adam beta2", 0.95, "optim.beta2"),
        Row("Adam epsilon", 1e-8, "optim.epsilon"),
        Row("dropout of the language model", 0.1, "method.model.text.dropout"),
    ]
    sizes = [
        *tower("method.model.image", patch_size=14, width=1792, layers=63, heads=16,
               mlp_dim=15_360),
        *tower("method.model.text", vocab_size=32_000, width=4096, layers=32, heads=32,
               mlp_dim=11_008),
        Row("adapter: hidden width", 11_008, "method.model.adapter_mlp_dim"),
        Row("resizing", "squash", "preprocess.resize"),
        *CLIP_COLOURS,
        Row("precision", "bfloat16", "method.dtype"),
    ]  # fmt: skip

    def numbers(steps, batch, rate, warmup, decay):
        return [
            Row("steps", steps, "total_steps"),
            Row("batch", batch, "global_batch"),
            Row("learning rate, peak", rate, "optim.learning_rate"),
            Row("warm-up steps", warmup, "optim.warmup_steps"),
            Row("weight decay", decay, "optim.weight_decay"),
        ]

    def rate_of(part):
        return lambda config: max(r for p, r, _ in config["optim"]["rules"] if p.startswith(part))

    tokens = Row("tokens of text (released code)", 58, "preprocess.context_length")
    averages = Row("decay of the average", UNKNOWN, "method.ema_decay", SAT)
    last = Row("last learning rate, of the peak", UNKNOWN, last_share, SAT)
    clipped = Row("gradient norm clipped at", UNKNOWN, "optim.clip_norm", SAT)
    length, steps = "preprocess.context_length", "optim.warmup_steps"
    longer = Row("tokens of text", UNKNOWN, length, "a guess: room for a conversation")
    warmup = Row("warm-up steps", UNKNOWN, steps, "that of the paper's first version")
    stages = {
        "1": [*numbers(120_000, 8192, 1e-4, 12_000, 0.05), tokens, averages, last, clipped],
        "2": [
            *numbers(60_000, 1024, 1e-5, 1200, 0.05),
            tokens,
            Row("last steps at 490 pixels", 30_000, lambda c: 60_000 - c["plan"]["at_step"]),
            averages,
            last,
            clipped,
        ],
        "sft": [
            Row("steps", 6000, "total_steps"),
            Row("batch", 1024, "global_batch"),
            Row("learning rate, peak", 1e-5, "optim.learning_rate"),
            Row("weight decay", 0.1, "optim.weight_decay"),
            Row("rate of the image tower", 0.1, rate_of("vision/")),
            warmup,
            longer,
            last,
            clipped,
        ],
        "sft_v1": [
            *numbers(8000, 640, 1e-5, 50, 0.1),
            Row("rate of the language model", 0.1, rate_of("language/(?!blocks/vision)")),
            Row("rate of the image tower", 0.0, rate_of("vision/")),
            longer,
            last,
            clipped,
        ],
    }
    lora = [
        *numbers(800, 32, 1e-5, 16, 0.05),
        Row("first steps held at 5 % of the peak", 100, "optim.hold_steps"),
        Row("their share of the peak", 0.05, fixed(HELD)),
        Row("last learning rate (SAT's default)", 1e-6, "optim.final_learning_rate"),
        Row("gradient norm clipped at", 0.1, "optim.clip_norm"),
        Row("rank", 10, "method.lora.rank"),
        Row("alpha", 1.0, "method.lora.alpha"),
        tokens,
        Row("layers of the tower whose MLPs train", "46 to 54", trained_layers),
    ]
    made = [Recipe("CogVLM-17B", f"{paper}; {code}", "cogvlm", "", [*sizes, *common])]
    for stage, rows in stages.items():
        made.append(Recipe(f"CogVLM, stage {stage}", paper, "cogvlm", f"stage={stage}", rows))
    return [*made, Recipe("CogVLM, LoRA", f"{code} and SwissArmyTransformer", "cogvlm",
                          "stage=lora", lora)]  # fmt: skip


def last_share(config):
    return config["optim"]["final_learning_rate"] / config["optim"]["learning_rate"]


def trained_layers(config):
    [rates] = {rate for _, rate, _ in config["optim"]["rules"] if isinstance(rate, tuple)}
    trained = [layer for layer, rate in enumerate(rates) if rate]
    return f"{trained[0]} to {trained[-1]}"


def load(name: str, arg: str) -> dict:
    """A config as nested dicts, with the defaults of what its sections build filled in."""
    spec = importlib.util.spec_from_file_location(name, HERE.parent / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = _plain(module.get_config(arg))
    method = importlib.import_module(f"big_vlp.methods.{config['method']['name']}").Method
    where, what = VIEWS[config["views"]["name"]]
    for section, built in (
        ("optim", Optimizer),
        ("preprocess", Preprocess),
        ("method", method),
        ("views", getattr(importlib.import_module(where), what)),
    ):
        parameters = inspect.signature(built).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        config[section] = {**defaults, **config[section]}
    return config


def _plain(value):
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def value_of(config: Mapping, ours: str | Callable) -> Any:
    """Ours, of a row.

    Raises:
      ValueError: the config has no such key.
    """
    if callable(ours):
        return ours(config)
    value = config
    for key in ours.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"The config has no key {ours!r}.")
        value = value[key]
    return value


def same(a, b) -> bool:
    """Equal values, floats to what printing shows of them."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    number = (int, float)
    if isinstance(a, number) and isinstance(b, number):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def shown(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return _number(value) if isinstance(value, int | float) and value is not True else str(value)


def _number(value) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.8g}"


def table(recipe: Recipe) -> list[str]:
    """Lines of Markdown.

    Raises:
      ValueError: a difference without a reason, or a reason without a difference.
    """
    config = load(recipe.config, recipe.arg)
    command = f"configs/{recipe.config}.py" + (f":{recipe.arg}" if recipe.arg else "")
    lines = [f"## {recipe.title}", "", f"`{command}`. Published: {recipe.source}.", ""]
    lines += ["| | published | here | why they differ |", "|---|---|---|---|"]
    for row in recipe.rows:
        ours = value_of(config, row.ours)
        if same(row.published, ours) == bool(row.why):
            raise ValueError(
                f"{recipe.title}, {row.name}: published {shown(row.published)}, here "
                f"{shown(ours)}; a row says why just where its values differ."
            )
        mark = "**" if row.why else ""
        lines.append(
            f"| {row.name} | {shown(row.published)} | {mark}{shown(ours)}{mark} | {row.why} |"
        )
    return [*lines, ""]


def page() -> str:
    """All of recipes.md, with the tables made anew.

    Raises:
      ValueError: as `table`, or the page has no mark before its tables.
    """
    by_hand, mark, _ = PAGE.read_text("utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE} has no line {MARK}")
    recipes = [*cosmos(), *catlip(), *cogvlm(), *clip(), *siglip()]
    lines = [line for recipe in recipes for line in table(recipe)]
    return by_hand + "\n".join([MARK, "", *lines])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
