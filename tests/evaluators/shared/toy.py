"""A toy world for evaluator tests, and a script that evaluates it on several devices or processes.

Image i is a grey square of level 2 * i (PNG, so decoding is exact); the encoders and heads are
look-up tables, which makes every score a choice of the test.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from evaluators.shared import base, linear, records
from evaluators.shared.sharing import sharing
from input_pipeline.preprocess import Preprocess
from input_pipeline.sources import Source
from input_pipeline.text.tokenizers import make_tokenizer

PREPROCESS = Preprocess(image_size=8, tokenizer="clip", context_length=12)
WHOLE = dataclasses.replace(PREPROCESS, resize="squash")
WORDS = ["red", "green", "blue", "cat", "dog", "tree", "car", "house",
         "sky", "boat", "lamp", "fish", "horse", "bread", "chair", "stone"]  # fmt: skip


class ToySource(Source):
    """Records whose caption fields, labels and hard negatives are given as lists; so is the value
    of any other field."""

    def __init__(self, captions, label=None, hard_negatives=None, class_names=None, **more):
        self.fields, self.label, self.hard_negatives = captions, label, hard_negatives
        self.more, self.class_names = more, class_names

    def __len__(self):
        return len(next(iter(self.fields.values())))

    def record(self, i):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (2 * i,) * 3).save(file, "PNG")
        record = {
            "id": f"toy-{i}",
            "image": file.getvalue(),
            "captions": {field: texts[i] for field, texts in self.fields.items()},
        }
        if self.label is not None:
            record["label"] = self.label[i]
        if self.hard_negatives is not None and self.hard_negatives[i] is not None:
            record["hard_negatives"] = self.hard_negatives[i]
        return record | {name: values[i] for name, values in self.more.items()}


def look_up(name):
    """A predict function: row `level / 2` of model[name]."""

    def predict(model, batch):
        assert batch.keys() == {"image"} and batch["image"].dtype == jnp.uint8
        index = batch["image"][:, 0, 0, 0].astype(jnp.int32) // 2
        return model[name][index]

    return predict


def encode_text(model, batch):
    """Sum of model["word"] over the tokens without the special ones, normalised."""
    tokens = batch["tokens"]
    real = (tokens > 0) & (tokens < 49406)
    total = jnp.where(real[..., None], model["word"][tokens], 0).sum(axis=1)
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-12)


def encode_patches(model, batch):
    """Of 2x2 pixels each: their mean colour times model["colour"], one matrix for each way."""
    batch_size, height, width, _ = batch["image"].shape
    cells = batch["image"].astype(jnp.float32).reshape(batch_size, height // 2, 2, width // 2, 2, 3)
    found = jnp.einsum("bhwc,kcd->bkhwd", cells.mean(axis=(2, 4)), model["colour"])
    return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)


PREDICT_FNS = {
    "encode_image": look_up("image"),
    "encode_patches": encode_patches,
    "encode_text": encode_text,
    "classify": look_up("logits"),
    "segment": look_up("maps"),
}


def random_model(seed=0, images=128, width=16):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(images, width)).astype(np.float32)
    return {
        "image": table / np.linalg.norm(table, axis=1, keepdims=True),
        "word": rng.normal(size=(49408, width)).astype(np.float32),
        "logits": rng.normal(size=(images, 5)).astype(np.float32),
        "maps": rng.normal(size=(images, 4, 4, 5)).astype(np.float32),
        "colour": rng.normal(size=(2, 3, width)).astype(np.float32),
    }


def knowing_model(captions, **kwargs):
    """A model whose image features are the features of the given captions, one per image."""
    model = random_model(**kwargs)
    model["image"][: len(captions)] = text_features(model, captions)
    return model


def text_features(model, texts):
    tokens = make_tokenizer("clip")(texts, PREPROCESS.context_length)
    return np.asarray(encode_text(model, {"tokens": jnp.asarray(tokens)}))


def mesh(tensor=1):
    devices = np.array(jax.devices()).reshape(-1, 2 if len(jax.devices()) > 2 else 1, tensor)
    return jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))


@functools.cache  # evaluators that share features have one function
def as_described(name, fn, preprocess):
    """The predict function; its rows must be those that `base.row_of` knows without any data."""

    def predict(model, batch):
        rows = {key: (x.shape[1:], x.dtype) for key, x in batch.items()}
        assert rows == base.row_of(name, preprocess)
        return fn(model, batch)

    if hasattr(fn, "weights"):
        predict.weights = fn.weights
    return predict


def evaluate(
    name, source, model, tensor=1, preprocess=PREPROCESS, predict_fns=PREDICT_FNS, **config
):
    """All that an evaluator yields, with `source` in the place of what `data` describes."""
    devices = mesh(tensor)
    predict_fns = {fn: as_described(fn, predict_fns[fn], preprocess) for fn in predict_fns}
    with mock.patch.object(records, "make_source", lambda name: source):
        evaluator = base.make_evaluator(
            name, predict_fns, preprocess, devices, data={"name": "toy"}, **config
        )
    with jax.set_mesh(devices):  # as jobs do
        return dict(evaluator.run(model))


def uneven_world():
    """19 images (divides by no number of devices), 1 to 3 captions each, some of them shared."""
    rng = np.random.default_rng(3)
    captions = [
        [" ".join(rng.choice(WORDS, 2)) for _ in range(rng.integers(1, 4))] for _ in range(19)
    ]
    captions[4] = captions[9] = ["red cat", "a dog"]
    labels = rng.integers(0, 5, 19).tolist()
    negatives = [None if i % 5 == 0 else [f"{c[0]} {w}" for w in WORDS[: 1 + i % 3]] for i, c in
                 enumerate(captions)]  # fmt: skip
    several = [np.flatnonzero(rng.random(5) < 0.3).tolist() for _ in range(19)]
    masks = [rng.integers(0, 6, rng.integers(3, 9, 2)).astype(np.uint8) for _ in range(19)]
    return ToySource(
        {"caption": captions},
        labels,
        negatives,
        WORDS[:5],
        labels=several,
        mask=masks,
        groups=[{"region": i % 3} for i in range(19)],
        pairs=[
            [{"pair": str(i // 2), "kind": "ab"[i % 4 // 2], "sentence": captions[i][0]}]
            for i in range(19)
        ],
    )


def coloured_world():
    """7 images of different sizes, patches of colour, with masks of the same sizes."""
    rng = np.random.default_rng(4)
    images, masks = [], []
    for size in rng.integers(8, 30, (7, 2)):
        blocks = -(-size // 6)
        pixels = np.kron(rng.integers(0, 256, (*blocks, 3)), np.ones((6, 6, 1)))
        file = io.BytesIO()
        Image.fromarray(pixels[: size[0], : size[1]].astype(np.uint8)).save(file, "PNG")
        images.append(file.getvalue())
        masks.append(rng.integers(0, 4, size).astype(np.uint8))
    return ToySource({"caption": [["?"]] * 7}, class_names=WORDS[:3], image=images, mask=masks)


def evaluate_all(tensor=1, batch_size=6):
    """The values of evaluators that share what they can."""
    quickly = mock.patch.multiple(linear, LOGISTIC_PENALTIES=(1e-3, 1e-2), _STEPS=15)
    with sharing(), quickly, tempfile.NamedTemporaryFile("w", suffix=".jsonl") as instances:
        for first in range(0, 16, 4):
            names = [f"toy-{i}" for i in range(first, first + 4)]
            instance = {"cue": WORDS[first], "candidates": names, "associations": names[:2]}
            instances.write(json.dumps(instance) + "\n")
        instances.flush()
        return _evaluate_all(instances.name, tensor=tensor, batch_size=batch_size)


def _evaluate_all(instances, **args):
    source, model = uneven_world(), random_model()
    return {
        "retrieval": evaluate("retrieval", source, model, caption_field="caption", **args),
        "zeroshot": evaluate(
            "zeroshot", source, model, templates=["a {}", "no {}!"], group="region", **args
        ),
        "knn": evaluate("knn", source, model, train={"name": "toy"}, neighbours=[3], **args),
        "linear_probe": evaluate(
            "linear_probe", source, model, train={"name": "toy"}, shots=[2], **args
        ),
        "matching": evaluate("matching", source, model, **args),
        "associations": evaluate("associations", source, model, instances=instances, **args),
        "hard_negatives": evaluate("hard_negatives", source, model, **args),
        "classification": evaluate("classification", source, model, **args),
        "average_precision": evaluate("average_precision", source, model, **args),
        "zeroshot_words": evaluate("zeroshot_words", source, model, **args),
        "segmentation": evaluate("segmentation", source, model, preprocess=WHOLE, **args),
        "zeroshot_segmentation": evaluate(
            "zeroshot_segmentation",
            coloured_world(),
            model,
            class_names=["red", ["green", "cat"], "blue"],
            templates=["a {}"],
            image_side=12,
            area_threshold=0.1,
            **args,
        ),
    }


def join_processes():
    """Makes this process one of two where the environment says so."""
    if "PROCESS" in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator_address=os.environ["COORDINATOR"],
            num_processes=2,
            process_id=int(os.environ["PROCESS"]),
        )


def start(module, *args, devices, **env):
    """A process that runs a module of toys."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"} | env,
        cwd=pathlib.Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(module, *args, devices):
    """Two that join each other, with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(module, *args, devices=devices, PROCESS=str(i), COORDINATOR=f"localhost:{port}")
        for i in range(2)
    ]


def result(process):
    """What it printed last, as JSON."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


if __name__ == "__main__":
    join_processes()
    print(json.dumps([jax.device_count(), evaluate_all(tensor=int(sys.argv[1]))]))
