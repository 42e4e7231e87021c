"""A linear probe of small towers on real clip art: which of 16 categories a picture is of.

Options: tower=catlip|clip|random. The first two start from runs/openclipart_catlip and
runs/openclipart_clip, the work directories of the recipes openclipart_catlip.py and openclipart.py
(with CLIP as its method); random is the untrained CatLIP tower.
Data: data/openclipart_labelled/train and .../val, prepared like data/openclipart, but with
`--captions raw_caption,keywords,category`.
"""

import ml_collections

from big_vlp import recipes as shared

STARTS = {"catlip": "runs/openclipart_catlip", "clip": "runs/openclipart_clip", "random": None}


def get_config(arg=None):
    options = shared.parse_options(arg, tower="catlip")
    start = shared.choose("tower", STARTS, options.tower)
    config = ml_collections.ConfigDict()
    config.global_batch = 64
    config.total_steps = 600
    config.init = dict(tower=dict(model=start)) if start else {}

    train, val = (
        dict(name="prepared", path=f"data/openclipart_labelled/{split}")
        for split in ("train", "val")
    )
    config.data = dict(name="field_labels", data=train, field="category")
    config.preprocess = dict(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config.views = dict(name="labels", num_classes=16, crop_scale=(0.8, 1.0), flip_prob=0.5)
    config.loader = dict(num_workers=0, num_threads=1)

    if options.tower == "clip":
        config.preprocess = dict(image_size=64)
        model = dict(patch_size=8, width=128, layers=3, heads=4, embed_dim=128)
        model["activation"] = "quick_gelu"
        config.method = dict(name="transfer", tower="vit", model=model)
    else:
        model = dict(width=128, layers=3, heads=4, num_positions=64, output_stride=8)
        config.method = dict(
            name="transfer", tower="catlip_vit", model=model, train_statistics=False
        )
    config.method.update(dtype="float32", unroll=True)
    config.optim = dict(
        learning_rate=1e-2,
        warmup_steps=20,
        weight_decay=0.0,
        beta2=0.999,
        rules=(("tower/.*", 0.0, 0.0), ("classifier/.*", 1.0, 1.0)),
    )

    config.checkpoint = dict(every_steps=600, keep_latest=1)
    config.evals = dict(
        val=dict(
            evaluator="classification",
            weights="model",
            every_steps=200,
            data=dict(name="field_labels", data=val, field="category", classes_of=train),
            batch_size=100,
        )
    )
    return config
