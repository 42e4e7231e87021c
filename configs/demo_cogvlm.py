"""A CogVLM on rendered scenes, on a CPU in minutes; needs no file.

Options: stage=text|experts|grounding, language=DIR, image=DIR

stage=text trains a tiny language model on what is said about scenes. The other two start from it
and from the image tower of configs/demo.py, and train an adapter and visual experts:
stage=experts to caption and to answer, with language model and tower frozen, and in the second half
on larger images; stage=grounding to point, all trained. language and image are the work directories
of the two runs they start from.
"""

import ml_collections

from big_vlp import recipes as shared

TEXT = dict(vocab_size=640, width=128, layers=4, heads=4, mlp_dim=344)
TOWER = dict(
    image_size=40, patch_size=8, width=128, layers=2, heads=4, activation="quick_gelu"
)  # of configs/demo.py


TASKS = dict(
    text=dict(caption=1.0, vqa=2.0, rec=1.0),  # answers are short
    experts=dict(caption=1.0, vqa=2.0),
    grounding=dict(rec=1.0),
)


def get_config(arg=None):
    options = shared.parse_options(
        arg, stage="experts", language="runs/demo_language", image="runs/demo"
    )
    stage = options.stage
    with_image = stage != "text"
    config = ml_collections.ConfigDict()
    config.views = dict(
        name="cogvlm",
        tasks=shared.choose("stage", TASKS, stage),
        caption_fields=("caption",),
    )
    config.global_batch = dict(text=64, experts=32, grounding=16)[stage]
    config.total_steps = dict(text=400, experts=1200, grounding=3200)[stage]

    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.preprocess = dict(
        image_size=48 if stage == "experts" else 40,
        image_token_size=8 if with_image else None,
        resize="squash",
        tokenizer="llama:scenes",
        context_length=99 if stage == "grounding" else 36,  # three phrases
    )
    config.loader = dict(num_workers=0, num_threads=1)

    config.method = dict(name="cogvlm", model=dict(text=TEXT), dtype="float32", unroll=True)
    config.optim = dict(
        learning_rate=2e-3,
        warmup_steps=50,
        weight_decay=0.05,
        beta2=0.95,
        clip_norm=1.0,
        rules=_rules(""),
    )

    config.checkpoint = dict(every_steps=200, keep_latest=2)
    config.log_every_steps = 10
    held_out = dict(
        data=dict(name="scenes", split="val", size=200, image_size=64),
        weights="model",
        batch_size=50,
    )
    captions = dict(evaluator="caption_loss", every_steps=config.total_steps // 4, **held_out)
    if not with_image:
        config.evals = dict(captions=captions)
        config.method.model.expert_parts = ()
        return config

    config.init = dict(
        language=dict(
            model=options.language,
            parts={"language": "language", "language/blocks/vision": "language/blocks/language"},
        ),
        image=dict(model=options.image, parts={"vision": "image_tower"}),
    )
    config.method.model.update(tower="vit", image=TOWER, adapter_mlp_dim=344)
    half = config.total_steps // 2
    asked = dict(every_steps=half, controls=("blind", "shuffled"), **held_out)
    if stage == "experts":
        config.plan = dict(name="switch", first_size=40, at_step=half)
        frozen = ("(vision|language/(?!blocks/vision)).*", 0.0, 0.0)
        config.optim.rules = (frozen, *_rules("(adapter|language/blocks/vision)/"))
        config.evals = dict(captions=captions, questions=dict(evaluator="vqa", **asked))
    else:
        # The tower told images apart, not places: its positions start anew, and larger.
        config.method.model.image.position_scale = 1.0
        kept = ("class_token", "patch", "norm_pre", "transformer", "norm_post")
        config.init.image.parts = {f"vision/{part}": f"image_tower/{part}" for part in kept}
        # Few objects teach places first; a row asks for up to three phrases of its image.
        config.data.objects = (1, 5)
        config.views.history = "turns"
        config.optim.update(learning_rate=5e-4, warmup_steps=100)
        config.evals = dict(places=dict(evaluator="referring", **asked))
    return config


def _rules(part):
    return (
        (f"{part}.*(kernel|embedding|class_token|boi|eoi)", 1.0, 1.0),
        (f"{part}.*(scale|bias)", 1.0, 0.0),
    )
