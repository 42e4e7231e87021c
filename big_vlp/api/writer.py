"""A CogVLM that writes: prompts laid out with their images, and the text that follows them."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from big_vlp import trees
from big_vlp.api.errors import ModelError
from big_vlp.augment.photometric import normalise
from big_vlp.generation.beams import Beams
from big_vlp.generation.sampling import Strategy, generate, stream
from big_vlp.parallel import meshes
from big_vlp.storage.model_dir import open_model
from input_pipeline.images.crops import eval_image
from input_pipeline.views.cogvlm import LANGUAGE, VISION, Rows

IMAGE = "<image>"
PROMPT_MULTIPLE = 128  # one compiled program for prompts of up to so many tokens more


class Prompt(NamedTuple):
    """tokens, types: i32[1, T] as of `models.layout`; layout: see `CogVLM`; text: how many tokens
    of text there are."""

    tokens: np.ndarray
    types: np.ndarray
    layout: str
    text: int


def lay_out(rows: Rows, prompt: str, num_images: int) -> Prompt:
    """A row of images and text.

    Images stand where the prompt says <image>, or if it never does in front, a line end between
    them.

    Raises:
      ModelError: the prompt names another number of images.
    """
    places = prompt.count(IMAGE)
    if places == 0 and num_images:
        pieces = ["", *["\n"] * (num_images - 1), prompt]
    elif places == num_images:
        first, *others = prompt.split(IMAGE)
        pieces = [first.rstrip(" ") if others else first, *(p.lstrip(" ") for p in others)]
        # Two images need a token between them.
        pieces[1:-1] = [piece.rstrip(" ") or "\n" for piece in pieces[1:-1]]
    else:
        raise ModelError(
            f"The prompt says {IMAGE} {places} times, but the number of images is {num_images}: "
            "give one image for each."
        )
    tokens, types = [rows.text.bos_id], [LANGUAGE]
    for i, piece in enumerate(pieces):
        if i:
            tokens += [rows.text.pad_id] * rows.num_slots
            types += [VISION] * rows.num_slots
        ids = rows.text.encode(piece)
        tokens += ids
        types += [LANGUAGE] * len(ids)
    static = num_images == 1 and types[1] == VISION
    arrays = (np.array([row], np.int32) for row in (tokens, types))
    return Prompt(*arrays, "static" if static else "general", types.count(LANGUAGE) - 1)


class Writer:
    """A model that writes.

    Args:
      directory: of the model.
      weights, step: see `open_model`.
      devices: how many the model is split over.

    Raises:
      CheckpointError: it is no model directory.
      ModelError: it is not that of a CogVLM with a tokenizer, or cannot be split like that.
      OSError: its tokenizer is missing.
    """

    def __init__(
        self,
        directory: str | Path,
        weights: str | None = None,
        devices: int = 1,
        step: int | None = None,
    ):
        stored = open_model(directory, weights, step)
        name, preprocess = stored.meta["config"]["method"]["name"], stored.preprocess
        if name != "cogvlm":
            raise ModelError(f"{directory} holds a model of {name!r}; only 'cogvlm' writes text.")
        if not 1 <= devices <= jax.device_count():
            raise ModelError(f"devices={devices}: there are {jax.device_count()}.")
        self._mesh = meshes.make_mesh(tensor=devices, devices=jax.devices()[:devices])
        method = stored.make_method()
        self._preprocess, model = preprocess, method.network
        try:
            self.rows = Rows.of(preprocess)
        except ValueError as error:
            raise ModelError(f"{directory}: {error} Convert the model again.") from error
        if self.rows.text.vocab_size > model.text["vocab_size"]:
            raise ModelError(
                f"The tokenizer {preprocess.tokenizer!r} has {self.rows.text.vocab_size} tokens, "
                f"the model {model.text['vocab_size']}: it is another model's."
            )
        self._model, self._params = model, method.for_writing(stored.load(self._mesh))
        self._lora_active = method.lora_active
        self._encode = jax.jit(
            lambda params, images: model.apply(
                trees.variables(params),
                normalise(images, preprocess.mean, preprocess.std),
                method="encode_images",
            )
        )

    def features(self, images: Sequence[bytes]):
        """Features [1, I, N + 2, D] of encoded images; None where there are none.

        Raises:
          ModelError: the model has no image tower.
          ValueError: an image cannot be decoded.
        """
        if not images:
            return None
        if self._model.image is None:
            raise ModelError("This is a language model: ask it without an image.")
        pixels = np.stack([eval_image(data, self._preprocess) for data in images])
        with jax.set_mesh(self._mesh), self._lora_active():
            return self._encode(self._params, pixels[None])

    def write(
        self,
        prompt: Prompt,
        features,
        max_new_tokens: int,
        strategy: Strategy = None,
        key=None,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> tuple[str, bool]:
        """The continuation of a prompt, and whether it ended by itself.

        Args:
          max_new_tokens: at most so many, and no more than the context has room for.
          strategy, key: see `generation.sampling.generate`.
          on_text: called with each piece of text as it comes; at the end with beam search.

        Raises:
          ModelError: the context has no room for one more token.
        """
        room = self.rows.context_length - prompt.text
        if room < 1:
            raise ModelError(
                f"The prompt has {prompt.text} tokens of text; the model's context takes "
                f"{self.rows.context_length} with the answer. Ask something shorter."
            )
        text = self.rows.text
        arguments = self._model, self._params, prompt.tokens, prompt.types, features
        options = dict(eos_id=text.eos_id, pad_id=text.pad_id, strategy=strategy, key=key)
        options |= dict(layout=prompt.layout, multiple=PROMPT_MULTIPLE)
        options["max_new_tokens"] = max_new_tokens
        with jax.set_mesh(self._mesh), self._lora_active():
            if isinstance(strategy, Beams):
                options["max_new_tokens"] = min(max_new_tokens, room)
                ids = np.asarray(generate(*arguments, **options))[0].tolist()
            else:
                tokens = itertools.islice(stream(*arguments, **options), room)
                ids = (int(token[0]) for token in tokens)
            return self._read(ids, on_text)

    def _read(self, ids, on_text) -> tuple[str, bool]:
        kept, shown, ended = [], "", False
        for token in ids:
            ended = token == self.rows.text.eos_id
            if ended:
                break
            kept.append(token)
            whole = self.rows.text.decode(kept)
            if not whole.endswith("\ufffd"):  # a character of which bytes are to come
                on_text(whole[len(shown) :])
                shown = whole
        whole = self.rows.text.decode(kept)
        on_text(whole[len(shown) :])
        return whole, ended
