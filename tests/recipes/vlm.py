"""What was published of LLaVA-1.5, by whose stages an image tower is judged."""

from tests.recipes.rows import CLIP_COLOURS, Recipe, Row, adam, fixed, tower


def vlm() -> list[Recipe]:
    source = "arXiv 2310.03744 and the scripts of haotian-liu/LLaVA"
    model = [
        *tower("method.model.image", patch_size=14, width=1024, heads=16),
        Row("image tower: blocks that are read, of 24", 23, "method.model.image.layers"),
        Row("image tower: norm behind them", False, "method.model.image.final_norm"),
        *tower("method.model.text", vocab_size=32_000, width=4096, layers=32, heads=32,
               mlp_dim=11_008),
        Row("adapter", "two layers with a GELU between", fixed("CogVLM's"),
            "linear, norm, GELU, SwiGLU; a begin and an end of image"),
        Row("adapter: hidden width", 4096, "method.model.adapter_mlp_dim"),
        Row("position ids of patches", "each its own", fixed("one for all"), "CogVLM's layout"),
        Row("image size", 336, "preprocess.image_size"),
        Row("resizing", "padded to a square", "preprocess.resize", "boxes, and all pixels, count"),
        *CLIP_COLOURS,
        Row("precision", "bfloat16", "method.dtype"),
    ]  # fmt: skip
    stages = {
        "pretrain": (1e-3, 66, 2181, 256, "captions alone"),
        "tune": (2e-5, 156, 5198, 128, "questions and conversations"),
    }
    made = [Recipe("A tower's eyes: LLaVA-1.5-7B", source, "vlm", "", model)]
    for stage, (rate, warmup, steps, batch, text) in stages.items():
        rows = [
            Row("steps, one epoch", steps, "total_steps"),
            Row("batch", batch, "global_batch"),
            *adam(rate, 0.0, warmup, 0.0, 0.999, clip=1.0),
            Row("tokens, image and text", 2048, total_tokens, f"room for {text}"),
        ]
        made.append(Recipe(f"LLaVA-1.5, stage {stage}", source, "vlm", f"stage={stage}", rows))
    return made


def total_tokens(config):
    preprocess = config["preprocess"]
    patches = (preprocess["image_size"] // preprocess["image_token_size"]) ** 2
    return 1 + patches + 2 + preprocess["context_length"]
