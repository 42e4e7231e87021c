"""CatLIP on rendered scenes, on a CPU in minutes; needs no file.

The tower learns to name what is in the picture; `python -m big_vlp.show words` asks it.
"""

import ml_collections

from big_vlp import recipes as shared


def get_config(arg=None):
    shared.parse_options(arg)
    config = ml_collections.ConfigDict()
    config.global_batch = 64
    config.total_steps = 600

    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.preprocess = dict(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config.plan = dict(name="variable", sizes=(48, 64, 80), batch_multiple=8)
    # No flips: captions speak of sides. Small crops lose what the caption names.
    config.views = dict(
        name="catlip", vocabulary=shared.SCENES_VOCABULARY, crop_scale=(0.6, 1.0), flip_prob=0.0
    )
    config.loader = dict(num_workers=0, num_threads=1)

    config.method = dict(
        name="catlip",
        model=shared.DEMO_TOWER,
        ema_decay=0.98,
        prior=0.1,
        dtype="float32",
        unroll=True,
    )
    config.optim = dict(
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=0.1,
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
                data=dict(name="scenes", split="val", size=200, image_size=64),
                vocabulary=shared.SCENES_VOCABULARY,
            ),
            batch_size=50,
        )
    )
    return config
