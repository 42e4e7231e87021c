"""A small config, and how tests build its parts."""

import ml_collections
import pytest

from big_vlp.experiment import ConfigError, Experiment


def make_config(method="cosmos"):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.total_steps, config.global_batch = 6, 4
    config.preprocess = dict(image_size=16, tokenizer="clip", context_length=8)
    config.data = dict(name="scenes", split="train", size=10, image_size=32)
    config.views = dict(
        name="cosmos", local_size=8, num_local=1, num_captions=3, caption_mode="textcrop"
    )
    config.loader = dict(num_workers=0, num_threads=1, prefetch_batches=1)
    tower = dict(width=16, layers=1, heads=2)
    config.method = dict(
        name="cosmos",
        ema_decay=0.9,
        model=dict(
            image=dict(patch_size=8, **tower),
            text=dict(vocab_size=49_408, **tower),
            embed_dim=16,
            pooler_heads=2,
        ),
        photometric=dict(global_1=dict(blur_prob=0.0), global_2=dict(), local=dict()),
        dtype="float32",
    )
    config.optim = dict(learning_rate=1e-3, warmup_steps=2, weight_decay=0.1)
    config.plan = dict(name="constant")
    config.mesh = dict(data=-1)
    config.checkpoint = dict(every_steps=2, keep_latest=1)
    config.log_every_steps = 1
    config.on_nonfinite = "stop"
    config.evals = dict(
        held_out=dict(
            evaluator="retrieval",
            weights="averaged",
            every_steps=2,
            data=dict(name="scenes", split="val", size=5, image_size=32),
            caption_field="caption",
        )
    )
    if method == "clip":
        config.views = dict(name="clip")
        del config.method.ema_decay, config.method.model.pooler_heads
        config.method.name = "clip"
        config.method.photometric = dict(blur_prob=0.0)
        config.evals.held_out.weights = "model"
    return config


def build(config, workdir):
    """Everything that a run builds before its first step."""
    experiment = Experiment.from_config(config)
    mesh, method = experiment.make_mesh(), experiment.make_method()
    parts = mesh, method, experiment.make_optimizer(method), experiment.make_loader()
    evaluators = experiment.make_evaluators(method, mesh)
    experiment.make_checkpoints(workdir).close()
    return *parts, evaluators


def with_value(config, path, value):
    """The config with one dotted key set, made if missing, or deleted where the value is None."""
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    if value is None:
        del section[key]
    else:
        section[key] = value
    return config


def changed(path, value, method="cosmos"):
    return with_value(make_config(method), path, value)


def error(config, workdir):
    with pytest.raises(ConfigError) as caught:
        build(config, workdir)
    return str(caught.value)
