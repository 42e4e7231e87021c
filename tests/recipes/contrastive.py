"""What was published of COSMOS, CLIP and SigLIP."""

from collections.abc import Callable, Mapping

from big_vlp.augment.photometric import Photometric
from big_vlp.methods.clip import Method as ClipMethod
from big_vlp.models.two_towers import CosmosTowers
from big_vlp.recipes import PRETRAINING_PAIRS
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.captions import MAX_SENTENCES_PER_GLOBAL
from tests.recipes.rows import CLIP_COLOURS, CROPS, Recipe, Row, adam, epochs, fixed, number, tower

BF16 = "needs no loss scaling; parameters, moments and losses are fp32 in both"
FEW_PAIRS = "for sets of 3 to 27 million pairs; published for 400 million and more"
TEXT = "not in the recipe: `zeroshot` takes `class_names` and `templates`"
LONGER_WARMUP = "from random weights a longer one: a tenth of the run, at most 2,000 steps"

VIT_B16 = dict(patch_size=16, width=768, layers=12, heads=12)
CLIP_TEXT = dict(vocab_size=49_408, width=512, layers=12, heads=8)
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
        Row("activation", "gelu", activation),
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
            Row("momentum of the teacher", momentum, "method.ema_decay"),
            Row(
                "gradients of the encoders, of the true ones",
                f"1/{gpus}",
                fixed("1"),
                "see Choices; the published ones are those of "
                f"`--config.optim.epsilon={number(gpus * 1e-8)}`",
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


def photometric(view: str, key: str) -> Callable[[Mapping], float]:
    return lambda config: getattr(Photometric(**config["method"]["photometric"][view]), key)


def rule_of_retrieval(config):
    rules = {"reference": "own image only", "shared": "every image that has the string"}
    return rules[config["evals"]["coco_val2017"]["equal_captions"]]


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
            activation,
            "the exact function, as in open_clip's models and COSMOS, whose baseline this is",
        ),
        Row("scale of the logits at the start", 1 / 0.07, scale_at_start),
    ]
    source = "arXiv 2103.00020, tables 18 and 20; open_clip where it says so"
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
        Row("activation", "gelu_tanh", activation),
        Row("scale of the logits at the start", 10.0, scale_at_start),
        Row("bias of the logits at the start", -10.0, bias_at_start),
    ]  # fmt: skip
    source = "arXiv 2303.15343; google-research/big_vision (optax.py, vit.py, siglip_lit_coco.py)"
    return [Recipe("SigLIP, ViT-B/16", source, "siglip", "data=cc3m", rows)]


def activation(config):
    """Of both towers."""
    towers = (config["method"]["model"][name] for name in ("image", "text"))
    (of_both,) = {tower.get("activation", "gelu") for tower in towers}
    return of_both


def scale_at_start(config):
    return _towers(config).init_scale


def bias_at_start(config):
    return _towers(config).init_bias


def _towers(config):
    arguments = {key: value for key, value in config["method"].items() if key != "name"}
    return ClipMethod(preprocess=Preprocess(**config["preprocess"]), **arguments).network


def warmup_share(config):
    return round(config["optim"]["warmup_steps"] / config["total_steps"], 3)


def decay_per_step(config):
    [(_, _, share)] = [rule for rule in config["optim"]["rules"] if rule[0] == ".*kernel"]
    return config["optim"]["learning_rate"] * config["optim"]["weight_decay"] * share


def decay_of_tables(config):
    return sum(share for pattern, _, share in config["optim"]["rules"] if "probe" in pattern)
