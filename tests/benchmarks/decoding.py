"""Questions of mixed lengths, decoded in batches of like length against rows of one length.

Ours is a pass of an evaluator: prompts are padded to the next of `written.prompt_lengths`. Plain
pads each to the context length, as training does. A small CogVLM with random weights, so that every
answer has all its tokens; lengths are drawn evenly on a logarithmic scale, from a few tokens to the
context length. Compilation is not counted. All answers are the same.
"""

import io
from unittest import mock

import jax
import numpy as np
from PIL import Image

from big_vlp.generation.answers import Generate
from big_vlp.methods import make_method
from big_vlp.parallel.meshes import make_mesh
from evaluators.shared import written
from input_pipeline.preprocess import Preprocess
from input_pipeline.views.cogvlm import Rows
from tests.benchmarks.common import interleaved

SHORTEST = 8


def measure(
    questions: int = 128,
    context_length: int = 512,
    width: int = 256,
    layers: int = 4,
    new_tokens: int = 8,
    batch: int = 16,
    repeats: int = 3,
):
    """Args: of the data; of a row; of the model; of each answer; of a batch; passes that count."""
    preprocess = Preprocess(
        56, tokenizer="llama:scenes", context_length=context_length, resize="squash",
        image_token_size=14,
    )  # fmt: skip
    rows = Rows.of(preprocess)
    tower = {"width": 64, "layers": 2, "heads": 4, "mlp_dim": 128}
    text = {"width": width, "layers": layers, "heads": width // 64, "mlp_dim": 3 * width}
    method = make_method(
        "cogvlm",
        preprocess=preprocess,
        model={
            "image": {"image_size": 56, "patch_size": 14, **tower},
            "text": {"vocab_size": rows.text.vocab_size, **text},
            "adapter_mlp_dim": 128,
        },
        dtype="float32",
    )
    model = jax.jit(method.init)(jax.random.key(0))[0]
    rng, word = np.random.default_rng(0), " ring"
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(context_length), questions)).astype(int)
    prompts = [word * int(length / len(rows.text.encode(word))) for length in lengths]
    images = [png(rng.integers(0, 256, (56, 56, 3), np.uint8)) for _ in prompts]
    asker = Asker(method, rows, prompts, images, new_tokens, batch)
    ways = {
        "like lengths": lambda: asker.answers(model, written.prompt_lengths),
        "one length": lambda: asker.answers(model, lambda context_length: [context_length]),
    }
    with jax.set_mesh(asker.mesh):
        if len({tuple(run()) for run in ways.values()}) > 1:
            raise RuntimeError("the answers differ")
        times = interleaved(ways, repeats)
    return [
        {
            "case": f"{questions} questions, {batch} at once, {way}",
            "wall_s": times[way]["wall_s"],
            "questions_per_s": questions / times[way]["wall_s"],
            "speed_ratio": times["one length"]["wall_s"] / times[way]["wall_s"],
        }
        for way in ways
    ]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Asker(written.WritingEvaluator):
    """An evaluator without data: prompts and images are given."""

    def __init__(self, method, rows, prompts, images, new_tokens, batch):
        self.preprocess, self.mesh, self._rows = method.preprocess, make_mesh(), rows
        self.predictions, self.batch_size = None, batch
        generate = Generate(method, rows, new_tokens)
        self._weights = generate.weights
        self._generate = written.RowMap(generate, self.mesh)
        self._questions = [
            written.Question(row, prompt, self.tokens_of(prompt))
            for row, prompt in enumerate(prompts)
        ]
        self.source = [{"id": str(row), "image": image} for row, image in enumerate(images)]

    def answers(self, model, prompt_lengths) -> list[str]:
        with mock.patch.object(written, "prompt_lengths", prompt_lengths):
            return self.write(model, self._questions, None)
