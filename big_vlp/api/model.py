"""A model for Python programs: images and texts in, numpy arrays out. `big_vlp.load` makes it."""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.api import dense
from big_vlp.api.conversation import Conversation
from big_vlp.api.errors import ModelError, explained
from big_vlp.api.images import as_list, of_pixels, read
from big_vlp.api.writer import Writer
from big_vlp.generation.sampling import Strategy, check_strategy
from big_vlp.parallel import meshes
from big_vlp.storage.model_dir import open_model
from evaluators.maps.segmentation import label_map
from evaluators.pairs.zeroshot import zeroshot_weights
from evaluators.shared import base
from evaluators.shared.rows import RowMap
from input_pipeline.checks import unicode
from input_pipeline.images.crops import decode, eval_image
from input_pipeline.text.tokenizers import make_tokenizer

TEMPLATES = ("a photo of a {}.",)
# What a model can be asked, and the `Method.predict_fns` behind it.
NEEDS = {
    "encode_image": {"encode_image"},
    "encode_text": {"encode_text"},
    "similarity": {"encode_image", "encode_text"},
    "zero_shot": {"encode_image", "encode_text"},
    "classify": {"probabilities"},
    "words": {"probabilities"},
    "segment": {"segment"},
    "segment_named": {"encode_patches", "encode_text"},
    "attention_maps": {"attention_maps"},
    "generate": {"generate"},
}


class Model:
    """A trained model. What it `can` do is what its method has; the rest raises ModelError.

    Images are paths, encoded bytes, PIL images or arrays u8[H, W, 3] of RGB, of any size: one, or
    any number in a list, an iterator or an array u8[N, H, W, 3]. Texts are a string or a list.
    Outputs are in the order of what was given, and one image or text is a list of one. The
    preprocess record of the model decides how they become its input, as in evaluation.

    A lone image or text runs by itself, more in batches of one size, the last one padded: so two
    programs are compiled, each when it is first needed, whatever the numbers.

    Args:
      directory, weights, step, batch_size: see `big_vlp.load`.

    Attributes:
      stored: what the directory says, with the step and the weights that were read.
      preprocess: its record.
      class_names: of a classifier in the order of its classes; None where labels.json is missing.
      can: names of the methods that this model has.
      mesh: the devices.

    Raises:
      As `big_vlp.load`. All methods raise ModelError for what this model cannot do and for images,
      texts and options that cannot be used; the message names which.
    """

    def __init__(
        self,
        directory: str | Path,
        weights: str | None = None,
        step: int | None = None,
        batch_size: int = 32,
    ):
        self.stored = open_model(directory, weights, step)
        self.preprocess = self.stored.preprocess
        self.class_names = self.stored.labels and self.stored.labels.names
        with explained(directory):
            fns = dict(self.stored.make_method().predict_fns())
        if "features" in fns:
            fns.setdefault("encode_image", fns["features"])
        self.can = tuple(name for name, needed in NEEDS.items() if needed <= fns.keys())
        self.mesh = meshes.make_mesh()
        self._shards = math.prod(self.mesh.shape[axis] for axis in meshes.BATCH_AXES)
        batches = -(-_at_least_1("batch_size", batch_size) // self._shards)
        self._batch_size = batches * self._shards
        if "generate" in fns:
            self._writer = Writer(self.stored.directory, self.stored.weights, step=self.stored.step)
            return
        self._weights = self.stored.load(self.mesh)
        self._row_maps: dict[str, RowMap] = {}
        self._named_last: tuple[list[str], np.ndarray] | None = None
        whole = meshes.replicated(self.mesh)
        self._fns = {name: jax.jit(fn, out_shardings=whole) for name, fn in fns.items()}

    def __repr__(self) -> str:
        method = self.stored.meta["config"]["method"]["name"]
        return f"<{method} model of {self.stored.directory}, can {', '.join(self.can)}>"

    def encode_image(self, images: Any) -> np.ndarray:
        """Features f32[N, D]: of unit length from CLIP, SigLIP and COSMOS, pooled by the tower, as
        they are, from classifiers."""
        self.check("encode_image")
        images = as_list(images)
        load = functools.partial(self._row, images)
        return self._all("encode_image", load, len(images))

    def encode_text(self, texts: str | Iterable[str]) -> np.ndarray:
        """Features f32[N, D] of unit length, to be compared with `encode_image`'s."""
        self.check("encode_text")
        tokens = self.tokens(_strings(texts, "texts"))
        return self._all("encode_text", lambda number: {"tokens": tokens[number]}, len(tokens))

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Texts as `encode_text` reads them, i32[N, T]."""
        return self._tokenize(texts, self.preprocess.context_length)

    def stream(
        self, name: str, load: Callable[[int], dict], count: int, batch_size: int
    ) -> Iterator[np.ndarray]:
        """The outputs of `encode_image` or `encode_text`, batch by batch, by all processes.

        `mesh` must be ambient. For the rest see `evaluators.shared.rows.RowMap`.

        Args:
          load: gives the "image" or the "tokens" of a row; called from threads.
        """
        self.check(name)
        if name not in self._row_maps:
            self._row_maps[name] = RowMap(self._fns[name], self.mesh)
        return self._row_maps[name].stream(self._weights, load, count, batch_size)

    def similarity(self, images: Any, texts: str | Iterable[str]) -> np.ndarray:
        """Cosines f32[N, M] of N images and M texts, in -1..1."""
        self.check("similarity")
        return self.encode_image(images) @ self.encode_text(texts).T

    def zero_shot(
        self,
        images: Any,
        class_names: Iterable[str],
        templates: str | Iterable[str] = TEMPLATES,
    ) -> np.ndarray:
        """Probabilities f32[N, C] of classes that are only named: rows sum to 1.

        They are the softmax over the classes of cosine times the learnt scale, for SigLIP too, as
        one of the classes is taken to be right.

        Args:
          class_names: as people say them.
          templates: with one `{}` each, for the name; a class is the mean of its prompts (CLIP,
            arXiv 2103.00020, section 3.1.4).
        """
        self.check("zero_shot")
        classes = self._named(class_names, templates)
        scale = np.exp(np.asarray(self._weights["logit_scale"], np.float32))
        logits = scale * self.encode_image(images) @ classes
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def _named(self, class_names, templates) -> np.ndarray:
        """The classifier f32[D, C] of names; the last one is kept."""
        if isinstance(class_names, str):
            raise ModelError(f"class_names={class_names!r}: give a list of names.")
        names, templates = _strings(class_names, "class_names"), _strings(templates, "templates")
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise ModelError(f"templates needs strings with one {{}} each; got {wrong}.")
        if not names:
            raise ModelError("class_names is empty; name one class or more.")
        prompts = [template.replace("{}", name) for name in names for template in templates]
        if self._named_last is None or self._named_last[0] != prompts:
            weights = zeroshot_weights(self.encode_text(prompts), len(names))
            self._named_last = prompts, weights
        return self._named_last[1]

    def classify(self, images: Any, top: int = 5) -> list[list[tuple[str, float]]]:
        """The most probable classes of each image: (name, probability), the first the highest.

        Probabilities sum to 1 over the classes, or stand for themselves where an image can have
        several, as in CatLIP, whose classes are synsets to be expected in a caption.
        """
        self.check("classify")
        _at_least_1("top", top)
        if self.class_names is None:
            raise ModelError(
                f"{self.stored.directory} has no labels.json, which names the classes: bring it "
                "back, or convert or train the model again."
            )
        images = as_list(images)
        load = functools.partial(self._row, images)
        return [
            [(self.class_names[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top]]
            for rows in self._batches("probabilities", load, len(images))
            for row in rows
        ]

    def words(self, images: Any, top: int = 10) -> list[list[tuple[str, float]]]:
        """The synsets that a CatLIP model expects in a caption of each image; see `classify`."""
        self.check("words")
        return self.classify(images, top)

    def segment(self, images: Any) -> list[np.ndarray]:
        """The class of every pixel, i32[H, W] for each image at its own size; -1 where no class is
        above all others."""
        self.check("segment")
        if self.preprocess.resize != "squash":
            raise ModelError(
                "Segmentation needs the whole image, and the preprocess record of this model says "
                f"resize={self.preprocess.resize!r}, not 'squash'."
            )
        images, sizes = as_list(images), {}

        def load(number):
            pixels = read(images[number], number, decode)
            sizes[number] = pixels.shape[:2]
            return {"image": eval_image(of_pixels(pixels), self.preprocess)}

        maps = []
        for rows in self._batches("segment", load, len(images)):
            for row in rows:
                maps.append(label_map(jnp.asarray(row), *sizes.pop(len(maps))))
        return maps

    def segment_named(
        self,
        images: Any,
        class_names: Iterable[str | Sequence[str]],
        templates: str | Iterable[str] = TEMPLATES,
        correlative: bool = True,
        logit_scale: float = 40.0,
    ) -> list[np.ndarray]:
        """The class of every pixel out of those that are named, i32[H, W] for each image at its own
        size; -1 where no class is above all others. See `evaluators.maps.zeroshot_segmentation`.

        Args:
          class_names: as people say them; of each class one, or several of which the most probable
            counts.
          templates: as of `zero_shot`.
          correlative: takes correlative self-attention (arXiv 2312.01597) in the last block.
          logit_scale: factor of the similarities, whose softmax over all names are probabilities.
        """
        self.check("segment_named")
        if isinstance(class_names, str):
            raise ModelError(f"class_names={class_names!r}: give a list of names.")
        if not isinstance(class_names, Iterable):
            raise ModelError(f"class_names={class_names!r}: give a list of names.")
        classes = [_strings(names, "class_names") for names in class_names]
        if not all(classes):
            raise ModelError("class_names has a class without a name; give each one or more.")
        names = self._named([name for names in classes for name in names], templates)

        def run(rows):
            def load(number):
                return {"image": rows[number]}

            for batch in self._batches("encode_patches", load, len(rows)):
                yield from batch

        rule = dense.rule_of(classes, logit_scale)
        size = self.preprocess.image_size
        return dense.label_maps(run, as_list(images), names, rule, size, correlative)

    def attention_maps(
        self, images: Any, captions: str | Iterable[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a COSMOS attends to in images and captions, each row of one with the same of the
        other: the mean of the heads' weights over patches f32[N, h, w] of the image as the model
        sees it, and over tokens f32[N, T]; each of them sums to 1, or to less with
        `zero_attention`."""
        self.check("attention_maps")
        images, captions = as_list(images), _strings(captions, "captions")
        if len(images) != len(captions):
            raise ModelError(
                f"{len(images)} images and {len(captions)} captions: give as many of both."
            )
        if not images:
            raise ModelError("There are no images: give one or more.")
        tokens = self._tokenize(captions, self.preprocess.context_length)

        def load(number):
            return {**self._row(images, number), "tokens": tokens[number]}

        batches = list(self._batches("attention_maps", load, len(images)))
        patches, words = (np.concatenate(parts).mean(axis=1) for parts in zip(*batches))
        side = math.isqrt(patches.shape[1])
        return patches.reshape(-1, side, side), words

    def generate(
        self,
        images: Any = None,
        prompts: str | Iterable[str] = "",
        template: str | None = None,
        max_new_tokens: int = 256,
        strategy: Strategy = None,
        seed: int = 0,
    ) -> list[str]:
        """What a CogVLM answers, one text for each image and its prompt.

        Args:
          images: one for each prompt; one for all prompts; or None, for text alone.
          prompts: one for each image, or one for all.
          template: "base" (with an empty prompt: a caption), "vqa" (short answers), "chat_old",
            "chat" or "grounding" (boxes); None: see `Conversation`.
          strategy: `generation.sampling.Sampling` or `generation.beams.Beams`; None is greedy.
          seed: of sampling.
        """
        self.check("generate")
        _at_least_1("max_new_tokens", max_new_tokens)
        prompts = _strings(prompts, "prompts")
        with explained("strategy"):
            check_strategy(strategy)
        contexts: list[list[bytes]] = [[]]  # the image, if any, of each prompt
        if images is not None:
            numbered = enumerate(as_list(images))
            contexts = [[read(image, number, _decodable)] for number, image in numbered]
        if len(contexts) != len(prompts) and 1 not in (len(contexts), len(prompts)):
            raise ModelError(
                f"{len(contexts)} images and {len(prompts)} prompts: give as many of both, or one."
            )
        count, answers = max(len(contexts), len(prompts)), []
        for number in range(count if contexts and prompts else 0):
            if number < len(contexts):  # else the same image again
                with explained("template"):
                    conversation = Conversation(self._writer, contexts[number], template)
            conversation.history.clear()
            key = jax.random.fold_in(jax.random.key(seed), number)
            asked = min(number, len(prompts) - 1)
            with explained(f"prompts[{asked}]"):
                answer = conversation.ask(
                    prompts[asked], max_new_tokens, strategy=strategy, key=key
                )
            answers.append(answer.text.strip())
        return answers

    def check(self, name: str) -> None:
        """Raises ModelError unless the model can do what the method of that name does."""
        if name not in self.can:
            method = self.stored.meta["config"]["method"]["name"]
            raise ModelError(
                f"{self.stored.directory} is a model of method {method!r}, which cannot {name}; "
                f"it can {', '.join(self.can) or 'do nothing'}."
            )

    def _row(self, images: Sequence, number: int) -> dict[str, np.ndarray]:
        """Image `number` as model input u8[S, S, 3]."""
        pixels = read(images[number], number, lambda data: eval_image(data, self.preprocess))
        return {"image": pixels}

    @functools.cached_property
    def _tokenize(self) -> Callable:
        with explained(self.stored.directory):
            return make_tokenizer(self.preprocess.tokenizer)

    def _all(self, name: str, load: Callable, count: int) -> np.ndarray:
        """The outputs of all rows, see `_batches`."""
        if count:
            return np.concatenate(list(self._batches(name, load, count)))
        row = base.row_of(name, self.preprocess)
        batch = {k: jax.ShapeDtypeStruct((self._shards, *v[0]), v[1]) for k, v in row.items()}
        output = jax.eval_shape(self._fns[name], self._weights, batch)
        return np.zeros((0, *output.shape[1:]), output.dtype)

    def _batches(self, name: str, load: Callable, count: int) -> Iterator[Any]:
        """Runs one of `predict_fns` over rows 0..count-1 that `load` gives, dicts of arrays; it is
        called from threads.

        Yields:
          Outputs of one batch after the other, without padding.
        """
        size = self._batch_size if count > 1 else self._shards
        running = None
        with ThreadPoolExecutor() as pool:
            for start in range(0, count, size):
                rows = list(pool.map(load, range(start, min(start + size, count))))
                kept, rows = len(rows), rows + rows[-1:] * (size - len(rows))
                batch = {field: np.stack([row[field] for row in rows]) for field in rows[0]}
                with jax.set_mesh(self.mesh):
                    output = self._fns[name](
                        self._weights, meshes.global_batch(batch, self.mesh, size)
                    )
                if running is not None:  # read one batch late: the device is never idle
                    yield jax.tree.map(np.asarray, running)
                running = output
        if running is not None:
            yield jax.tree.map(lambda x: np.asarray(x)[:kept], running)


def _decodable(data: bytes) -> bytes:
    """The same bytes; raises ValueError where they are no image."""
    decode(data)
    return data


def _strings(texts: str | Iterable[str], name: str) -> list[str]:
    """The texts as a list.

    Raises:
      ModelError: one is no string, or no valid Unicode.
    """
    if not isinstance(texts, Iterable):
        raise ModelError(f"{name} is of type {type(texts).__name__}; give strings.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ModelError(f"{name}[{number}] is of type {type(text).__name__}; give strings.")
        with explained(f"{name}[{number}]"):
            unicode.check(text)
    return texts


def _at_least_1(name: str, value: int) -> int:
    try:
        if operator.index(value) >= 1:
            return operator.index(value)
    except TypeError:
        pass
    raise ModelError(f"{name}={value!r}: give a whole number, 1 or more.")
