"""CatLIP on real clip art, on a CPU in a quarter of an hour.

Data: prepared shards in data/openclipart/train and data/openclipart/val, and the vocabulary of the
former, data/openclipart/vocabulary.tsv; see README.
"""

import ml_collections

from big_vlp import recipes as shared


def get_config(arg=None):
    shared.parse_options(arg)
    config = ml_collections.ConfigDict()
    config.global_batch = 64
    config.total_steps = 800

    config.data = dict(name="prepared", path="data/openclipart/train")
    config.preprocess = dict(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config.plan = dict(name="variable", sizes=(48, 64, 80), batch_multiple=8)
    config.views = dict(
        name="catlip",
        vocabulary="data/openclipart/vocabulary.tsv",
        crop_scale=(0.5, 1.0),
        flip_prob=0.5,
    )
    config.loader = dict(num_workers=0, num_threads=1)

    config.method = dict(
        name="catlip",
        # Small pictures need small patches: 8 pixels.
        model=dict(width=128, layers=3, heads=4, num_positions=64, output_stride=8),
        ema_decay=0.99,
        prior=0.003,
        dtype="float32",
        unroll=True,
    )
    config.optim = dict(
        learning_rate=1e-3,
        warmup_steps=100,
        weight_decay=0.2,
        beta2=0.999,
        clip_norm=1.0,
        rules=shared.CATLIP_RULES[:2],
    )

    config.checkpoint = dict(every_steps=200, keep_latest=2)
    config.log_every_steps = 10
    config.evals = dict(
        words=dict(
            evaluator="average_precision",
            weights="averaged",
            every_steps=200,
            data=dict(
                name="mined_labels",
                data=dict(name="prepared", path="data/openclipart/val"),
                vocabulary="data/openclipart/vocabulary.tsv",
            ),
            batch_size=100,
        )
    )
    return config
