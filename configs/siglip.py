"""SigLIP (arXiv 2303.15343): two towers without causal mask, sigmoid loss, attention-head pooling.

Options: model=vitb16|vitb32, data=cc3m|cc12m|yfcc15m|merged30m|pixelprose, runlocal, and
tokenizer=clip|sentencepiece:PATH (the released models use a 32,000-piece SentencePiece model: set
vocab_size with it).
Data: prepared shards in data/<name> (see README); retrieval is evaluated on data/coco_val2017.
"""

import ml_collections

from big_vlp import config as shared


def get_config(arg=None):
    options = shared.parse_options(
        arg, model="vitb16", data="cc3m", tokenizer="clip", vocab_size=49_408, runlocal=False
    )
    pairs = shared.choose("data", shared.PRETRAINING_PAIRS, options.data)
    image_tower = shared.choose("model", shared.IMAGE_TOWERS, options.model)

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.global_batch = 16_384
    config.total_steps = shared.steps_of(pairs, config.global_batch, epochs=32)

    config.data = shared.prepared(options.data)
    config.preprocess = dict(
        image_size=224,
        tokenizer=options.tokenizer,
        context_length=64,
        resize="squash",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        activation="gelu_tanh",
    )
    config.views = dict(
        name="clip",
        caption_mode="random_pixelprose" if options.data == "pixelprose" else "random",
        crop_scale=(0.9, 1.0),
    )
    config.loader = dict(num_workers=16, num_threads=1, prefetch_batches=2)

    config.method = dict(
        name="clip",
        model=dict(
            image=dict(**image_tower, pool="map"),
            text=dict(
                vocab_size=options.vocab_size,
                width=768,
                layers=12,
                heads=12,
                causal=False,
                pool="last",
            ),
            embed_dim=768,
        ),
        loss_type="sigmoid",
        dtype="bfloat16",
        remat="dots",
        accumulate_steps=1,
    )
    config.optim = dict(
        learning_rate=1e-3,
        warmup_steps=2000,
        weight_decay=1e-4,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        clip_norm=1.0,
    )

    config.plan = dict(name="constant")
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.checkpoint = dict(every_steps=1000, keep_latest=2, keep_every_steps=20_000)
    config.log_every_steps = 50
    config.on_nonfinite = "stop"
    config.max_bad_steps = 20
    config.evals = dict(
        coco=dict(
            evaluator="retrieval",
            weights="model",
            every_steps=2500,
            data=dict(name="prepared", path="data/coco_val2017"),
            caption_field="txt",
            batch_size=512,
        )
    )
    return shared.run_local(config) if options.runlocal else config
