"""LiT (arXiv 2111.07991): a text tower learns to read a locked image tower, which is trained.

Options: model=vitb16|vitb32|vitl14, activation=NAME of the image tower (gelu; OpenAI's models have
quick_gelu), start=DIR (a model directory with the tower, such as `python -m big_vlp.convert import`
makes), data=cc3m|cc12m|yfcc15m|merged30m|pixelprose, captions=raw|random (as in clip.py), runlocal,
which needs no model.
Data: prepared shards in data/<name> (see README); retrieval is evaluated on data/coco_val2017,
and what else of COSMOS' sets is in data/.
Published with towers trained on labels, and on billions of pairs. Learning rate, warm-up and
clipping are those of big_vision's siglip_lit_coco.py.
"""

import ml_collections

from big_vlp import recipes as shared

# Nothing of the image tower moves; the text tower decays as CLIP's.
RULES = (
    ("image_tower/.*", 0.0, 0.0),
    ("text_tower/.*(kernel|embedding)", 1.0, 1.0),
    ("(text_tower/.*(bias|scale)|logit_scale)", 1.0, 0.0),
)
# Image towers, and the width of the joint space in CLIP's models that have them.
TOWERS = {
    "vitb16": (shared.IMAGE_TOWERS["vitb16"], 512),
    "vitb32": (shared.IMAGE_TOWERS["vitb32"], 512),
    "vitl14": ({"patch_size": 14, "width": 1024, "layers": 24, "heads": 16}, 768),
}


def get_config(arg=None):
    options = shared.parse_options(
        arg,
        model="vitb16",
        activation="gelu",
        start="models/clip",
        data="cc3m",
        captions="raw",
        runlocal=False,
    )
    pairs = shared.choose("data", shared.PRETRAINING_PAIRS, options.data)
    image_tower, embed_dim = shared.choose("model", TOWERS, options.model)

    config = ml_collections.ConfigDict()
    config.global_batch = 4096
    config.total_steps = shared.steps_of(pairs, config.global_batch, epochs=32)

    config.data = shared.prepared(options.data)
    config.preprocess = dict(image_size=224, tokenizer="clip", context_length=77)
    config.views = dict(
        name="clip",
        caption_mode=shared.caption_mode(options.captions, options.data),
        crop_scale=(0.9, 1.0),
    )
    config.loader = dict(num_workers=16, num_threads=1)

    config.method = dict(
        name="clip",
        model=dict(
            image={**image_tower, "activation": options.activation},
            text=shared.TEXT_TOWER,
            embed_dim=embed_dim,
        ),
        loss_type="softmax",
        dtype="bfloat16",
        remat="dots",
        accumulate_steps=1,
        text_groups=((0.45, 24), (0.25, 40)),  # as of clip.py
    )
    if not options.runlocal:
        config.init = dict(image=dict(model=options.start, parts=dict(image_tower="image_tower")))
    config.optim = dict(
        learning_rate=1e-3,
        warmup_steps=int(0.03 * config.total_steps),
        weight_decay=0.1,  # as of siglip.py
        clip_norm=1.0,
        rules=RULES,
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
