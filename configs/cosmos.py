"""COSMOS (arXiv 2412.01814) as published: ViT-B, 32 epochs, two global and six local views.

Options: model=vitb16|vitb32, data=cc3m|cc12m|yfcc15m|merged30m|pixelprose, runlocal.
Data: prepared shards in data/<name> (see README); retrieval is evaluated on data/coco_val2017.
docs/recipes.md says what differs from the published runs.
"""

import ml_collections

from big_vlp import recipes as shared


def get_config(arg=None):
    options = shared.parse_options(arg, model="vitb16", data="cc3m", runlocal=False)
    pairs = shared.choose("data", shared.PRETRAINING_PAIRS, options.data)
    image_tower = shared.choose("model", shared.IMAGE_TOWERS, options.model)
    small, prose = options.data == "cc3m", options.data == "pixelprose"

    config = ml_collections.ConfigDict()
    config.global_batch = 1024 if small else 4096
    config.total_steps = shared.steps_of(pairs, config.global_batch, epochs=32)

    config.data = shared.prepared(options.data)
    config.preprocess = dict(image_size=224, tokenizer="clip", context_length=77)
    config.views = dict(
        name="cosmos",
        local_size=96,
        num_global=2,
        num_local=6,
        crop_scale=0.4,  # resized by OpenCV; published runs by PIL, bicubic
        caption_mode="textcrop_pixelprose" if prose else "textcrop",
        num_captions=8,
    )
    config.loader = dict(num_workers=16, num_threads=1)

    config.method = dict(
        name="cosmos",
        model=dict(image=image_tower, text=shared.TEXT_TOWER, embed_dim=512),
        ema_decay=0.999 if small else 0.99,
        photometric=dict(
            global_1=dict(blur_prob=1.0),
            global_2=dict(blur_prob=0.1, solarize_prob=0.2),
            local=dict(blur_prob=0.5),
        ),
        dtype="bfloat16",  # published: fp16 with a loss scale
        remat="dots",
        accumulate_steps=1,
        # Shares of the local captions and lengths, of sentences up to 25 tokens on average; the
        # rest is whole. `python -m input_pipeline.doctor` measures yours.
        text_groups=((0.5, 24), (0.25, 40)),
    )
    config.optim = dict(
        learning_rate=5e-4,
        warmup_steps=2000,
        weight_decay=0.5,
        beta1=0.9,
        beta2=0.98,
        # Gradients are the true ones; released runs divided those of the encoders by the number of
        # GPUs (16 for cc3m, else 128), as if this were 1.6e-7, or 1.28e-6: see docs/recipes.md.
        epsilon=1e-8,
    )

    config.checkpoint = dict(every_steps=1000, keep_latest=2, keep_every_steps=20_000)
    coco = dict(
        evaluator="retrieval",
        every_steps=2500,
        data=dict(name="prepared", path="data/coco_val2017"),
        caption_field="txt",
        equal_captions="reference",
        batch_size=512,
        task="cosmos/coco_val2017",
        paper=f"cosmos_{options.model}_{options.data}",
    )
    config.evals = dict(
        coco_val2017=dict(**coco, weights="model"),
        coco_val2017_averaged=dict(**coco, weights="averaged"),
    )
    if options.runlocal:
        return shared.run_local(config)
    others = shared.suites_in_data(
        config.total_steps, weights=("model", "averaged"), paper=coco["paper"]
    )
    config.evals = others | config.evals.to_dict()
    return config
