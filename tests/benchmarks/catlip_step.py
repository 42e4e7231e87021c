"""A CatLIP training step against a CLIP step with the same image tower, on this CPU, in turn.

Both from uint8 pixels on, with the same ViT, batch, optimizer and precision; CLIP adds its text
tower over 77 tokens, CatLIP a classifier of `classes` words instead. Neither augments. The ratio of
FLOPs, counted on the lowered programs, says what an ideal machine would gain at equal batch. Memory
is what the compiler plans beside the arguments.

The paper's 2.7x (arXiv 2404.15653, figure 1) is another comparison: GPU hours of one epoch of
DataComp, where CatLIP also ran with other image sizes and four times the batch on each GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import recipes
from big_vlp.methods import make_method
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from input_pipeline.preprocess import Preprocess
from tests.benchmarks.common import interleaved

# FLOPs of CLIP's towers over those of the image tower, at 224 pixels and 77 tokens.
PUBLISHED = {"vitb32": 1.67, "vitb16": 1.17}


def measure(
    batch32: int = 16, batch16: int = 8, classes: int = 24_320, repeats: int = 3
) -> list[dict]:
    """Args: rows of a batch with ViT-B/32 and with B/16; classes; steps that count."""
    rows = []
    for model, batch in (("vitb32", batch32), ("vitb16", batch16)):
        made = {name: prepared(name, model, batch, classes) for name in ("clip", "catlip")}
        times = interleaved({name: run for name, (run, _, _) in made.items()}, repeats)
        rows += [
            {
                "tower": model,
                "method": name,
                "batch": batch,
                "wall_s": times[name]["wall_s"],
                "samples_per_s": batch / times[name]["wall_s"],
                "gflops_per_sample": flops / batch / 1e9,
                "work_mib": work / 2**20,
                "wall_ratio": times["clip"]["wall_s"] / times[name]["wall_s"],
                "flop_ratio": made["clip"][1] / flops,
                "expected_flop_ratio": PUBLISHED[model] if name == "catlip" else 1.0,
            }
            for name, (_, flops, work) in made.items()
        ]
        del made
    return rows


def prepared(name: str, model: str, batch: int, classes: int):
    """(a function that makes one training step, its FLOPs, bytes of its temporaries)."""
    tower = {**recipes.IMAGE_TOWERS[model]}
    rng = np.random.default_rng(0)
    rows = {"image": rng.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)}
    if name == "clip":
        preprocess = Preprocess(image_size=224, tokenizer="clip", context_length=77)
        given = {"model": {"image": tower, "text": recipes.TEXT_TOWER, "embed_dim": 512}}
        rows["tokens"] = rng.integers(1, 49_407, (batch, 77), dtype=np.int32)
    else:
        name, preprocess = "transfer", Preprocess(image_size=224)
        tower |= {"embed_dim": 512}
        given = {"tower": "vit", "model": tower, "num_classes": classes, "multi_label": True}
        rows["labels"] = rng.integers(0, classes, (batch, 8), dtype=np.int32)
    method = make_method(name, preprocess=preprocess, dtype="float32", **given)
    optimizer = make_optimizer(
        learning_rate=1e-3, total_steps=1000, warmup_steps=100, weight_decay=0.2
    )
    key = jax.random.key(0)
    state = [jax.jit(step.make_init(method, optimizer))(key)]
    rows = jax.tree.map(jnp.asarray, rows)
    train_step = jax.jit(step.make_train_step(method, optimizer), donate_argnums=0)
    compiled = train_step.lower(state[0], rows, 0, key).compile()

    def run():
        state[0], metrics = compiled(state[0], rows, 0, key)
        jax.block_until_ready((state[0], metrics))

    counted = make_method(name, preprocess=preprocess, dtype="float32", unroll=True, **given)
    written_out = jax.jit(step.make_train_step(counted, optimizer))
    flops = written_out.lower(state[0], rows, 0, key).cost_analysis()["flops"]
    return run, flops, compiled.memory_analysis().temp_size_in_bytes
