"""Real pairs on a CPU: COSMOS, or CLIP, on clip art with noisy titles, in a quarter of an hour.

Options: method=cosmos|clip.
Data: two directories of prepared shards, data/openclipart/train and data/openclipart/val, with
the caption fields raw_caption (the title) and keywords; see README.
"""

import ml_collections

from big_vlp import recipes as shared


def get_config(arg=None):
    options = shared.parse_options(arg, method="cosmos")
    shared.choose("method", dict.fromkeys(("cosmos", "clip")), options.method)
    config = ml_collections.ConfigDict()
    config.global_batch = 64
    config.total_steps = 350

    config.data = dict(name="prepared", path="data/openclipart/train")
    # Titles and keywords are a few words long.
    config.preprocess = dict(image_size=64, tokenizer="clip", context_length=20)
    config.loader = dict(num_workers=0, num_threads=1)

    towers = dict(
        image=dict(patch_size=8, width=128, layers=3, heads=4, activation="quick_gelu"),
        text=dict(vocab_size=49_408, width=128, layers=2, heads=4, activation="quick_gelu"),
        embed_dim=128,
    )
    if options.method == "cosmos":
        colours = dict(hue=0.05, grey_prob=0.1)
        config.views = dict(
            name="cosmos",
            local_size=32,
            num_global=2,
            num_local=2,
            crop_scale=0.5,
            min_local_scale=0.2,
            caption_mode="textcrop",
            num_captions=4,
        )
        config.method = dict(
            name="cosmos",
            model=towers,
            ema_decay=0.99,
            photometric=dict(
                global_1=dict(**colours, blur_prob=0.0),
                global_2=dict(**colours, blur_prob=0.0),
                local=dict(**colours, blur_prob=0.0),
            ),
            dtype="float32",
            unroll=True,
        )
    else:
        config.views = dict(
            name="clip", caption_mode="random", crop_scale=(0.5, 1.0), flip_prob=0.5
        )
        config.method = dict(name="clip", model=towers, dtype="float32", unroll=True)
    config.optim = dict(learning_rate=1e-3, warmup_steps=100, weight_decay=0.5, clip_norm=1.0)

    config.checkpoint = dict(every_steps=250, keep_latest=2)
    config.log_every_steps = 10
    held_out = dict(
        evaluator="retrieval",
        every_steps=250,
        data=dict(name="prepared", path="data/openclipart/val"),
        caption_field="raw_caption",
        batch_size=100,
    )
    config.evals = dict(retrieval=dict(**held_out, weights="model"))
    if options.method == "cosmos":
        config.evals.retrieval_teacher = dict(**held_out, weights="averaged")
    return config
