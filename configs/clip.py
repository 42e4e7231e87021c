"""CLIP (arXiv 2103.00020): two towers, softmax loss, one crop and one caption per image.

Options: model=vitb16|vitb32, data=cc3m|cc12m|yfcc15m|merged30m|pixelprose, captions=raw|random,
runlocal. Raw captions are what people wrote, as CLIP had them; random ones a sentence of any
caption, which is the text that COSMOS sees.
Data: prepared shards in data/<name> (see README); retrieval is evaluated on data/coco_val2017.
docs/recipes.md says what differs from the published run.
"""

import ml_collections

from big_vlp import recipes as shared


def get_config(arg=None):
    options = shared.parse_options(arg, model="vitb16", data="cc3m", captions="raw", runlocal=False)
    pairs = shared.choose("data", shared.PRETRAINING_PAIRS, options.data)
    image_tower = shared.choose("model", shared.IMAGE_TOWERS, options.model)

    config = ml_collections.ConfigDict()
    config.global_batch = 4096  # published: 32,768, of 400 M pairs
    config.total_steps = shared.steps_of(pairs, config.global_batch, epochs=32)

    config.data = shared.prepared(options.data)
    config.preprocess = dict(image_size=224, tokenizer="clip", context_length=77)
    config.views = dict(
        name="clip",
        caption_mode=shared.caption_mode(options.captions, options.data),
        crop_scale=(0.9, 1.0),  # resized by OpenCV; published runs by PIL, bicubic
    )
    config.loader = dict(num_workers=16, num_threads=1)

    config.method = dict(
        name="clip",
        # The exact GELU, as open_clip's; OpenAI's towers have activation="quick_gelu".
        model=dict(image=image_tower, text=shared.TEXT_TOWER, embed_dim=512),
        loss_type="softmax",
        dtype="bfloat16",  # published: fp16 with a loss scale
        remat="dots",
        accumulate_steps=1,
        # Shares of the captions and lengths, of sentences up to 25 tokens on average; the rest is
        # whole. `python -m input_pipeline.doctor` measures yours.
        text_groups=((0.45, 24), (0.25, 40)),
    )
    config.optim = dict(
        learning_rate=5e-4,
        warmup_steps=2000,
        weight_decay=0.2,
        beta1=0.9,
        beta2=0.98,
        epsilon=1e-6,
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
