"""A CogVLM on rendered scenes in three stages, on a CPU in minutes; needs no file.

Options: stage=text trains a tiny language model on what is said about scenes, stage=image CatLIP's
tower on the nouns of captions; stage=experts gives that language model, frozen, visual experts and
the tower, frozen too, and learns to caption, to answer and to point. From step 400 on its images
are larger. language, image: work directories of the first two.
"""

import ml_collections

from big_vlp import config as shared

TEXT = dict(vocab_size=640, width=128, layers=4, heads=4, mlp_dim=344)
TOWER = dict(width=128, layers=3, heads=4, num_positions=64, output_stride=8, class_token=False)
TASKS = dict(caption=1.0, vqa=1.0, rec=1.0)


def get_config(arg=None):
    options = shared.parse_options(
        arg, stage="experts", language="runs/demo_language", image="runs/demo_tower"
    )
    stage = shared.choose("stage", dict(text=_text, image=_image, experts=_experts), options.stage)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.plan = dict(name="constant")
    config.loader = dict(num_workers=0, num_threads=1, prefetch_batches=2)
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.log_every_steps = 10
    config.on_nonfinite = "stop"
    stage(config, options)
    return config


def _text(config, options):
    config.global_batch = 64
    config.total_steps = 400
    config.preprocess = dict(
        image_size=64, resize="squash", tokenizer="llama:scenes", context_length=150
    )
    config.views = dict(name="cogvlm", tasks=TASKS, caption_fields=("caption",), describe=True)
    config.method = dict(name="cogvlm", model=dict(text=TEXT, expert_parts=()), **_EXECUTION)
    config.optim = dict(
        learning_rate=2e-3,
        warmup_steps=50,
        weight_decay=0.05,
        beta2=0.95,
        clip_norm=1.0,
        rules=((".*(kernel|embedding)", 1.0, 1.0), (".*scale", 1.0, 0.0)),
    )
    config.checkpoint = dict(every_steps=200, keep_latest=1)
    config.evals = dict(captions=dict(evaluator="caption_loss", every_steps=200, **_HELD_OUT))


def _image(config, options):
    config.global_batch = 64
    config.total_steps = 400
    config.preprocess = dict(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config.views = dict(
        name="catlip", vocabulary=shared.SCENES_VOCABULARY, crop_scale=(0.6, 1.0), flip_prob=0.0
    )
    config.method = dict(name="catlip", model=TOWER, ema_momentum=0.02, prior=0.1, **_EXECUTION)
    config.optim = dict(
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=0.1,
        beta2=0.999,
        clip_norm=1.0,
        rules=shared.CATLIP_RULES[:2],
    )
    config.checkpoint = dict(every_steps=200, keep_latest=1)
    config.evals = dict(
        words=dict(
            evaluator="average_precision",
            weights="averaged",
            every_steps=200,
            data=dict(
                name="mined_labels", data=_HELD_OUT["data"], vocabulary=shared.SCENES_VOCABULARY
            ),
            batch_size=50,
        )
    )


def _experts(config, options):
    config.global_batch = 32
    config.total_steps = 800
    config.preprocess = dict(
        image_size=64,
        image_token_size=8,
        resize="squash",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        tokenizer="llama:scenes",
        context_length=36,
    )
    config.plan = dict(name="switch", first_size=48, at_step=400)
    config.init = dict(
        language=dict(
            model=options.language,
            parts={"language": "language", "language/blocks/vision": "language/blocks/language"},
        ),
        image=dict(model=options.image, parts={"vision": "tower"}),
    )
    config.views = dict(name="cogvlm", tasks=TASKS, caption_fields=("caption",))
    config.method = dict(
        name="cogvlm",
        model=dict(tower="catlip_vit", image=TOWER, text=TEXT, adapter_mlp_dim=344),
        **_EXECUTION,
    )
    config.optim = dict(
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=0.05,
        beta2=0.95,
        clip_norm=1.0,
        rules=(
            ("vision/.*|language/(?!blocks/vision).*", 0.0, 0.0),
            ("(adapter|language/blocks/vision)/.*(kernel|boi|eoi)", 1.0, 1.0),
            ("adapter/.*(scale|bias)", 1.0, 0.0),
        ),
    )
    config.checkpoint = dict(every_steps=200, keep_latest=2)
    config.evals = dict(
        captions=dict(evaluator="caption_loss", every_steps=400, **_HELD_OUT),
        questions=dict(
            evaluator="vqa", every_steps=800, controls=("blind", "shuffled"), **_HELD_OUT
        ),
        places=dict(
            evaluator="referring", every_steps=800, controls=("blind", "shuffled"), **_HELD_OUT
        ),
    )


_EXECUTION = dict(dtype="float32", unroll=True)
_HELD_OUT = dict(
    data=dict(name="scenes", split="val", size=200, image_size=64), weights="model", batch_size=50
)
