"""CogVLM (arXiv 2311.03079): a language model with visual experts learns to write about images."""

import dataclasses

import jax
import jax.numpy as jnp

from big_vlp import losses, trees
from big_vlp.accumulate import over_micro_batches
from big_vlp.augment import normalise
from big_vlp.generation import predict_fn
from big_vlp.methods import catlip
from big_vlp.models.cogvlm import LAYOUTS, CogVLM
from big_vlp.preprocess import Preprocess
from input_pipeline.cogvlm_views import Rows


@dataclasses.dataclass(frozen=True)
class Method:
    """Next-token prediction of the tokens that the loss mask marks.

    What is trained is the optimizer's affair: what it freezes has neither gradient nor moments, and
    a frozen image tower no backward pass.

    Attributes:
      model: arguments of `CogVLM` but for those below.
      layout: "static" for the views' `bos | image | text`, "general" for any other.
      ema_momentum: share of the new weights in the average after each step; the average covers what
        is trained. None keeps none.
      max_new_tokens: of an answer that evaluators let it write.
      accumulate_steps: micro-batches per step; the gradient is that of the whole batch.
      dtype: of the computation.
      unroll, remat: how the blocks are executed, see `models.transformer.Transformer`.
    """

    preprocess: Preprocess
    model: dict
    layout: str = "static"
    ema_momentum: float | None = None
    max_new_tokens: int = 48
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    unroll: bool = False
    remat: str | None = None

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r}; choose one of {LAYOUTS}.")
        if self.ema_momentum is not None and not 0 < self.ema_momentum <= 1:
            raise ValueError(f"ema_momentum={self.ema_momentum} must be in (0, 1].")

    @property
    def cogvlm(self) -> CogVLM:
        return CogVLM(
            **self.model, dtype=jnp.dtype(self.dtype), unroll=self.unroll, remat=self.remat
        )

    def init(self, rng):
        size = self.preprocess.image_size
        # A row of one language token creates everything.
        tokens = jnp.zeros((1, 1), jnp.int32)
        images = jnp.zeros((1, 1, size, size, 3))
        model = self.cogvlm.init(rng, images, tokens, tokens)["params"]
        return model, {} if self.ema_momentum is None else jax.tree.map(jnp.copy, model)

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del averaged, rng, step
        params = trees.merge(trainable, frozen)
        sums, counts = over_micro_batches(
            lambda rows: self._token_losses(params, rows), batch, self.accumulate_steps
        )
        count = counts.sum()
        metrics = {"answer_tokens": count / batch["tokens"].shape[0]}
        return sums.sum() / jnp.maximum(count, 1), (statistics, metrics)

    def _token_losses(self, params, rows):
        """(f32[B], i32[B]): each row's summed loss, and the number of its tokens that count."""
        cogvlm, tokens, types = self.cogvlm, rows["tokens"], rows["token_types"]
        images = normalise(rows["images"], self.preprocess.mean, self.preprocess.std)

        def run(model):
            features = model.encode_images(images)
            hidden, _ = model.hidden(tokens, types, features, self.layout)
            # In the static layout the end of the image is the first to predict a token of text.
            first = features.shape[2] if self.layout == "static" else 0
            return model.logits(hidden[:, first:-1])

        logits = cogvlm.apply({"params": params}, method=run)
        start = tokens.shape[1] - logits.shape[1]
        return losses.next_tokens(logits, tokens[:, start:], rows["loss_mask"][:, start:])

    def text_length(self, batch):
        return 0

    def cut_text(self, batch, length):
        return batch

    def model_images(self, batch, keys):
        return {"image": normalise(batch["images"], self.preprocess.mean, self.preprocess.std)}

    def after_update(self, old, new, averaged, step):
        if self.ema_momentum is None:
            return new, averaged
        return new, catlip.moving_average(averaged, new, self.ema_momentum)

    def predict_fns(self):
        """`token_losses` and `generate` (greedy), see `evaluators.common`."""
        pre, image = self.preprocess, self.model["image"]
        pool = 2 if image.get("downsample") else 1
        rows = Rows(pre.tokenizer, pre.image_size, pre.context_length, image["patch_size"], pool)
        return {
            "token_losses": lambda model, batch: self._token_losses(model, batch),
            "generate": predict_fn(self, rows, self.max_new_tokens, layout=self.layout),
        }
