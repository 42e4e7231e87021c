"""A CogVLM on rendered scenes, on a CPU in minutes; needs no file.

Options: stage=text|experts, language=DIR, image=DIR

stage=text trains a tiny language model on what is said about scenes. stage=experts freezes it, and
the image tower of configs/demo.py, and trains an adapter and visual experts that caption, answer
and point; in the second half on larger images. language and image are the work directories of the
two runs it starts from.
"""

import ml_collections

from big_vlp import config as shared

TEXT = dict(vocab_size=640, width=128, layers=4, heads=4, mlp_dim=344)
TOWER = dict(
    image_size=40, patch_size=8, width=128, layers=2, heads=4, activation="quick_gelu"
)  # of configs/demo.py


def get_config(arg=None):
    options = shared.parse_options(
        arg, stage="experts", language="runs/demo_language", image="runs/demo"
    )
    with_image = options.stage == "experts"
    shared.choose("stage", dict.fromkeys(("text", "experts")), options.stage)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.global_batch = 32 if with_image else 64
    config.total_steps = 2400 if with_image else 400

    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.preprocess = dict(
        image_size=48,
        image_token_size=8 if with_image else None,
        resize="squash",
        tokenizer="llama:scenes",
        context_length=36,
    )
    config.plan = dict(name="constant")
    config.views = dict(
        name="cogvlm",
        tasks=dict(caption=1.0, vqa=2.0, rec=1.0),  # answers are short
        caption_fields=("caption",),
    )
    config.loader = dict(num_workers=0, num_threads=1, prefetch_batches=2)

    config.method = dict(name="cogvlm", model=dict(text=TEXT), dtype="float32", unroll=True)
    config.optim = dict(
        learning_rate=2e-3,
        warmup_steps=50,
        weight_decay=0.05,
        beta2=0.95,
        clip_norm=1.0,
        rules=((".*(kernel|embedding)", 1.0, 1.0), (".*scale", 1.0, 0.0)),
    )

    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.checkpoint = dict(every_steps=200, keep_latest=2)
    config.log_every_steps = 10
    config.on_nonfinite = "stop"
    held_out = dict(
        data=dict(name="scenes", split="val", size=200, image_size=64),
        weights="model",
        batch_size=50,
    )
    config.evals = dict(captions=dict(evaluator="caption_loss", every_steps=400, **held_out))
    if not with_image:
        config.method.model.expert_parts = ()
        return config

    config.init = dict(
        language=dict(
            model=options.language,
            parts={"language": "language", "language/blocks/vision": "language/blocks/language"},
        ),
        image=dict(model=options.image, parts={"vision": "image_tower"}),
    )
    config.plan = dict(name="switch", first_size=40, at_step=config.total_steps // 2)
    config.method.model.update(tower="vit", image=TOWER, adapter_mlp_dim=344)
    config.optim.rules = (
        ("vision/.*|language/(?!blocks/vision).*", 0.0, 0.0),
        ("(adapter|language/blocks/vision)/.*(kernel|boi|eoi)", 1.0, 1.0),
        ("adapter/.*(scale|bias)", 1.0, 0.0),
    )
    controls = ("blind", "shuffled")
    config.evals.questions = dict(evaluator="vqa", every_steps=1200, controls=controls, **held_out)
    config.evals.places = dict(
        evaluator="referring", every_steps=1200, controls=controls, **held_out
    )
    return config
