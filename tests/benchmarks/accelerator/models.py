"""The models whose steps are measured: recipes of configs/, in bf16, at full size or tiny."""

import dataclasses
import importlib
import os
from pathlib import Path

from input_pipeline.words import synsets

CLASSES = 24_320  # of CatLIP's released classifier


@dataclasses.dataclass(frozen=True)
class Model:
    """A recipe and what is tried of it.

    Attributes:
      recipe, options: a file of configs/ and its argument.
      variants: (remat, unroll); of all but the first model, second ones come after all the first.
      candidates: what is tried for size, the largest first: {"batch": examples on each device} and,
        where not even one example of the whole model may fit, {"layers": of the text tower}.
      image, text: what the towers have instead of the recipe's.
      embed_dim: the same.
    """

    recipe: str
    options: str
    variants: tuple[tuple[str | None, bool], ...]
    candidates: tuple[dict, ...]
    image: dict | None = None
    text: dict | None = None
    embed_dim: int | None = None


def batches(*sizes: int) -> tuple[dict, ...]:
    return tuple({"batch": size} for size in sizes)


MODELS = {
    "CLIP B/16": Model(
        recipe="clip",
        options="model=vitb16",
        variants=((None, False), ("dots", False), (None, True)),
        candidates=batches(2048, 1024, 512, 256, 128, 64, 32),
    ),
    "COSMOS B/16": Model(
        recipe="cosmos",
        options="model=vitb16",
        variants=((None, False), ("dots", False)),
        candidates=batches(512, 256, 128, 64, 32, 16),
    ),
    "CatLIP B/16": Model(
        recipe="catlip",
        options="model=b16",
        variants=((None, False), ("dots", False)),
        candidates=batches(2048, 1024, 512, 256, 128, 64, 32),
    ),
    "SigLIP B/16": Model(
        recipe="siglip",
        options="model=vitb16",
        variants=((None, False), ("dots", False)),
        candidates=batches(2048, 1024, 512, 256, 128, 64, 32),
    ),
    "CLIP L/14": Model(
        recipe="clip",
        options="model=vitb16",
        variants=(("dots", False), (None, False)),
        candidates=batches(1024, 512, 256, 128, 64, 32, 16),
        image={"patch_size": 14, "width": 1024, "layers": 24, "heads": 16},
        text={"width": 768, "heads": 12},
        embed_dim=768,
    ),
    "CogVLM-17B": Model(
        recipe="cogvlm",
        options="size=17b,stage=1",
        variants=(("full", False), ("dots", False)),
        candidates=tuple(
            {"batch": batch, "layers": layers}
            for layers, batch in ((32, 16), (24, 16), (20, 16), (16, 16), (12, 16), (8, 8), (4, 8))
        ),
    ),
}
TINY = ("CLIP B/16", "CatLIP B/16")  # one with two towers, one with one
TINY_CANDIDATES = ({"batch": 4}, {"batch": 2})
WARM_UP, COUNTED = 3, 10  # steps
GIB = 2**30


def names(tiny: bool) -> tuple[str, ...]:
    """The models in their order."""
    return TINY if tiny else tuple(MODELS)


def candidates(name: str, tiny: bool) -> list[dict]:
    return list(TINY_CANDIDATES if tiny else MODELS[name].candidates)


def variants(name: str, tiny: bool) -> tuple[tuple[str | None, bool], ...]:
    return MODELS[name].variants[: 1 if tiny else None]


def make_config(
    name: str,
    folder: str,
    tiny: bool = False,
    remat: str | None = None,
    unroll: bool = False,
    layers: dict[str, int] | None = None,
):
    """The config of a model.

    Args:
      folder: for the files that the recipe needs.
      tiny: the recipe's laptop version, yet in bf16.
      remat, unroll: how the blocks are executed.
      layers: of some towers, by name as in `towers`.
    """
    model = MODELS[name]
    recipe = importlib.import_module(f"configs.{model.recipe}")
    config = recipe.get_config(model.options + (",runlocal" if tiny else ""))
    config.method.update(dtype="bfloat16", remat=remat, unroll=unroll)
    if "text_groups" in config.method:
        config.method.text_groups = ()  # tokens are noise, and the other side computes them whole
    if not tiny:
        if config.preprocess.get("tokenizer", "").startswith("llama"):
            config.preprocess.tokenizer = "llama:scenes"  # no file, and the table is large enough
        if "vocabulary" in config.views:
            config.views.vocabulary = vocabulary(Path(folder))
        config.method.model.get("image", {}).update(model.image or {})
        config.method.model.get("text", {}).update(model.text or {})
        if model.embed_dim:
            config.method.model.embed_dim = model.embed_dim
    for tower, number in (layers or {}).items():
        towers(config)[tower].layers = number
    return config


def towers(config) -> dict:
    """The sections of a config that have layers, by name."""
    model = config.method.model
    return {k: model[k] for k in ("image", "text") if k in model} or {"image": model}


def vocabulary(folder: Path) -> str:
    """A file of as many synsets as the released vocabulary has."""
    path = folder / "vocabulary.tsv"
    if not path.exists():
        nouns = synsets.load()
        lines = (f"{k}\t{CLASSES - i}\t{nouns.name(k)}\n" for i, k in enumerate(nouns))
        text = "".join(line for line, _ in zip(lines, range(CLASSES)))
        written = path.with_suffix(f".{os.getpid()}")
        written.write_text(text)
        written.replace(path)
    return str(path)
