"""The least time that a TPU needs for a training step: products, or memory where that takes longer.

Steps of the recipes, compiled for chips of a 2x2 slice and not run: blocks written out, nothing
recomputed (CogVLM: what its names leave), captions whole. Towers have two layers, then four; more
layers add what the second two do, so `share_of_layers` is what a deep model comes near, and
`share` what a shallow one has. A share is that of the peak by the FLOPs that the model needs, and
the most that MFU can be. A program takes five to fifteen minutes, and some GB of memory.

Needs `libtpu`.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.common import CannotRunError

CLIP_L14 = {
    "method.model.embed_dim": 768,
    "method.model.image": {"patch_size": 14, "width": 1024, "layers": 2, "heads": 16},
    "method.model.text": {"vocab_size": 49_408, "width": 768, "layers": 2, "heads": 12},
}
TEXTS_WHOLE = {"preprocess.tokenizer": "clip", "method.text_groups": ()}
TWO_TOWERS = ("method.model.image.layers", "method.model.text.layers")
# Recipe, images a chip, what changes, where layers are counted, and the share that is wanted.
CASES = {
    "clip-b16": ("clip", 64, TEXTS_WHOLE, TWO_TOWERS, 0.55),
    "clip-l14": ("clip", 32, TEXTS_WHOLE | CLIP_L14, TWO_TOWERS, 0.65),
    "cosmos-b16": ("cosmos", 32, TEXTS_WHOLE, TWO_TOWERS, 0.55),
    "catlip-b16": ("catlip", 64, {}, ("method.model.layers",), 0.55),
    "cogvlm": (
        "cogvlm:stage=1",
        32,
        {
            "preprocess.tokenizer": "llama:scenes",  # any: the vocabulary of the model stays
            "mesh.fsdp": 4,
            "mesh.tensor": 1,
            "method.accumulate_steps": 1,
            "method.remat": "qkv,attention,out,hidden",
            "xla_flags": ("tpu_whole_products",),
        },
        TWO_TOWERS,
        0.65,
    ),
}
CHIPS = 4
CLASSES = 24_320  # nouns of DataComp's captions


def measure(
    cases: str = "clip-b16+clip-l14+cosmos-b16+catlip-b16+cogvlm",
    layers: str = "2+4",
    topology: str = "v5e:2x2",
    images: int = 0,
):
    """Args: cases and layers, separated by +; the slice, of four chips; images a chip, 0 for
    those of the case."""
    for case in cases.split("+"):
        if case not in CASES:
            raise CannotRunError(f"There is no case {case!r}; choose from {', '.join(CASES)}.")
        before = None
        for count in map(int, layers.split("+")):
            found = in_new_process(case, count, topology, images)
            row = {"case": f"{case}, {count} layers", **found}
            if before is not None:
                more = {name: found[name] - before[name] for name in ("ms", "gb", "model_tflop")}
                row |= {f"{name}_of_layers": value for name, value in more.items()}
                row["share_of_layers"] = 1e3 * more["model_tflop"] / found["peak"] / more["ms"]
            before = found
            yield row | {"target": CASES[case][4]}


def in_new_process(*arguments) -> dict:
    """`compiled` of a case: flags of libtpu are read once in a process' life."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    program = f"from {__name__} import compiled; print(); compiled(*{arguments!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise CannotRunError(f"{arguments}: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def compiled(case: str, layers: int, topology: str, images: int) -> None:
    """Prints a row of `measure` as JSON."""
    import importlib

    from big_vlp.compiling import programs
    from big_vlp.compiling.setup import Setup, make_mesh
    from big_vlp.experiment import Experiment
    from big_vlp.telemetry import roofline
    from big_vlp.telemetry.flops import flops_per_sample

    recipe, default, changes, counted, _ = CASES[case]
    name, _, argument = recipe.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    rows = CHIPS * (images or default)
    changes = {
        "global_batch": rows,
        "total_steps": 100_000,
        "method.unroll": True,
        "method.remat": None,
        **changes,
        **dict.fromkeys(counted, layers),
    }
    with tempfile.TemporaryDirectory() as folder:
        if name == "catlip":
            changes["views.vocabulary"] = made_vocabulary(Path(folder))
        with config.unlocked():
            for key, value in changes.items():
                *path, last = key.split(".")
                node = config
                for part in path:
                    node = node[part]
                node[last] = value
        experiment = Experiment.from_config(config)
        setup = Setup.of(experiment, make_mesh(experiment, topology))
        size = experiment.preprocess_record.image_size
        batch = dict(experiment.make_plan().shapes)[size]
        program = programs.compile_step(setup, size, batch)
        model_flops = flops_per_sample(experiment, size) * batch / setup.mesh.size
    if program.text is None:
        sys.exit("libtpu cannot print this program")
    found = roofline.roofline(program.text, setup.device_kind)
    print(
        json.dumps(
            {
                "images": batch // setup.mesh.size,
                "ms": 1e3 * found.seconds,
                "ms_of_products": 1e3 * found.product_seconds,
                "gb": sum(kind.bytes for kind in found.kinds) / 1e9,
                "model_tflop": model_flops / 1e12,
                "peak": found.peak / 1e12,
                "share": found.share(model_flops),
            }
        )
    )


def made_vocabulary(folder: Path) -> str:
    """A vocabulary of the first nouns there are, as frequent as each other."""
    from input_pipeline.words import synsets
    from input_pipeline.words.vocabulary import Vocabulary

    keys = list(itertools.islice(synsets.load(), CLASSES))
    path = folder / "vocabulary.tsv"
    Vocabulary(keys, [1] * len(keys)).write(path, [])
    return str(path)
