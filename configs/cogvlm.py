"""CogVLM (arXiv 2311.03079): pretraining, alignment, LoRA, and the paper's ablations.

Options: size=17b|19b, stage=1|2|sft|sft_v1|grounding|lora, ablation=NAME, start=DIR, runlocal
Data: prepared shards in data/NAME, see STAGES and docs/data.md.

17b is EVA2-CLIP-E and Vicuna-7B, 19b CogVLM2's form with Llama-3-8B. Stage 1 learns captions at
224 pixels; stage 2 captions and boxes, at 490 pixels in its second half; sft is CogVLM-Chat by the
paper's second version, sft_v1 by its first; grounding the same with boxes; lora the fine-tuning
example of the released code. A run starts from the model directory DIR: one of `big_vlp.convert
import cogvlm_parts` for stage 1 (19b: a released CogVLM2), that of the run before for the others.
Released weights of 490 pixels have a larger position table:
--config.method.model.image.image_size=490. What is not published is a guess: warm-up of sft,
averages, clipping, the text's length after pretraining, the shares of tasks. docs/recipes.md holds
all numbers beside the published ones.
"""

import ml_collections

from big_vlp import recipes as shared

EVA2_E = dict(patch_size=14, width=1792, layers=63, heads=16, mlp_dim=15_360)
LLAMA3_8B = dict(
    vocab_size=128_256,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    mlp_dim=14_336,
    rope_base=5e5,
    pad_id=128_002,
)
# The model, the image sizes of stage 1 and after stage 2's switch, the tokenizer.
SIZES = {
    "17b": dict(
        model=dict(
            image=dict(image_size=224, **EVA2_E), text=shared.VICUNA_7B, adapter_mlp_dim=11_008
        ),
        image_sizes=(224, 490),
        image_token_size=14,
        tokenizer="llama:models/vicuna-7b-v1.5/tokenizer.model",
    ),
    "19b": dict(
        model=dict(
            image=dict(image_size=224, downsample=True, **EVA2_E),
            text=LLAMA3_8B,
            adapter_mlp_dim=14_336,
            expert_qkv_bias=True,
        ),
        image_sizes=(224, 1344),
        image_token_size=28,
        tokenizer="llama3:models/llama-3-8b/tokenizer.json",
    ),
}

_MATRICES, _VECTORS = ".*(kernel|embedding|class_token|boi|eoi)", ".*(scale|bias)"

# Arguments of the model; for those without, see get_config.
ABLATIONS = {
    "none": {},
    "adapter": dict(expert_parts=()),
    "llm": dict(expert_parts=()),
    "every4": dict(expert_every=4),
    "ffn": dict(expert_parts=("mlp",)),
    "random": {},
    "full_mask": dict(image_mask="full"),
    "ssl": {},
    "eva2_l": dict(tower="eva02"),
    "no_ema": {},
}

_PAIRS, _BOXES = shared.prepared("laion_coyo"), shared.prepared("grounded")
_QUESTIONS, _CHATS = shared.prepared("vqa"), shared.prepared("conversations")
_CAPTION_LOSS = dict(
    evaluator="caption_loss",
    data=dict(name="prepared", path="data/coco_val2017"),
    caption_field="txt",
)
_VQA = dict(evaluator="vqa", data=dict(name="prepared", path="data/vqav2_val"))
_REFERRING = dict(evaluator="referring", data=dict(name="prepared", path="data/refcoco_val"))
_SFT = dict(
    total_steps=6000,
    global_batch=1024,
    learning_rate=1e-5,
    warmup_steps=50,
    weight_decay=0.1,
    context_length=256,
)
_CHAT = dict(
    _SFT,
    data=dict(name="mixture", sources=(dict(_QUESTIONS, weight=1.0), dict(_CHATS, weight=1.0))),
    tasks=dict(vqa=1.0, conversation=1.0),
    evals=dict(questions=_VQA),
)
STAGES = {
    "1": dict(
        total_steps=120_000,
        global_batch=8192,
        learning_rate=1e-4,
        warmup_steps=12_000,
        weight_decay=0.05,
        context_length=58,
        data=_PAIRS,
        tasks=dict(caption=1.0),
        evals=dict(captions=_CAPTION_LOSS),
    ),
    "2": dict(
        total_steps=60_000,
        global_batch=1024,
        learning_rate=1e-5,
        warmup_steps=1200,
        weight_decay=0.05,
        context_length=58,
        data=dict(name="mixture", sources=(dict(_PAIRS, weight=1.0), dict(_BOXES, weight=1.0))),
        tasks=dict(caption=1.0, rec=1.0),
        evals=dict(captions=_CAPTION_LOSS, places=_REFERRING),
    ),
    "sft": _CHAT,
    "sft_v1": dict(_CHAT, total_steps=8000, global_batch=640),
    "grounding": dict(
        _SFT,
        data=_BOXES,
        tasks=dict(rec=1.0, reg=1.0, grounded=1.0, vqa=1.0, pointing=1.0, cot=1.0),
        evals=dict(places=_REFERRING),
    ),
    "lora": dict(
        total_steps=800,
        global_batch=32,
        learning_rate=1e-5,
        warmup_steps=16,
        weight_decay=0.05,
        context_length=58,
        data=_QUESTIONS,
        tasks=dict(vqa=1.0),
        evals=dict(questions=_VQA),
    ),
}


def get_config(arg=None):
    options = shared.parse_options(
        arg, size="17b", stage="1", ablation="none", start="start", runlocal=False
    )
    size = shared.choose("size", SIZES, options.size)
    stage = dict(shared.choose("stage", STAGES, options.stage))
    if (options.stage, options.ablation) == ("lora", "eva2_l"):
        raise ValueError(
            "stage=lora trains some of the 63 blocks of EVA2-CLIP-E; ablation=eva2_l has "
            f"{shared.EVA2_L['layers']} of another kind."
        )
    first_size, last_size = size["image_sizes"]
    pretraining = options.stage in ("1", "2")

    config = ml_collections.ConfigDict()
    config.global_batch = stage["global_batch"]
    config.total_steps = stage["total_steps"]

    image_loss = float(options.ablation == "ssl" and pretraining)
    parts = ["vision", "adapter", "language"]
    if image_loss and options.stage == "2":
        parts.append("feature_head")
    config.init = dict(model=dict(model=options.start, parts={part: part for part in parts}))
    if options.ablation == "random" and options.stage == "1":
        config.init.model.parts["language/blocks/vision"] = None
    config.data = stage["data"]
    config.preprocess = dict(
        image_size=first_size if options.stage == "1" else last_size,
        image_token_size=size["image_token_size"],
        resize="squash",
        tokenizer=size["tokenizer"],
        context_length=stage["context_length"],
    )
    if options.stage == "2":
        config.plan = dict(name="switch", first_size=first_size, at_step=stage["total_steps"] // 2)
    config.views = dict(name="cogvlm", tasks=stage["tasks"])
    config.loader = dict(num_workers=16, num_threads=1)

    config.method = dict(
        name="cogvlm",
        model={**size["model"], **shared.choose("ablation", ABLATIONS, options.ablation)},
        image_loss=image_loss,
        ema_decay=0.9999 if pretraining and options.ablation != "no_ema" else None,
        dtype="bfloat16",
        remat="full",
        accumulate_steps=1,
    )
    config.method.model.text = {**size["model"]["text"], "dropout": 0.1}
    if options.ablation == "eva2_l":
        config.method.model.image.update(shared.EVA2_L)
    if options.stage == "lora":
        # Language weights and image tower, not the experts; and the tower's MLPs 46..54 whole.
        attention = (
            "(language/blocks/language|vision/transformer/blocks)"
            "/attn/(qkv|query|key_value|out)/kernel"
        )
        config.method.lora = dict(kernels=(attention,), rank=10, alpha=1.0)
    config.optim = dict(
        learning_rate=stage["learning_rate"],
        final_learning_rate=stage["learning_rate"] / 10,
        warmup_steps=stage["warmup_steps"],
        # The released trainer's, for runs that fine-tune; of other stages nothing is known.
        hold_steps=100 if options.stage == "lora" else 0,
        weight_decay=stage["weight_decay"],
        beta2=0.95,
        clip_norm=0.1 if options.stage == "lora" else 1.0,
        rules=_rules(options, pretraining),
    )

    # Rows split over all devices, and so is every large parameter.
    config.mesh = dict(data=1, fsdp=-1)
    config.checkpoint = dict(every_steps=500, keep_latest=2, keep_every_steps=10_000)
    config.log_every_steps = 20
    weights = "averaged" if config.method.ema_decay else "model"
    config.evals = {
        name: dict(evaluator, weights=weights, every_steps=2000, batch_size=256)
        for name, evaluator in stage["evals"].items()
    }
    return shared.run_local(config) if options.runlocal else config


def _rules(options, pretraining: bool) -> tuple:
    """Optimizer rules: (parameters, share of the learning rate, share of the decay). Norms and
    biases do not decay."""
    if options.stage == "lora":
        whole = tuple(float(46 <= layer <= 54) for layer in range(EVA2_E["layers"]))
        mlp = "vision/transformer/blocks/mlp/"
        return (
            (".*/lora_[ab]", 1.0, 1.0),
            (f"{mlp}.*kernel", whole, 1.0),
            (f"{mlp}.*bias", whole, 0.0),
            (f"(?!{mlp})(?!.*lora_).*", 0.0, 0.0),
        )
    experts = ABLATIONS[options.ablation].get("expert_parts", ("qkv", "out", "mlp"))
    trained = "adapter"
    if experts:
        trained = "(adapter|language/blocks/vision)"
    rules = [(f"{trained}/{_MATRICES}", 1.0, 1.0), (f"{trained}/{_VECTORS}", 1.0, 0.0)]
    if options.ablation == "ssl" and pretraining:
        rules.append(("feature_head/kernel", 1.0, 1.0))
    old_recipe = options.stage == "sft_v1"
    tower = 0.0 if pretraining or old_recipe else 0.1
    base = 0.1 if old_recipe else 0.0 if pretraining and options.ablation != "llm" else 1.0
    for part, rate in (("vision/", tower), ("language/(?!blocks/vision)", base)):
        if rate:
            rules += [(part + _MATRICES, rate, 1.0), (part + _VECTORS, rate, 0.0)]
        else:
            rules.append((f"{part}.*", 0.0, 0.0))
    return tuple(rules)
