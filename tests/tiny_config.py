"""A run on scenes that takes seconds, for tests of the whole program.

Options: method=cosmos|clip|catlip|cogvlm, dtype=float32|bfloat16, data=DIR of prepared shards in
place of the scenes
"""

import ml_collections

from big_vlp.recipes import CATLIP_RULES, SCENES_VOCABULARY, parse_options


def get_config(arg=None):
    options = parse_options(arg, method="cosmos", dtype="float32", data="")
    config = ml_collections.ConfigDict()
    config.seed = 1
    config.global_batch = 8
    config.total_steps = 30
    config.data = dict(name="scenes", size=100, image_size=48)
    if options.data:
        config.data = dict(name="prepared", path=options.data)
    config.preprocess = dict(image_size=16, tokenizer="clip", context_length=16)
    config.views = dict(
        name="cosmos", local_size=8, num_global=2, num_local=1, num_captions=3, crop_scale=0.4
    )
    config.loader = dict(num_workers=0, num_threads=1)
    config.method = dict(
        name="cosmos",
        model=dict(
            image=dict(patch_size=8, width=16, layers=2, heads=2),
            text=dict(vocab_size=49_408, width=16, layers=2, heads=2),
            embed_dim=16,
        ),
        ema_decay=0.9,
        text_groups=((0.5, 12),),
        photometric=dict(
            global_1=dict(blur_prob=1.0), global_2=dict(solarize_prob=0.2), local=dict()
        ),
    )
    if options.method == "clip":
        config.views = dict(name="clip")
        model, text_groups = config.method.model, config.method.text_groups
        config.method = dict(name="clip", model=model, text_groups=text_groups)
    if options.method == "catlip":
        config.preprocess = dict(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
        config.views = dict(name="catlip", vocabulary=SCENES_VOCABULARY)
        model = dict(width=16, layers=2, heads=2, num_positions=4)
        augment = dict(total_steps=30)
        config.method = dict(name="catlip", model=model, augment=augment)
    config.optim = dict(learning_rate=1e-3, warmup_steps=4, weight_decay=0.1)
    config.plan = dict(name="constant")
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.checkpoint = dict(every_steps=5, keep_latest=2)
    config.log_every_steps = 1
    config.on_nonfinite = "stop"
    config.evals = dict(
        retrieval=dict(
            evaluator="retrieval",
            every_steps=20,
            weights="averaged" if options.method == "cosmos" else "model",
            data=dict(name="scenes", split="val", size=10, image_size=48),
            caption_field="caption",
            batch_size=4,
        )
    )
    if options.method == "catlip":
        config.optim.rules = CATLIP_RULES
        config.plan = dict(name="variable", sizes=(16, 32), batch_multiple=8)
        words = dict(
            name="mined_labels", vocabulary=SCENES_VOCABULARY, data=config.evals.retrieval.data
        )
        config.evals = dict(
            words=dict(
                evaluator="average_precision",
                every_steps=20,
                weights="averaged",
                data=words,
                batch_size=4,
            )
        )
    if options.method == "cogvlm":
        config.preprocess = dict(
            image_size=16,
            image_token_size=8,
            resize="squash",
            tokenizer="llama:scenes",
            context_length=24,
        )
        config.views = dict(name="cogvlm", tasks=dict(caption=1.0, vqa=1.0))
        block = dict(width=16, layers=2, heads=2, mlp_dim=24)
        config.method = dict(
            name="cogvlm",
            model=dict(
                image=dict(image_size=16, patch_size=8, **block),
                text=dict(vocab_size=640, dropout=0.1, **block),
                adapter_mlp_dim=24,
            ),
            ema_decay=0.9,
            lora=dict(kernels=("language/blocks/language/attn/.*",), rank=2, alpha=2.0),
            max_new_tokens=2,
            remat="full",
        )
        # The language model and the image tower stay what they are.
        trained = "adapter/.*|language/blocks/vision/.*|.*/lora_[ab]"
        config.optim.rules = ((trained, 1.0, 1.0), (f"(?!{trained}).*", 0.0, 0.0))
        data = config.evals.retrieval.data
        shared = dict(every_steps=20, weights="averaged", data=data, batch_size=4)
        config.evals = dict(
            captions=dict(evaluator="caption_loss", controls=(), **shared),
            questions=dict(evaluator="vqa", **shared),
        )
    config.method.dtype = options.dtype
    return config
