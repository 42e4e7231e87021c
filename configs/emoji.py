"""Emoji on a CPU: trained on the drawings of two vendors, tested on those of a third.

Options: method=cosmos|clip|catlip.
Data: data/emoji, made of packages as docs/data.md says; for catlip data/emoji/vocabulary.tsv, too.
Flags are trained on, and tested apart: they are nearly the same in all drawings. The steps of
each method take some five minutes of one core; none is trained to its end.
"""

import ml_collections

from big_vlp import recipes as shared

TRAIN, TEST = ("twitter", "openmoji"), "google"
# Names are learnt, and searched, in these beside English; the tables have more.
LANGUAGES = ("de", "es", "fr", "zh")
VOCABULARY = "data/emoji/vocabulary.tsv"


def get_config(arg=None):
    options = shared.parse_options(arg, method="cosmos")
    methods = {"cosmos": _cosmos, "clip": _clip, "catlip": _catlip}
    config = ml_collections.ConfigDict()
    config.global_batch = 64
    parts = [part for vendor in TRAIN for part in (vendor, f"{vendor}_flags")]
    config.data = dict(name="mixture", sources=tuple(map(_captioned, parts)))
    config.preprocess = dict(image_size=40)
    config.loader = dict(num_workers=0, num_threads=1)
    config.optim = dict(learning_rate=1e-3, warmup_steps=100, weight_decay=0.2, clip_norm=1.0)
    config.log_every_steps = 50
    shared.choose("method", methods, options.method)(config)
    config.checkpoint = dict(every_steps=config.total_steps, keep_latest=1)
    for section in config.evals.values():
        section.update(every_steps=config.total_steps, batch_size=200)
    return config


def _clip(config):
    config.total_steps = 900
    config.preprocess.update(tokenizer="clip", context_length=20)
    config.views = dict(name="clip", caption_mode="random", crop_scale=(0.5, 1.0), flip_prob=0.5)
    config.method = dict(name="clip", model=_towers(), photometric=_colours())
    config.method.update(dtype="float32", unroll=True)
    config.evals = _of_pairs()


def _cosmos(config):
    config.total_steps = 300
    config.preprocess.update(tokenizer="clip", context_length=20)
    config.views = dict(
        name="cosmos",
        local_size=16,
        num_global=2,
        num_local=2,
        crop_scale=0.5,
        min_local_scale=0.2,
        caption_mode="textcrop",
        num_captions=4,
    )
    colours = dict.fromkeys(("global_1", "global_2", "local"), _colours())
    config.method = dict(name="cosmos", model=_towers(), ema_decay=0.99, photometric=colours)
    config.method.update(dtype="float32", unroll=True)
    config.evals = _of_pairs()


def _catlip(config):
    config.total_steps = 1050
    # Its stem wants multiples of 16 pixels.
    config.preprocess.update(image_size=48, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config.views = dict(name="catlip", vocabulary=VOCABULARY, crop_scale=(0.5, 1.0), flip_prob=0.5)
    config.method = dict(
        name="catlip",
        # Small pictures need small patches: 8 pixels.
        model=dict(width=128, layers=3, heads=4, num_positions=36, output_stride=8),
        ema_decay=0.99,
        prior=0.02,
        dtype="float32",
        unroll=True,
    )
    config.optim.update(beta2=0.999, rules=shared.CATLIP_RULES[:2])
    config.evals = _of_images("averaged")
    config.evals.words = dict(evaluator="average_precision", weights="averaged", data=_worded(TEST))


def _towers():
    return dict(
        image=dict(patch_size=8, width=128, layers=3, heads=4, activation="quick_gelu"),
        text=dict(vocab_size=49_408, width=128, layers=2, heads=4, activation="quick_gelu"),
        embed_dim=128,
    )


def _colours():
    """Vendors choose other colours for one thing."""
    return dict(hue=0.05, grey_prob=0.1, blur_prob=0.0)


def _captioned(part):
    """Drawings with their names in all languages, and English keywords."""
    return dict(
        name="table",
        path=f"data/emoji/{part}.parquet",
        image_column="image",
        image_root="data/emoji",
        captions=("name", "keywords", *LANGUAGES),
    )


def _kinds(part):
    """Drawings with labels: the kinds of things, such as "animal bird", that Unicode sorts by."""
    return dict(name="folders", path=f"data/emoji/{part}")


def _worded(part):
    """Drawings with the words of the vocabulary that their captions name."""
    return dict(name="mined_labels", data=_captioned(part), vocabulary=VOCABULARY)


def _of_images(weights):
    """What every method is tested by."""
    train = dict(name="mixture", sources=tuple(map(_kinds, TRAIN)))
    knn = dict(evaluator="knn", weights=weights, data=_kinds(TEST), train=train, neighbours=(1, 20))
    return ml_collections.ConfigDict(dict(knn=knn))


def _of_pairs():
    """What methods with texts are tested by, beside that."""
    evals = _of_images("model")
    evals.kinds = dict(evaluator="zeroshot", weights="model", data=_kinds(TEST), templates=("{}",))
    evals.words = dict(evaluator="zeroshot_words", weights="model", data=_worded(TEST))
    fields = {"en": "name", **{language: language for language in LANGUAGES}}
    for language, field in fields.items():
        evals[f"retrieval_{language}"] = _searched(TEST, field)
    evals.retrieval_flags = _searched(f"{TEST}_flags", "name")
    return evals


def _searched(part, field):
    return dict(evaluator="retrieval", weights="model", data=_captioned(part), caption_field=field)
