"""The bounds of every number in a config, in one table.

A new key needs one line in BOUNDS, under its name. Where one name means different things, the line
of one section is "section.key", and goes first; "section.*" is for all keys of a section whose keys
are the user's. A section is the dict that holds the key, so the `batch_size` of all evaluators is
one line. Keys that are not in the table, such as those of a method of your own, take any finite
number. What relates keys to each other is checked where they are used.
"""

import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.checks.ranges import SEED, Range, is_finite, real, whole

_COUNT = whole(1)
_PROBABILITY = real(0, 1)
_SHARE = real(above=0, high=1)
_RANGE_OF_SHARES = real(above=0, high=1, count=2, single=True, none="to squash whole images")
_INT32 = 2**31 - 1

BOUNDS: dict[str, Range] = {
    # The run.
    "seed": SEED,
    "total_steps": whole(1, _INT32),  # steps are int32 on the device
    "global_batch": _COUNT,
    "log_every_steps": _COUNT,
    "max_bad_steps": _COUNT,
    "every_minutes": real(above=0, none="for steps alone"),
    "watchdog_minutes": real(above=0, none="to wait for ever"),
    "every_steps": _COUNT,
    "keep_latest": _COUNT,
    "keep_every_steps": whole(1, none="to keep only the newest"),
    "profile.at_step": whole(1, none="for SIGUSR1 alone"),
    "profile.steps": _COUNT,
    "at_step": _COUNT,
    "first_size": _COUNT,
    "sizes": whole(1, count=0),
    "batch_multiple": _COUNT,
    "mesh.data": whole(1, also=(-1,)),
    "mesh.fsdp": whole(1, also=(-1,)),
    "mesh.tensor": whole(1, also=(-1,)),
    "mesh.slices": _COUNT,
    "num_workers": whole(0),
    "num_threads": _COUNT,
    "prefetch_batches": _COUNT,
    "max_broken_share": _PROBABILITY,
    # Preprocessing and views.
    "image_size": _COUNT,
    "context_length": whole(0),
    "mean": real(count=3),
    "std": real(above=0, count=3),
    "resize_size": whole(1, none="for image_size"),
    "image_token_size": whole(1, none="for no images"),
    "max_images": whole(1, none="for one in front"),
    "crop_scale": _RANGE_OF_SHARES,
    "min_local_scale": _SHARE,
    "flip_prob": _PROBABILITY,
    "local_size": _COUNT,
    "num_global": _COUNT,
    "num_local": whole(0),
    "num_captions": _COUNT,
    "num_classes": _COUNT,
    "data.num_classes": whole(1, none="for all values"),
    "data.objects": whole(1, 5, count=2),
    "max_labels": _COUNT,
    "vocabulary_size": whole(1, none="for all"),
    "short_side": real(above=0, count=2),
    "max_long_side": real(above=0),
    "max_class_share": _SHARE,
    "tasks.*": real(0),
    # Data.
    "fraction": real(above=0, high=1, none="for all"),
    "cache_gb": real(above=0),
    "weight": real(above=0, none="to mix by size"),
    "size": whole(1, none="for the usual number"),
    # Augmentation on the device.
    "jitter_prob": _PROBABILITY,
    "grey_prob": _PROBABILITY,
    "blur_prob": _PROBABILITY,
    "solarize_prob": _PROBABILITY,
    "brightness": real(0),
    "contrast": real(0),
    "saturation": real(0),
    "hue": real(0, 0.5),
    "start_psnr": real(0, 100),  # dB
    "end_psnr": real(0, 100),
    # Models.
    "patch_size": _COUNT,
    "width": _COUNT,
    "layers": _COUNT,
    "heads": _COUNT,
    "kv_heads": whole(1, none="for as many as heads"),
    "pooler_heads": _COUNT,
    "mlp_dim": whole(1, none="for four times the width"),
    "adapter_mlp_dim": whole(1, none="without an image tower"),
    "embed_dim": _COUNT,
    "init_scale": real(above=0),
    "init_bias": real(none="for no bias"),
    "vocab_size": _COUNT,
    "num_positions": _COUNT,
    "output_stride": _COUNT,
    "position_scale": real(0, none="for width^-1/2"),
    "rope_base": real(above=0),
    "rope_grid": _COUNT,
    "epsilon": real(above=0),
    "norm_epsilon": real(above=0),
    "pad_id": whole(0, _INT32, none="to train all embeddings"),
    "expert_every": _COUNT,
    "dropout": real(0, below=1),
    "channels": _COUNT,
    "rates": whole(1, count=0),
    "rank": _COUNT,
    "alpha": real(0),
    # Methods.
    "accumulate_steps": _COUNT,
    "text_groups": real(above=0, count=0, rows=2),
    "ema_decay": real(0, 1, none="for no average"),
    "ema_decay_steps": whole(1, none="to keep the decay"),
    "prior": real(above=0, below=1),
    "positive_weight": real(above=0),
    "label_smoothing": real(0, below=1),
    "image_loss": real(0),
    "max_new_tokens": _COUNT,
    # The optimizer. Without a learning rate nothing is learnt; rules freeze what shall not be.
    "learning_rate": real(above=0),
    "final_learning_rate": real(0),
    "initial_learning_rate": real(0, none="for a first step's share of the warm-up"),
    "epoch_steps": whole(1, none="to move every step"),
    "hold_steps": whole(0),
    "cooldown_steps": whole(0),
    "timescale": _COUNT,
    "warmup_steps": whole(0),
    "weight_decay": real(0),
    "beta1": real(0, below=1),
    "beta2": real(0, below=1),
    "momentum": real(0, below=1),
    "clip_norm": real(above=0, none="for no clipping"),
    "rules": real(0, count=0, named=2),
    # Where a run starts from.
    "step": whole(0, none="for the latest"),
    "min_similarity": _PROBABILITY,
    "fresh_blocks": whole(0),
    "dropped_blocks": whole(0),
    # Evaluation.
    "batch_size": _COUNT,
    "neighbours": whole(1, count=0),
    "shots": whole(1, count=0),
    "draws": _COUNT,
    "image_side": _COUNT,
    "stride": whole(1, none="for half a window"),
    "logit_scale": real(above=0),
    "probability_threshold": _PROBABILITY,
    "area_threshold": real(0, 1, none="to keep all classes"),
    "pamr_steps": whole(0),
    "first_class": whole(0, 254),
}


def check(config: Mapping[str, Any]) -> None:
    """Looks at every number of a config, however deep.

    Raises:
      ValueError: the first value outside of its key's bounds; the message names both.
    """
    for path, value in _leaves(("config",), config):
        bounds = bounds_of(path)
        if bounds is not None:
            advice = bounds.advice(value)
        else:
            advice = None if _finite(value) else "give a finite number"
        if advice is not None:
            *section, key = path
            separator = ": " if len(section) > 1 else "."
            raise ValueError(f"{'.'.join(section)}{separator}{key}={value!r}; {advice}.")


def bounds_of(path: tuple[str, ...]) -> Range | None:
    """The bounds of the key at the end of a path of keys; None where there are none."""
    section, key = path[-2:] if len(path) > 1 else ("", path[-1])
    names = (f"{section}.{key}", f"{section}.*", key)
    return next((BOUNDS[name] for name in names if name in BOUNDS), None)


def _leaves(path: tuple[str, ...], value) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path of keys, value) of everything that is no dict; lists are whole, unless of dicts."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        *section, key = path
        for number, item in enumerate(value):
            yield from _leaves((*section, f"{key}[{number}]"), item)
    else:
        yield path, value


def _finite(value) -> bool:
    """Whether all numbers in a value are; it may be of any type."""
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, numbers.Real) or is_finite(value)
