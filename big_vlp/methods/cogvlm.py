"""CogVLM (arXiv 2311.03079): a language model with visual experts learns to write about images."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp

from big_vlp import losses, trees
from big_vlp.augment.photometric import normalise
from big_vlp.generation.answers import Generate
from big_vlp.methods.shared import base
from big_vlp.methods.shared.accumulate import sum_over_micro_batches
from big_vlp.methods.shared.base import compute_dtype, in_compute_dtype
from big_vlp.methods.shared.ema import ema
from big_vlp.models import layout as layouts
from big_vlp.models.cogvlm import CogVLM, dead_parameters, needed_layout
from big_vlp.models.layers import axes
from big_vlp.models.lora import Lora
from input_pipeline.checks import arguments
from input_pipeline.preprocess import Preprocess
from input_pipeline.views.cogvlm import Rows


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
    """Next-token prediction of the tokens that the loss mask marks.

    What is trained is the optimizer's affair: what it freezes has neither gradient nor moments, and
    a frozen image tower no backward pass. Without an image tower this is the pretraining of a
    language model, whose weights a CogVLM then starts from. Running statistics of a tower that has
    some stay as they are.

    Attributes:
      model: arguments of `CogVLM` but for those below. Its dropout, if any, acts in training only.
      layout: what rows promise, see `models.layout`: "static" for `bos | image | text`, "general"
        for images anywhere, several, or in some rows only; "any" for rows without room for that.
        Batches without images are text, whatever the layout.
      image_loss: weight of an ablation of the paper: boi and each patch predict the image tower's
        next token, by 1 - cosine. Above 0 it adds "feature_head" to the model.
      ema_decay: share of the old average in the average after each step; it covers what is trained
        and begins with less: (1 + n) / (10 + n) after n updates, where that is below. None keeps no
        average.
      lora: arguments of `Lora`, whose factors become parameters beside the kernels; None: no LoRA.
      max_new_tokens: of an answer that evaluators let it write.
      accumulate_steps: micro-batches per step; the gradient is that of the whole batch.
      dtype: of the computation.
      attention: what computes it: "auto", or one of `models.layers.attention.BACKENDS`.
      unroll, remat: how the blocks are executed, see `models.layers.transformer.Transformer`.
    """

    preprocess: Preprocess
    model: dict
    layout: str = "static"
    image_loss: float = 0.0
    ema_decay: float | None = None
    lora: dict | None = None
    max_new_tokens: int = 48
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    attention: str = "auto"
    unroll: bool | int = False
    remat: str | None = None

    def __post_init__(self):
        super().__post_init__()
        needed_layout(self.network, self.layout)  # raises where it is unknown
        has_image = self.model.get("image") is not None
        if self.image_loss < 0 or (self.image_loss and not (has_image and self.layout == "static")):
            raise ValueError(
                f"image_loss={self.image_loss} must be 0 or more, and needs an image tower and "
                "layout='static'."
            )
        if not has_image and self.network.expert_parts:
            raise ValueError("Without an image tower there are no visual experts: expert_parts=().")
        needed = self.network.image_token_size if has_image else None
        if needed != self.preprocess.image_token_size:
            raise ValueError(
                f"preprocess.image_token_size={self.preprocess.image_token_size} must be {needed}: "
                "the pixels per side of an image token, or None without an image tower."
            )
        if has_image and self.preprocess.resize != "squash":
            raise ValueError(
                "CogVLM reads whole images: set preprocess.resize='squash', not "
                f"{self.preprocess.resize!r}."
            )

    @property
    def network(self) -> CogVLM:
        return arguments.call(
            "model",
            CogVLM,
            self.model,
            image_head=self.image_loss > 0,
            dtype=compute_dtype(self.dtype),
            unroll=self.unroll,
            remat=self.remat,
            attention=self.attention,
        )

    @property
    def vocab_size(self) -> int:
        return self.network.text["vocab_size"]

    def init_model(self, rng):
        size = self.preprocess.image_size
        # A row of one language token creates everything.
        tokens = jnp.zeros((1, 1), jnp.int32)
        images = None if self.network.image is None else jnp.zeros((1, 1, size, size, 3))
        with axes.recording() as declared:
            variables = dict(self.network.init(rng, images, tokens, tokens))
        params = variables.pop("params")
        if self.lora is not None:
            lora = arguments.call("lora", Lora, self.lora)
            params = lora.add(jax.random.fold_in(rng, 1), params, declared.kernels)
        return params | variables

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del averaged, step
        model = trees.merge(trees.merge(trainable, frozen), statistics)
        size = batch["tokens"].shape[0]
        count = self._counted(batch).sum()

        def part(model, rows):
            sums, _, image_losses = self._row_losses(model, rows)
            terms = {"text_loss": sums.sum() / jnp.maximum(count, 1)}
            if self.image_loss:
                terms["image_loss"] = self.image_loss * image_losses.sum() / size
            return sum(terms.values()), terms

        rows = {**batch, "keys": jax.random.split(rng, size)}
        loss, terms = sum_over_micro_batches(part, model, rows, self.accumulate_steps, self.dtype)
        metrics = {"answer_tokens": count / size} | (terms if self.image_loss else {})
        if self.layout != "static":
            metrics["images"] = layouts.image_starts(batch["token_types"]).sum() / size
        return loss, (statistics, metrics)

    def check_spec(self, spec) -> None:
        if "segments" in spec and self.layout == "static":
            raise ValueError(
                "layout='static' is for one image in front of each row, but config.views has "
                "max_images: set config.method.layout='general'."
            )

    def check_batch(self, rows) -> None:
        if images := _images(rows):
            layout = needed_layout(self.network, self.layout)
            layouts.check(layout, rows["token_types"], images, self._slots(rows))
        else:
            layouts.check("any", rows["token_types"], 0, 0)

    def _slots(self, rows) -> int:
        """Of an image: its tokens, boi and eoi."""
        return (rows["images"].shape[2] // self.preprocess.image_token_size) ** 2 + 2

    def _first_predicted(self, rows) -> int:
        """The first position whose token is predicted: in the static layout, of the text."""
        return 1 + self._slots(rows) if self.layout == "static" and _images(rows) else 1

    def _counted(self, rows):
        """bool[B, t]: which tokens count, of those from `_first_predicted` on. The first of a
        segment never does: it would be predicted from another example."""
        start, mask = self._first_predicted(rows), rows["loss_mask"]
        if "segments" in rows:
            mask = mask & ~layouts.starts(rows["segments"])
        return mask[:, start:]

    def _row_losses(self, model, rows):
        """(f32[B], i32[B], f32[B]): each row's summed loss of text, the number of its tokens that
        count, and the mean of 1 - cosine over its image.

        Without "keys" there is no dropout.
        """
        tokens, types = rows["tokens"], rows["token_types"]
        start = self._first_predicted(rows)

        def run(module):
            features, image_loss = None, jnp.zeros(len(tokens))
            if _images(rows):
                images = normalise(rows["images"], self.preprocess.mean, self.preprocess.std)
                patches = module.image_tokens(images)
                features = module.adapt(patches)
            more = {"dropout_keys": rows.get("keys"), "segments": rows.get("segments")}
            hidden, _ = module.hidden(tokens, types, features, self.layout, **more)
            if module.image_head and features is not None:
                predicted = module.predict_features(hidden[:, 1 : start - 2])
                targets = jax.lax.stop_gradient(patches[:, 0])
                image_loss = 1 - losses.cosine(predicted, targets).mean(axis=1)
            return hidden[:, start - 1 : -1], image_loss

        with self.lora_active():
            hidden, image_loss = self.network.apply(trees.variables(model), method=run)
            predicted, counted = tokens[:, start:], self._counted(rows)
            of_head, others = trees.split(model, lambda path: path.startswith("language/head/"))

            def logits(of_head, hidden):
                variables = trees.variables(trees.merge(of_head, others))
                return self.network.apply(variables, hidden, method="logits")

            text_loss = losses.next_tokens(hidden, logits, of_head, predicted, counted)
        return *text_loss, image_loss

    def lora_active(self):
        """A context in which the model uses LoRA's factors, if it has some; see `Lora.active`."""
        return contextlib.nullcontext() if self.lora is None else Lora(**self.lora).active()

    def merged(self, model):
        """The model with what LoRA learnt in its kernels, and without LoRA's factors. In bf16 the
        smallest changes are rounded away."""
        return model if self.lora is None else Lora(**self.lora).merge(model)

    def for_writing(self, model):
        """The model with what every new token goes through in the compute dtype. LoRA's factors
        stay apart: in bf16 kernels the smallest changes would be rounded away.

        The image tower and the visual experts, which read a prompt once, are the same arrays, and
        so is what needs no change; every other array lies on the devices as the one it replaces.
        """

        def every_token(path):
            return re.match("language/(?!blocks/vision/)", path)

        used, others = trees.split(model, every_token)
        used = in_compute_dtype(used, self.dtype, ("kernel", "embedding"))
        return trees.merge(used, others)

    def model_images(self, batch, keys):
        if not _images(batch):
            return {}
        return {"image": normalise(batch["images"], self.preprocess.mean, self.preprocess.std)}

    def after_update(self, old, new, averaged, step):
        if self.ema_decay is None:
            return new, averaged
        decay = jnp.minimum(self.ema_decay, (2 + step) / (11 + step))  # after step + 1 updates
        return new, ema(averaged, new, decay)

    def dead_parameters(self):
        return dead_parameters(self.network)

    def towers(self):
        if self.network.image is None:
            return {}
        tower, pre = self.network.image_tower, self.preprocess
        return {"vision": {**tower.arguments(), "mean": pre.mean, "std": pre.std}}

    def predict_fns(self):
        """`token_losses` and `generate` (greedy), see `evaluators.shared.base`."""
        return {
            "token_losses": lambda model, batch: self._row_losses(model, batch)[:2],
            "generate": Generate(self, Rows.of(self.preprocess), self.max_new_tokens),
        }


def _images(rows) -> int:
    """For how many images a batch has place in each row."""
    return rows["images"].shape[1] if "images" in rows else 0
