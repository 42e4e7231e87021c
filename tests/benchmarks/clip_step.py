"""A whole CLIP training step against open_clip: forward, backward, AdamW, fp32, on this CPU.

Both sides train ViT-B/32 (224 pixels, 77 tokens) on the same random pairs, with as many threads as
there are cores, in turn. Ours is the step the loop runs, from uint8 pixels on, with its refusal of
non-finite updates and its gradient norm; theirs starts from normalised floats: open_clip's model
and loss, torch's AdamW with its two decay groups, also in its fused form, which is the faster.
Where the captions fit `short` tokens, ours computes no more (`text_groups`), with the same result;
open_clip always computes 77.

Needs `torch`, `torchvision` and `open_clip_torch`, CPU builds.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import recipes
from big_vlp.methods import make_method
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from input_pipeline.preprocess import Preprocess
from tests.benchmarks.common import interleaved

END_OF_TEXT = 49_407
ADAMW = {"learning_rate": 5e-4, "weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-6}


def measure(
    batch: int = 16, short: int = 32, repeats: int = 3, unroll: bool = False, fused: bool = True
) -> list[dict]:
    """Args: rows of a batch; tokens of short captions; steps that count; unroll=true writes our
    blocks out, which takes minutes to compile; fused=false leaves torch's fused AdamW out."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    lengths = (77, short)
    theirs = {"open_clip": open_clip_step(pairs_of(batch, 77), fused=False)}
    if fused:
        theirs["open_clip, fused AdamW"] = open_clip_step(pairs_of(batch, 77), fused=True)
    groups = {77: (), short: ((1.0, short),)}
    ours = {n: our_step(pairs_of(batch, n), groups[n], unroll) for n in lengths}
    times = interleaved(theirs | ours, repeats)
    return [
        {
            "case": f"captions of {length} tokens",
            "against": name,
            "ours_wall_s": times[length]["wall_s"],
            "theirs_wall_s": times[name]["wall_s"],
            "wall_ratio": times[name]["wall_s"] / times[length]["wall_s"],
            "cpu_ratio": times[name]["cpu_s"] / times[length]["cpu_s"],
            "target": 1.0 if length == 77 else 1.25,
        }
        for length in lengths
        for name in theirs
    ]


def pairs_of(batch: int, length: int) -> dict[str, np.ndarray]:
    """Random pixels and captions; the longest caption ends at `length` of 77 tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, END_OF_TEXT - 1, (batch, 77), dtype=np.int32)
    for row, end in zip(tokens, np.linspace(length // 2, length, batch, dtype=int)):
        row[end - 1], row[end:] = END_OF_TEXT, 0
    images = rng.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    return {"image": images, "tokens": tokens}


def our_step(pairs, text_groups: tuple, unroll: bool):
    """A function that makes one training step, as `big_vlp.train` compiles it."""
    method = make_method(
        "clip",
        preprocess=Preprocess(image_size=224, tokenizer="clip", context_length=77),
        model={
            "image": recipes.IMAGE_TOWERS["vitb32"],
            "text": recipes.TEXT_TOWER,
            "embed_dim": 512,
        },
        dtype="float32",
        unroll=unroll,
        text_groups=text_groups,
    )
    optimizer = make_optimizer(**ADAMW, total_steps=1000, warmup_steps=100)
    key = jax.random.key(0)
    state = [jax.jit(step.make_init(method, optimizer))(key)]
    train_step = jax.jit(step.make_train_step(method, optimizer), donate_argnums=0)
    batch = jax.tree.map(jnp.asarray, pairs)

    def run():
        state[0], metrics = train_step(state[0], batch, 0, key)
        jax.block_until_ready((state[0], metrics))

    return run


def open_clip_step(pairs, fused: bool):
    """A function that makes one training step of open_clip's ViT-B-32."""
    import torch

    open_clip = import_open_clip()
    model = open_clip.create_model("ViT-B-32")
    model.train()
    loss_fn = open_clip.ClipLoss()
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or any(s in name for s in ("bn", "ln", "bias", "logit_scale"))
        (plain if is_plain else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": plain, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": ADAMW["weight_decay"]},
        ],
        lr=ADAMW["learning_rate"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["epsilon"],
        fused=fused,
    )
    mean, std = (np.array(x, np.float32) for x in (open_clip.OPENAI_DATASET_MEAN, [0.27] * 3))
    pixels = (pairs["image"].astype(np.float32) / 255 - mean) / std
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    tokens = torch.from_numpy(pairs["tokens"].astype(np.int64))

    def run():
        optimizer.zero_grad()
        image, text, scale = model(images, tokens)
        loss_fn(image, text, scale).backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))

    return run


def import_open_clip():
    """open_clip. It imports torchvision, whose compiled operators it does not use: where they were
    built for another torch, two must be declared for the import to pass."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_open_clip.kept = library  # its end would take the declarations back
    import open_clip

    return open_clip
