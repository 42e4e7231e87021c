"""COSMOS on rendered scenes, on a CPU in minutes; needs no file.

Options: method=cosmos|clip; clip trains the same towers on single pairs, for comparison.
"""

import ml_collections

from big_vlp import recipes as shared


def get_config(arg=None):
    options = shared.parse_options(arg, method="cosmos")
    shared.choose("method", dict.fromkeys(("cosmos", "clip")), options.method)
    config = ml_collections.ConfigDict()
    config.global_batch = 64
    config.total_steps = 200

    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.preprocess = dict(image_size=40, tokenizer="clip", context_length=40)
    # No flips and no colour changes: captions speak of sides and colours.
    config.views = dict(
        name="cosmos",
        local_size=16,
        num_global=2,
        num_local=2,
        crop_scale=0.6,
        min_local_scale=0.2,
        caption_mode="textcrop",
        num_captions=4,
        flip_prob=0.0,
    )
    config.loader = dict(num_workers=0, num_threads=1)

    config.method = dict(
        name="cosmos",
        model=dict(
            image=dict(patch_size=8, width=128, layers=2, heads=4, activation="quick_gelu"),
            text=dict(vocab_size=49_408, width=128, layers=2, heads=4, activation="quick_gelu"),
            embed_dim=128,
        ),
        ema_decay=0.99,
        dtype="float32",
        unroll=True,
    )
    config.optim = dict(learning_rate=2e-3, warmup_steps=50, weight_decay=0.1, clip_norm=1.0)

    config.checkpoint = dict(every_steps=100, keep_latest=2)
    config.log_every_steps = 10
    held_out = dict(data=dict(name="scenes", split="val", size=200, image_size=64), batch_size=50)
    config.evals = dict(
        retrieval=dict(
            evaluator="retrieval",
            weights="model",
            every_steps=100,
            caption_field="caption",
            **held_out,
        ),
        hard_negatives=dict(
            evaluator="hard_negatives",
            weights="model",
            every_steps=100,
            caption_field="caption",
            **held_out,
        ),
    )
    if options.method == "clip":
        config.views = dict(name="clip", caption_mode="random", crop_scale=(0.6, 1.0))
        config.method = dict(
            name="clip",
            model=config.method.model,
            dtype="float32",
            unroll=True,
        )
    return config
