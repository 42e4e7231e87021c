"""Segmentation with a pretrained CatLIP tower and DeepLabv3 (arXiv 2404.15653, appendix).

Options: data=ade20k|scenes, model=b16|l16|h16, start=DIR (a model directory of CatLIP),
layer_decay=1.0 (learning rates that fall towards the first layer). docs/recipes.md holds the
published numbers.
Data: data/ADEChallengeData2016, see docs/data.md. data=scenes needs no file and no model: it trains
a tiny tower of its own in minutes on a CPU.
"""

import ml_collections

from big_vlp import recipes as shared

ADE20K_IMAGES, ADE20K_CLASSES = 20_210, 150
HEAD_RULES = (("head/.*kernel", 1.0, 1.0), ("head/.*(bias|scale)", 1.0, 0.0))


def get_config(arg=None):
    options = shared.parse_options(
        arg, data="ade20k", model="b16", start="runs/catlip", layer_decay=1.0
    )
    shared.choose("data", dict.fromkeys(("ade20k", "scenes")), options.data)
    tower = shared.choose("model", shared.CATLIP_TOWERS, options.model)
    if options.data == "scenes":
        tower = dict(width=64, layers=2, heads=2)
    config = ml_collections.ConfigDict()
    config.global_batch = 32
    steps_per_epoch = round(ADE20K_IMAGES / config.global_batch)
    config.total_steps = 50 * steps_per_epoch
    config.init = dict(tower=dict(model=options.start))

    path = "data/ADEChallengeData2016"
    config.data = dict(name="ade20k", path=path, split="training")
    config.preprocess = dict(
        image_size=512,
        resize="squash",
        interpolation="bicubic",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    config.views = dict(
        name="segmentation",
        num_classes=ADE20K_CLASSES,
        short_side=(0.5, 1.5),
        max_long_side=2.0,
        max_class_share=0.75,
        flip_prob=0.5,
    )
    config.loader = dict(num_workers=8, num_threads=1)

    config.method = dict(
        name="segmentation",
        model=dict(tower, class_token=False, output_stride=8),
        head=dict(channels=512, rates=(12, 24, 36), dropout=0.1),
        ema_decay=1 - 1e-4,
        augment=dict(total_steps=config.total_steps, epoch_steps=steps_per_epoch),
        dtype="float32",
        remat="dots",
    )
    tower_rules = shared.layerwise_rules(tower["layers"], options.layer_decay)
    tower_rules = tuple(rule for rule in tower_rules if not rule[0].startswith("classifier"))
    config.optim = dict(
        learning_rate=3e-5,
        initial_learning_rate=1e-6,
        final_learning_rate=3e-6,
        epoch_steps=steps_per_epoch,
        warmup_steps=500,
        weight_decay=0.1,
        beta2=0.999,
        rules=(*tower_rules, *HEAD_RULES),
    )

    config.checkpoint = dict(every_steps=1000, keep_latest=2)
    config.evals = dict(
        val=dict(
            evaluator="segmentation",
            weights="averaged",
            every_steps=2000,
            data=dict(name="ade20k", path=path, split="validation"),
            batch_size=16,
        )
    )
    return on_scenes(config) if options.data == "scenes" else config


def on_scenes(config):
    """The same recipe for small images of shapes, whose background has no label."""
    config.init = {}
    config.total_steps = 500
    config.data = dict(name="scenes", split="train", size=20_000, image_size=96)
    config.preprocess.image_size = 96
    config.views.update(num_classes=shared.NUM_SHAPES, short_side=(0.75, 1.25))
    config.loader.num_workers = 0
    config.method.head = dict(channels=64, rates=(2, 4, 6), dropout=0.1)
    # Meant for long runs: it changes images so much that a short one learns little.
    config.method.augment = None
    config.method.ema_decay = 0.98
    config.method.remat = None
    config.optim.update(learning_rate=3e-3, final_learning_rate=1e-5, warmup_steps=50)
    config.optim.epoch_steps = None
    config.optim.rules = tuple(r for r in config.optim.rules if not r[0].startswith("augment"))
    config.checkpoint.every_steps = 250
    config.log_every_steps = 20
    config.evals.val.every_steps = 250
    config.evals.val.data = dict(name="scenes", split="val", size=200, image_size=96)
    return config
