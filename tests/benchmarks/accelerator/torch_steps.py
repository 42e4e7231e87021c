"""CLIP's training step in PyTorch, as a fair peer of ours on the same device.

The same sizes, batch, bf16 and work: uint8 pixels of a batch that lives on the device, both towers,
the softmax loss over the whole batch in fp32, AdamW with its two decay groups. Theirs is what a
user of PyTorch would write today: torch.compile over the whole loss, autocast to bf16, fused
scaled_dot_product_attention, fused AdamW, channels-last images, and timm's ViT where it is
installed. Nothing is recomputed in the backward pass. Parameters and moments are fp32 on both
sides. Ours also computes the gradient's norm and refuses updates that are not finite.
"""

import contextlib
import importlib.util
import statistics
import sys
import time

from tests.benchmarks.accelerator.models import COUNTED, GIB, WARM_UP, make_config, towers


def measure(model: str, candidates: list, tiny: bool, folder: str) -> dict:
    """The time of a step of the largest candidate that fits: the median of 10 after 3."""
    if importlib.util.find_spec("torch") is None:
        return {"skipped": "torch is not installed"}
    import torch

    if not tiny and not torch.cuda.is_available():
        return {"skipped": "torch sees no GPU"}
    torch.set_float32_matmul_precision("high")
    config = make_config(model, folder, tiny)
    for candidate in candidates:
        print(f"compiling {model}, {candidate}", file=sys.stderr)
        with contextlib.suppress(torch.OutOfMemoryError):
            layers = {name: tower.layers for name, tower in towers(config).items()}
            return {"layers": layers, **timed(config, candidate["batch"], compiled=not tiny)}
        torch.cuda.empty_cache()
    raise MemoryError(f"none of {candidates} fits")


def timed(config, batch: int, compiled: bool) -> dict:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.manual_seed(0)
    model, source = build(config)
    model.to(device)
    optimizer = adamw(model, config.optim)
    size, length = config.preprocess.image_size, config.preprocess.context_length
    images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    tokens = torch.randint(1, config.method.model.text.vocab_size, (batch, length), device=device)
    loss_of = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_of(images, tokens)
        loss.backward()
        optimizer.step()
        return loss

    began = time.perf_counter()
    step()
    synchronise()
    first, times = time.perf_counter() - began, []
    for i in range(WARM_UP - 1 + COUNTED):
        began = time.perf_counter()
        loss = step()
        synchronise()
        if i >= WARM_UP - 1:
            times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else None
    return {
        "image_tower": source,
        "compiled": compiled,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": batch,
        "step_ms": 1e3 * seconds,
        "samples_per_s": batch / seconds,
        "peak_gib": peak,
        "compile_s": first,
        "loss": loss.item(),
    }


def adamw(model, optim):
    import torch

    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain}],
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.epsilon,
        weight_decay=0.0,
        fused=True,
    )


def build(config):
    """(a module (u8[B, S, S, 3], i64[B, T]) -> loss, where its image tower is from)."""
    import torch
    from torch import nn
    from torch.nn import functional

    image, text = config.method.model.image, config.method.model.text
    width, size = config.method.model.embed_dim, config.preprocess.image_size

    class Block(nn.Module):
        def __init__(self, width, heads, causal):
            super().__init__()
            self.heads, self.causal = heads, causal
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x):
            batch, length, width = x.shape
            qkv = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
            x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
            return x + self.mlp(self.norms[1](x))

    class Transformer(nn.Module):
        def __init__(self, width, layers, heads, causal):
            super().__init__()
            blocks = (Block(width, heads, causal) for _ in range(layers))
            self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)

        def forward(self, x):
            return self.norm(self.blocks(x))

    class ImageTower(nn.Module):
        """A ViT with a norm before its blocks, read at its class token."""

        def __init__(self):
            super().__init__()
            patch, slots = image.patch_size, (size // image.patch_size) ** 2 + 1
            self.patch = nn.Conv2d(3, image.width, patch, patch, bias=False)
            self.class_token = nn.Parameter(0.02 * torch.randn(image.width))
            self.positions = nn.Parameter(0.02 * torch.randn(slots, image.width))
            self.norm = nn.LayerNorm(image.width)
            self.transformer = Transformer(image.width, image.layers, image.heads, causal=False)

        def forward(self, pixels):
            patches = self.patch(pixels).flatten(2).transpose(1, 2)
            first = self.class_token.to(patches.dtype).expand(len(patches), 1, -1)
            x = torch.cat([first, patches], dim=1) + self.positions
            return self.transformer(self.norm(x))[:, 0]

    def image_tower():
        try:
            from timm.models.vision_transformer import VisionTransformer
        except (ImportError, RuntimeError):  # not there, or its torchvision is of another torch
            return ImageTower(), "own"
        tower = VisionTransformer(
            img_size=size,
            patch_size=image.patch_size,
            embed_dim=image.width,
            depth=image.layers,
            num_heads=image.heads,
            pre_norm=True,
            num_classes=0,
        )
        return tower, "timm"

    class Towers(nn.Module):
        def __init__(self, tower):
            super().__init__()
            self.image, self.project_image = tower, nn.Linear(image.width, width, bias=False)
            self.embed = nn.Embedding(text.vocab_size, text.width)
            nn.init.normal_(self.embed.weight, std=0.02)
            length = config.preprocess.context_length
            self.positions = nn.Parameter(0.01 * torch.randn(length, text.width))
            self.text = Transformer(text.width, text.layers, text.heads, causal=True)
            self.project_text = nn.Linear(text.width, width, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(2.6593))
            self.register_buffer("mean", torch.tensor([0.4815, 0.4578, 0.4082]).view(3, 1, 1))
            self.register_buffer("std", torch.tensor([0.2686, 0.2613, 0.2758]).view(3, 1, 1))

        def forward(self, pixels, tokens):
            # What is stored with channels last stays so.
            pixels = (pixels.permute(0, 3, 1, 2) / 255 - self.mean) / self.std
            image_features = self.project_image(self.image(pixels))
            x = self.text(self.embed(tokens) + self.positions)
            ends = tokens.argmax(dim=-1)
            text_features = self.project_text(x[torch.arange(len(x), device=x.device), ends])
            with torch.autocast(pixels.device.type, enabled=False):
                image_features, text_features = (
                    functional.normalize(x.float(), dim=-1) for x in (image_features, text_features)
                )
                logits = self.logit_scale.exp() * image_features @ text_features.T
                labels = torch.arange(len(logits), device=logits.device)
                both = (
                    functional.cross_entropy(logits, labels),
                    functional.cross_entropy(logits.T, labels),
                )
            return sum(both) / 2

    tower, source = image_tower()
    return Towers(tower.to(memory_format=torch.channels_last)), source
