"""SigLIP (arXiv 2303.15343): two towers without causal mask, sigmoid loss, attention-head pooling.

Options: model=vitb16|vitb32, data=cc3m|cc12m|yfcc15m|merged30m|pixelprose, captions=raw|random (as
in clip.py), runlocal, and tokenizer=clip|sentencepiece:PATH (the released models use a 32,000-piece
SentencePiece model: set vocab_size with it).
Data: prepared shards in data/<name> (see README); retrieval is evaluated on data/coco_val2017.
docs/recipes.md says what differs from the published run.
"""

import ml_collections

from big_vlp import recipes as shared

# big_vision's rule: kernels decay; tables, the probe and vectors do not.
DECAY_RULES = (
    (".*kernel", 1.0, 1.0),
    (".*(embedding|probe|bias|scale)", 1.0, 0.0),
)


def get_config(arg=None):
    options = shared.parse_options(
        arg,
        model="vitb16",
        data="cc3m",
        captions="raw",
        tokenizer="clip",
        vocab_size=49_408,
        runlocal=False,
    )
    pairs = shared.choose("data", shared.PRETRAINING_PAIRS, options.data)
    image_tower = shared.choose("model", shared.IMAGE_TOWERS, options.model)

    config = ml_collections.ConfigDict()
    config.global_batch = 16_384  # published: 32,768, of billions of pairs
    config.total_steps = shared.steps_of(pairs, config.global_batch, epochs=32)

    config.data = shared.prepared(options.data)
    config.preprocess = dict(
        image_size=224,
        tokenizer=options.tokenizer,
        context_length=64,
        resize="squash",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    config.views = dict(
        name="clip",
        caption_mode=shared.caption_mode(options.captions, options.data),
        crop_scale=None,
    )
    config.loader = dict(num_workers=16, num_threads=1)

    config.method = dict(
        name="clip",
        model=dict(
            image=dict(**image_tower, pool="map", norm_epsilon=1e-6, activation="gelu_tanh"),
            text=dict(
                vocab_size=options.vocab_size,
                width=768,
                layers=12,
                heads=12,
                causal=False,
                pool="last",
                norm_epsilon=1e-6,
                activation="gelu_tanh",
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
        # Not published for sets of this size: a tenth of the run, at most 2,000 steps.
        warmup_steps=min(2000, config.total_steps // 10),
        # Published as 1e-4, which big_vision subtracts without the peak rate: 1e-4 / 1e-3.
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        clip_norm=1.0,
        rules=DECAY_RULES,
    )

    config.checkpoint = dict(every_steps=1000, keep_latest=2, keep_every_steps=20_000)
    config.evals = dict(
        coco_val2017=dict(
            evaluator="retrieval",
            weights="model",
            every_steps=2500,
            data=dict(name="prepared", path="data/coco_val2017"),
            caption_field="txt",
            equal_captions="reference",
            batch_size=512,
            task="cosmos/coco_val2017",
        )
    )
    if options.runlocal:
        return shared.run_local(config)
    config.evals = shared.suites_in_data(config.total_steps) | config.evals.to_dict()
    return config
