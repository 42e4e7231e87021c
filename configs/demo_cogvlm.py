"""A tiny CogVLM on rendered scenes, on a CPU in minutes; needs no file.

Image tower, adapter, language model and visual experts learn together, from nothing, to caption
scenes, to answer questions about them and to say where things are.
"""

import ml_collections

from big_vlp import config as shared


def get_config(arg=None):
    shared.parse_options(arg)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.global_batch = 32
    config.total_steps = 1000

    config.data = dict(name="scenes", split="train", size=100_000, image_size=64)
    config.preprocess = dict(
        image_size=64,
        resize="squash",
        tokenizer="llama:scenes",
        context_length=64,
    )
    config.plan = dict(name="constant")
    config.views = dict(
        name="cogvlm",
        patch_size=8,
        tasks=dict(caption=1.0, vqa=1.0, rec=1.0),
        caption_fields=("caption",),
    )
    config.loader = dict(num_workers=0, num_threads=1, prefetch_batches=2)

    config.method = dict(
        name="cogvlm",
        model=dict(
            image=dict(image_size=64, patch_size=8, width=96, layers=3, heads=4, mlp_dim=384),
            text=dict(vocab_size=640, width=128, layers=4, heads=4, mlp_dim=344),
            adapter_mlp_dim=344,
        ),
        dtype="float32",
        unroll=True,
    )
    config.optim = dict(
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=0.05,
        beta2=0.95,
        clip_norm=1.0,
        rules=(
            (".*(kernel|embedding)", 1.0, 1.0),
            (".*(bias|scale|class_token|boi|eoi)", 1.0, 0.0),
        ),
    )

    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.checkpoint = dict(every_steps=250, keep_latest=2)
    config.log_every_steps = 10
    config.on_nonfinite = "stop"
    held_out = dict(name="scenes", split="val", size=100, image_size=64)
    config.evals = dict(
        captions=dict(
            evaluator="caption_loss",
            weights="model",
            every_steps=250,
            data=held_out,
            patch_size=8,
            batch_size=50,
        ),
        questions=dict(
            evaluator="vqa",
            weights="model",
            every_steps=1000,
            data=held_out,
            patch_size=8,
            batch_size=50,
        ),
        places=dict(
            evaluator="referring",
            weights="model",
            every_steps=1000,
            data=held_out,
            patch_size=8,
            batch_size=50,
        ),
    )
    return config
