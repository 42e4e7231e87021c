"""An image tower in front of a language model, by LLaVA-1.5's two stages (arXiv 2310.03744): how
well a model answers that sees by a tower of COSMOS, CLIP, SigLIP, CatLIP or EVA02-CLIP.

Options: stage=pretrain|tune, tower=NAME of TOWERS (clip_l14_336), image=DIR (a model directory with
that tower), weights=NAME (those of it: averaged, a COSMOS' teacher, or model, its student; by
default the average where there is one), language=DIR, start=DIR (of stage tune: that of pretrain),
experts (CogVLM's visual experts), data=llava|scenes, runlocal
Data: prepared shards in data/NAME, see docs/recipes.md; data/coco_val2017 for stage pretrain; GQA,
TextVQA and POPE for stage tune.

Stage pretrain trains the adapter on captions, tune the adapter and the language model on questions
and conversations; the tower stays as it is. As LLaVA's, the model reads what the tower's last block
but one gives, without the norm behind the blocks. Images are squashed to the size that the tower
was trained with, and normalised as it was. data=scenes needs no file: it goes on from the tower of
demo.py and the language model of demo_cogvlm.py:stage=text, some minutes on a CPU. docs/recipes.md
holds the published numbers.
"""

import math

import ml_collections

from big_vlp import recipes as shared
from input_pipeline.preprocess import CLIP_MEAN, CLIP_STD

_CLIP = dict(mean=CLIP_MEAN, std=CLIP_STD)
_HALF = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
_PLAIN = dict(mean=(0.0,) * 3, std=(1.0,) * 3)  # CatLIP's


def _vit(image_size, sizes, **changes):
    image = {"image_size": image_size, **sizes, **changes}
    return dict(tower="vit", image=image, part="image_tower", image_size=image_size)


def _catlip(name):
    image = shared.CATLIP_TOWERS[name]
    return dict(tower="catlip_vit", image=image, part="tower", image_size=224, **_PLAIN)


_CLIP_L14 = dict(patch_size=14, width=1024, layers=24, heads=16)
_DEMO = dict(patch_size=8, width=128, layers=2, heads=4)
# Module of `models.towers`, its arguments as trained, which part of a model directory it is; the
# images' size, mean and deviation.
TOWERS = {
    "clip_l14_336": _vit(336, _CLIP_L14, activation="quick_gelu") | _CLIP,
    "vitb16": _vit(224, shared.IMAGE_TOWERS["vitb16"]) | _CLIP,  # of cosmos.py and clip.py
    "vitb32": _vit(224, shared.IMAGE_TOWERS["vitb32"]) | _CLIP,
    "siglip_b16": _HALF
    | _vit(
        224,
        shared.IMAGE_TOWERS["vitb16"],
        pool="map",
        activation="gelu_tanh",
        norm_epsilon=1e-6,
    ),
    "catlip_b16": _catlip("b16"),
    "catlip_l16": _catlip("l16"),
    "catlip_h16": _catlip("h16"),
    "eva02_l14": dict(
        tower="eva02",
        image=dict(image_size=224, **shared.EVA2_L),
        part="vision",
        image_size=224,
        **_CLIP,
    ),
    "demo": _vit(40, _DEMO, activation="quick_gelu") | _CLIP,  # of demo.py
}
STAGES = {
    "pretrain": dict(
        total_steps=2181,  # 558,128 captions, once
        global_batch=256,
        learning_rate=1e-3,
        context_length=128,
        data=shared.prepared("llava_pretrain"),
        tasks=dict(caption=1.0, conversation=1.0),
    ),
    "tune": dict(
        total_steps=5198,  # 665,298 conversations, once
        global_batch=128,
        learning_rate=2e-5,
        context_length=512,
        data=dict(
            name="mixture",
            # About the shares of questions and of LLaVA-Instruct in the published mixture.
            sources=(
                dict(shared.prepared("vqa"), weight=3.0),
                dict(shared.prepared("conversations"), weight=1.0),
            ),
        ),
        tasks=dict(vqa=1.0, conversation=1.0),
    ),
}


def get_config(arg=None):
    options = shared.parse_options(
        arg,
        stage="pretrain",
        tower="",
        image="models/tower",
        weights="",
        language="models/vicuna",
        start="runs/vlm_pretrain",
        experts=False,
        data="llava",
        runlocal=False,
    )
    shared.choose("data", dict.fromkeys(("llava", "scenes")), options.data)
    stage = shared.choose("stage", STAGES, options.stage)
    demo = options.data == "scenes"
    name = options.tower or ("demo" if demo else "clip_l14_336")
    tower = shared.choose("tower", TOWERS, name)
    if demo and name != "demo":
        raise ValueError(f"data=scenes is for the tower of demo.py, not tower={name}.")
    image = dict(tower["image"])
    # EVA's last block is left out already, and there is no norm behind it.
    dropped_blocks = int(tower["tower"] != "eva02")
    if dropped_blocks:
        image.update(layers=image["layers"] - dropped_blocks, final_norm=False)
    pretraining = options.stage == "pretrain"

    config = ml_collections.ConfigDict()
    config.total_steps = stage["total_steps"]
    config.global_batch = stage["global_batch"]
    config.init = _init(options, tower["part"], dropped_blocks)
    config.data = stage["data"]
    config.preprocess = dict(
        image_size=tower["image_size"],
        image_token_size=image.get("patch_size", 16),
        resize="squash",
        tokenizer="llama:models/vicuna-7b-v1.5/tokenizer.model",
        context_length=stage["context_length"],
        mean=tower["mean"],
        std=tower["std"],
    )
    config.views = dict(name="cogvlm", tasks=stage["tasks"])
    config.loader = dict(num_workers=16, num_threads=1)

    config.method = dict(
        name="cogvlm",
        model=dict(tower=tower["tower"], image=image, text=shared.VICUNA_7B, adapter_mlp_dim=4096),
        dtype="bfloat16",
        remat="full",
        accumulate_steps=1,
    )
    if not options.experts:
        config.method.model.expert_parts = ()
    trained = "adapter" if pretraining else "adapter|language"
    if options.experts and pretraining:
        trained += "|language/blocks/vision"
    config.optim = dict(
        learning_rate=stage["learning_rate"],
        warmup_steps=math.ceil(0.03 * config.total_steps),
        weight_decay=0.0,
        beta2=0.999,
        clip_norm=1.0,
        rules=((f"({trained})/.*", 1.0, 0.0), (f"(?!({trained})/).*", 0.0, 0.0)),
    )

    config.mesh = dict(data=1, fsdp=-1)
    config.checkpoint = dict(every_steps=500, keep_latest=2)
    config.log_every_steps = 20
    schedule = dict(weights="model", every_steps=1000, batch_size=128)
    if pretraining:
        held_out = dict(data=shared.prepared("coco_val2017"), caption_field="txt")
        config.evals = dict(captions=dict(evaluator="caption_loss", **held_out, **schedule))
    elif demo or options.runlocal:
        config.evals = dict(questions=dict(evaluator="vqa", **schedule))
    else:
        if name == "clip_l14_336":  # LLaVA-1.5's own
            schedule["paper"] = "llava-1.5-7b"
        config.evals = shared.suite_prepared("llava", **schedule)
    if demo:
        _like_the_demo(config, pretraining)
    return shared.run_local(config) if options.runlocal else config


def _init(options, part, dropped_blocks):
    if options.stage == "tune":
        parts = {name: name for name in ("vision", "adapter", "language")}
        return dict(model=dict(model=options.start, parts=parts))
    language = {"language": "language"}
    if options.experts:
        language["language/blocks/vision"] = "language/blocks/language"
    image = dict(model=options.image, parts={"vision": part}, dropped_blocks=dropped_blocks)
    if options.weights:
        image["weights"] = options.weights
    return dict(language=dict(model=options.language, parts=language), image=image)


def _like_the_demo(config, pretraining):
    """The sizes of demo.py and demo_cogvlm.py, and some minutes on a CPU."""
    config.total_steps = 400 if pretraining else 1200
    config.global_batch = 32
    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.preprocess.update(tokenizer="llama:scenes", context_length=36)
    config.views = dict(
        name="cogvlm",
        tasks=dict(caption=1.0) if pretraining else dict(caption=1.0, vqa=2.0),
        caption_fields=("caption",),
    )
    config.loader.update(num_workers=0, num_threads=1)
    config.method.update(dtype="float32", unroll=True, remat=None)
    text = dict(vocab_size=640, width=128, layers=4, heads=4, mlp_dim=344)
    config.method.model.update(text=text, adapter_mlp_dim=344)
    config.optim.update(learning_rate=2e-3, warmup_steps=50)
    config.checkpoint.every_steps = 400
    config.log_every_steps = 10
    [held_out] = config.evals.values()
    held_out.update(every_steps=400, batch_size=50, controls=("blind", "shuffled"))
    held_out.data = dict(name="scenes", split="val", size=200, image_size=64)
    if "caption_field" in held_out:
        held_out.caption_field = "caption"
