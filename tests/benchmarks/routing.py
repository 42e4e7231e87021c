"""FLOPs and bytes of CogVLM's language model by layout, as XLA counts them in compiled programs.

Rows with several images: the general layout sends each token through one expert, wherever the
images lie; "any" has no promise of room and makes some. They are compared with the static layout,
one image as long as all of them, in front, which has as many tokens for each expert. Blocks are
written out (XLA counts the body of a loop once) and nothing runs; attention is XLA's.

Bytes are those that the compiled program reads and writes, before caches: `tpu` compiles for one
chip of such a topology ("v5e:2x2"), which needs `libtpu`.
"""

import os

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from big_vlp.models.cogvlm import LAYOUTS, CogVLM
from big_vlp.parallel import meshes

TARGET = 1.15


def measure(
    width: int = 512,
    layers: int = 4,
    images: int = 2,
    image_size: int = 224,
    text: int = 64,
    batch: int = 2,
    dtype: str = "bfloat16",
    tpu: str = "",
) -> list[dict]:
    """Args: sizes of the model and of rows; `text` tokens beside the images; tpu: a topology."""
    patches = (image_size // 14) ** 2
    sizes = {"patch_size": 14, "width": 64, "layers": 1, "heads": 2, "mlp_dim": 64}
    model = CogVLM(
        image={"image_size": image_size, **sizes},
        text={
            "vocab_size": 1024,
            "width": width,
            "layers": layers,
            "heads": width // 64,
            "mlp_dim": 43 * width // 16,
        },
        adapter_mlp_dim=64,
        dtype=jnp.dtype(dtype),
        unroll=True,
        attention="xla",
    )
    length = 1 + images * (patches + 2) + text
    mesh = _mesh(tpu)
    rows = []
    for backward in (False, True):
        costs = {}
        for layout in ("text", *LAYOUTS):
            slots = images * (patches + 1) + 1 if layout == "static" else patches + 2
            count = 1 if layout == "static" else images
            shape = None if layout == "text" else (batch, count, slots, width)
            costs[layout] = cost(model, (batch, length), shape, layout, backward, mesh)
        static = costs["static"]
        for layout, found in costs.items():
            rows.append(
                {
                    "case": f"{'forward and backward' if backward else 'forward'}, {layout}",
                    "tokens": batch * length,
                    "gflops": found["flops"] / 1e9,
                    "gb": found["bytes accessed"] / 1e9,
                    "flops_ratio": found["flops"] / static["flops"],
                    "bytes_ratio": found["bytes accessed"] / static["bytes accessed"],
                    "target": TARGET if layout == "general" else None,
                }
            )
    return rows


def cost(model: CogVLM, rows, features, layout: str, backward: bool, mesh) -> dict:
    """XLA's analysis of the language model without its head, and of its gradients.

    Args:
      rows: (B, T).
      features: (B, I, N + 2, D), or None for text.
    """

    def loss(params, features, tokens, types):
        kind = "any" if features is None else layout
        x, _ = model.apply({"params": params}, tokens, types, features, kind, method="hidden")
        return x.astype(jnp.float32).mean()

    size = model.image["image_size"]
    tokens = jnp.zeros((1, 1), jnp.int32)
    images = jnp.zeros((1, 1, size, size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens, tokens)
    if features is not None:
        features = jax.ShapeDtypeStruct(features, model.dtype)
    ids = jax.ShapeDtypeStruct(rows, jnp.int32)
    language = {"language": shapes["params"]["language"]}
    run = jax.value_and_grad(loss, argnums=(0,) if features is None else (0, 1))
    with jax.set_mesh(mesh):
        lowered = jax.jit(run if backward else loss).lower(language, features, ids, ids)
        return lowered.compile().cost_analysis()


def _mesh(tpu: str):
    """Of one device: this processor, or a chip that is described only."""
    if not tpu:
        return meshes.make_mesh(devices=jax.devices()[:1])
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # this is no TPU machine
    devices = topologies.get_topology_desc(platform="tpu", topology_name=tpu).devices
    return meshes.make_mesh(devices=devices[:1])
