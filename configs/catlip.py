"""CatLIP pretraining (arXiv 2404.15653, table 6): a ViT that predicts the nouns of captions.

Options: model=b16|l16|h16, data=cc3m|datacomp, runlocal.
Data: prepared shards in data/NAME, and the vocabulary that `python -m input_pipeline.vocabulary`
makes of them in data/NAME/vocabulary.tsv; see docs/data.md, and docs/recipes.md for what differs
from the published runs. Published runs of datacomp: 65,536
examples at 224 pixels on 64, 128 and 256 GPUs for b16, l16 and h16.
"""

import ml_collections

from big_vlp import recipes as shared
from input_pipeline.plans.variable import catlip_sizes

# Peak learning rate on datacomp.
LEARNING_RATES = {"b16": 1e-3, "l16": 6e-4, "h16": 4e-4}


def get_config(arg=None):
    options = shared.parse_options(arg, model="b16", data="datacomp", runlocal=False)
    tower = shared.choose("model", shared.CATLIP_TOWERS, options.model)
    peak = LEARNING_RATES[options.model]
    config = ml_collections.ConfigDict()

    # 13 sizes; smaller images come in larger batches, multiples of 64 as on the published 64 GPUs.
    config.plan = dict(
        name="variable", sizes=catlip_sizes(128, 320, 25, base=224, multiple=16), batch_multiple=64
    )
    if options.data == "cc3m":
        config.global_batch = 2048
        per_step = shared.mean_batch(config.plan.to_dict(), 224, config.global_batch)
        config.total_steps = 100 * round(2_900_000 / per_step)
        peak, warmup_steps = 2e-3, 5000  # the length of the warm-up is not published
        caption_fields = ("raw_caption",)  # one caption an image, of the seven in these shards
    else:
        shared.choose("data", dict.fromkeys(("cc3m", "datacomp")), options.data)
        config.global_batch = 65_536
        config.total_steps = 200_000  # the released loop makes one update more
        warmup_steps = 10_000
        caption_fields = None  # those of the vocabulary

    config.data = dict(name="prepared", path=f"data/{options.data}")
    config.preprocess = dict(
        image_size=224,
        resize_size=232,
        interpolation="bilinear",
        crop_rounding="down",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    config.views = dict(
        name="catlip",
        vocabulary=f"data/{options.data}/vocabulary.tsv",
        caption_fields=caption_fields,
        crop_scale=(0.08, 1.0),  # resized by OpenCV; published runs by PIL, bilinear
        flip_prob=0.5,
    )
    config.loader = dict(num_workers=8, num_threads=2)

    # BatchNorm sees the whole batch, in published runs the images of one GPU.
    config.method = dict(
        name="catlip",
        model=tower,
        ema_decay=1 - 5e-4,
        augment=dict(total_steps=config.total_steps),
        dtype="bfloat16",
        remat="dots",
        accumulate_steps=1,
    )
    config.optim = dict(
        learning_rate=peak,  # published rates are rounded to 8 decimals
        initial_learning_rate=1e-6,
        final_learning_rate=peak / 100,
        warmup_steps=warmup_steps,
        weight_decay=0.2,
        beta2=0.999,
        clip_norm=1.0,
        rules=shared.CATLIP_RULES,
    )

    config.checkpoint = dict(every_steps=5000, keep_latest=2, keep_every_steps=50_000)
    config.log_every_steps = 100
    if options.runlocal:
        config = shared.run_local(config)
    return config
