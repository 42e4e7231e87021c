"""Classification with a pretrained image tower (arXiv 2404.15653, section 4 and appendix).

Options: task=imagenet|places|coco|scenes, mode=probe|finetune, init=random|transfer (of the
classifier), start=DIR (a model directory of CatLIP), model=b16|l16|h16, fraction=1.0 of the
training images, layer_decay=1.0 (learning rates that fall towards the first layer; for finetune),
image_size=PIXELS (of imagenet and places 224, or 512; coco has 512), runlocal.
Data: see "Labelled data" in docs/data.md. task=scenes needs no file: it goes on from the tower of
demo_catlip.py. runlocal needs no model either. docs/recipes.md holds the published numbers.
"""

import ml_collections

from big_vlp import recipes as shared
from input_pipeline.plans.variable import catlip_sizes

# Training images, classes, and source of training and validation data.
TASKS = {
    "imagenet": (
        1_281_167,
        1000,
        dict(name="tfds", dataset="imagenet2012", split="train", label="label"),
        dict(name="tfds", dataset="imagenet2012", split="validation", label="label"),
    ),
    "places": (
        1_803_460,
        365,
        dict(name="tfds", dataset="places365_small", split="train", label="label"),
        dict(name="tfds", dataset="places365_small", split="validation", label="label"),
    ),
    "coco": (
        118_287,
        80,
        dict(name="coco_labels", annotations="data/coco/annotations/instances_train2017.json",
             images="data/coco/train2017"),
        dict(name="coco_labels", annotations="data/coco/annotations/instances_val2017.json",
             images="data/coco/val2017"),
    ),
    "scenes": (
        20_000,
        8,
        dict(name="scenes", split="train", size=20_000, image_size=64),
        dict(name="scenes", split="val", size=500, image_size=64),
    ),
}  # fmt: skip


def get_config(arg=None):
    options = shared.parse_options(
        arg,
        task="imagenet",
        mode="probe",
        init="random",
        start="runs/catlip",
        model="b16",
        fraction=1.0,
        layer_decay=1.0,
        image_size=0,  # the task's
        runlocal=False,
    )
    images, num_classes, train, val = shared.choose("task", TASKS, options.task)
    shared.choose("mode", dict.fromkeys(("probe", "finetune")), options.mode)
    tower = shared.choose("model", shared.CATLIP_TOWERS, options.model)
    probe, multi_label = options.mode == "probe", options.task in ("coco", "scenes")
    if not 0 < options.fraction <= 1:
        raise ValueError(f"fraction={options.fraction}: give a share of the images in (0, 1].")
    if probe and options.layer_decay != 1:
        raise ValueError("layer_decay is for mode=finetune: a probe freezes the tower.")
    published = {"coco": (512,), "scenes": (224,)}.get(options.task, (224, 512))
    size = options.image_size or published[0]
    if size not in published:
        raise ValueError(f"image_size={size}: task={options.task} has {published}.")
    config = ml_collections.ConfigDict()
    config.global_batch = 256 if probe else 128 if multi_label else 512
    config.init = dict(tower=dict(model=options.start, classifier=options.init))

    config.data = dict(train, fraction=options.fraction) if options.fraction < 1 else train
    config.preprocess = dict(
        image_size=size,
        resize_size=232 if size == 224 else 512,
        interpolation="bilinear",
        crop_rounding="down",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    config.plan = dict(name="constant")
    if not probe:
        given = (128, 320, 7, 32) if size == 224 else (256, 512, 9, 32)
        low, high, count, multiple = (256, 768, 25, 16) if multi_label else given
        sizes = catlip_sizes(low, high, count, base=size, multiple=multiple)
        config.plan = dict(name="variable", sizes=sizes, batch_multiple=8)
    # An epoch is one pass; small images come in batches above the nominal one.
    per_step = shared.mean_batch(config.plan.to_dict(), size, config.global_batch)
    steps_per_epoch = max(1, round(images * options.fraction / per_step))
    config.total_steps = (30 if probe else 10) * steps_per_epoch
    config.views = dict(
        name="labels",
        num_classes=num_classes,
        multi_label=multi_label,
        crop_scale=(0.08, 1.0),  # resized by OpenCV; published runs by PIL, bilinear
        flip_prob=0.5,
    )
    config.loader = dict(num_workers=8, num_threads=2)

    augment = dict(total_steps=config.total_steps, epoch_steps=steps_per_epoch)
    config.method = dict(
        name="transfer",
        tower="catlip_vit",
        model=tower,
        multi_label=multi_label,
        label_smoothing=0.0 if multi_label else 0.1,
        train_statistics=not probe,
        ema_decay=None if probe else 1 - 5e-4,
        augment=None if probe else augment,
        dtype="bfloat16",
        remat=None if probe else "dots",
    )
    frozen = (("tower/.*", 0.0, 0.0), ("classifier/.*", 1.0, 1.0))
    rules = shared.CATLIP_RULES
    if options.layer_decay != 1:
        rules = shared.layerwise_rules(tower["layers"], options.layer_decay)
    config.optim = dict(
        learning_rate=1e-5 if multi_label and not probe else 3e-5,
        initial_learning_rate=1e-6,
        final_learning_rate=1e-6 if multi_label or probe else 3e-6,
        epoch_steps=steps_per_epoch,
        warmup_steps=min(500, config.total_steps // 10),
        weight_decay=0.0 if probe else 0.05,
        beta2=0.999,
        clip_norm=1.0,
        rules=frozen if probe else rules,
    )

    config.checkpoint = dict(every_steps=1000, keep_latest=2)
    config.evals = dict(
        val=dict(
            evaluator="average_precision" if multi_label else "classification",
            weights="model" if probe else "averaged",
            every_steps=steps_per_epoch,
            data=val,
            batch_size=256,
        )
    )
    if options.task == "scenes":
        _like_the_demo(config, probe)
    if options.runlocal:
        config = shared.run_local(config)
    return config


def _like_the_demo(config, probe):
    """The sizes of demo_catlip.py, and some minutes on a CPU."""
    config.total_steps = 600 if probe else 300
    config.global_batch = 64
    config.preprocess.update(image_size=64, resize_size=64)
    if not probe:
        config.plan.sizes = (48, 64, 80)
        config.method.augment = None
        config.method.ema_decay = 0.98
        config.optim.rules = tuple(r for r in config.optim.rules if r[0] != "augment/.*")
    config.views.update(crop_scale=(0.6, 1.0))
    config.loader.update(num_workers=0, num_threads=1)
    config.method.update(model=shared.DEMO_TOWER, dtype="float32", remat=None)
    config.optim.update(learning_rate=1e-2 if probe else 1e-3, final_learning_rate=0.0)
    config.optim.epoch_steps = None
    config.optim.warmup_steps = 30
    config.checkpoint.every_steps = 300
    config.evals.val.update(every_steps=100, batch_size=50)
