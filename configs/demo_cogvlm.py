"""A CogVLM on rendered scenes, on a CPU in minutes; needs no file.

Options: stage=text|experts|grounding, language=DIR, image=DIR

stage=text trains a tiny language model on what is said about scenes. stage=experts starts from it
and from the image tower of configs/demo.py, and trains an adapter and visual experts to caption and
to answer, with language model and tower frozen, and in the second half on larger images; language
and image are the work directories of the two runs. stage=grounding trains a smaller model to point,
all of it, from nothing.
"""

import ml_collections

from big_vlp import recipes as shared

TEXT = dict(vocab_size=640, width=128, layers=4, heads=4, mlp_dim=344)
TOWER = dict(
    image_size=40, patch_size=8, width=128, layers=2, heads=4, activation="quick_gelu"
)  # of configs/demo.py


def get_config(arg=None):
    options = shared.parse_options(
        arg, stage="experts", language="runs/demo_language", image="runs/demo"
    )
    add_stage = shared.choose(
        "stage", dict(text=_text, experts=_experts, grounding=_grounding), options.stage
    )
    config = ml_collections.ConfigDict()
    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.preprocess = dict(image_size=40, resize="squash", tokenizer="llama:scenes")
    config.views = dict(name="cogvlm", caption_fields=("caption",))
    config.loader = dict(num_workers=0, num_threads=1)

    config.method = dict(name="cogvlm", model=dict(text=TEXT), dtype="float32", unroll=True)
    config.optim = dict(weight_decay=0.05, beta2=0.95, clip_norm=1.0, rules=_rules(""))

    config.checkpoint = dict(every_steps=200, keep_latest=2)
    config.log_every_steps = 10
    add_stage(config, options)
    return config


def _text(config, options):
    config.views.tasks = dict(caption=1.0, vqa=2.0, rec=1.0)  # answers are short
    config.preprocess.update(image_token_size=None, context_length=36)
    config.update(global_batch=64, total_steps=400)
    config.method.model.expert_parts = ()
    config.optim.update(learning_rate=2e-3, warmup_steps=50)
    config.evals = dict(captions=_held_out("caption_loss", 100))


def _experts(config, options):
    config.views.tasks = dict(caption=1.0, vqa=2.0)
    config.preprocess.update(image_size=48, image_token_size=8, context_length=36)
    config.update(global_batch=32, total_steps=1200)
    config.plan = dict(name="switch", first_size=40, at_step=600)
    config.method.model.update(tower="vit", image=TOWER, adapter_mlp_dim=344)
    config.init = dict(
        language=dict(
            model=options.language,
            parts={"language": "language", "language/blocks/vision": "language/blocks/language"},
        ),
        image=dict(model=options.image, parts={"vision": "image_tower"}),
    )
    frozen = ("(vision|language/(?!blocks/vision)).*", 0.0, 0.0)
    config.optim.update(
        learning_rate=2e-3,
        warmup_steps=50,
        rules=(frozen, *_rules("(adapter|language/blocks/vision)/")),
    )
    config.evals = dict(
        captions=_held_out("caption_loss", 300),
        questions=_held_out("vqa", 600, controls=("blind", "shuffled")),
    )


def _grounding(config, options):
    config.views.tasks = dict(rec=1.0)
    config.preprocess.update(
        image_token_size=8, context_length=30, mean=(0.6, 0.6, 0.6), std=(0.25, 0.25, 0.25)
    )
    config.update(global_batch=32, total_steps=6000)
    # Small, for many steps. Places come from the position table alone, which starts large.
    block = dict(width=64, heads=4)
    config.method.model = dict(
        text=dict(TEXT, layers=2, mlp_dim=176, **block),
        tower="vit",
        image=dict(TOWER, position_scale=0.5, **block),
        adapter_mlp_dim=176,
    )
    config.optim.update(
        name="muon",
        schedule="wsd",
        learning_rate=2e-3,
        warmup_steps=100,
        cooldown_steps=1500,
    )
    config.checkpoint.every_steps = 1000
    config.log_every_steps = 50
    config.evals = dict(places=_held_out("referring", 3000, controls=("blind", "shuffled")))


def _held_out(evaluator, every_steps, **more):
    data = dict(name="scenes", split="val", size=200, image_size=64)
    return dict(
        evaluator=evaluator,
        every_steps=every_steps,
        data=data,
        weights="model",
        batch_size=50,
        **more,
    )


def _rules(part):
    return (
        (f"{part}.*(kernel|embedding|class_token|boi|eoi)", 1.0, 1.0),
        (f"{part}.*(scale|bias)", 1.0, 0.0),
    )
