"""Starts a run from models trained before: an image tower, a language model, all of one."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees
from big_vlp.models import lora
from big_vlp.storage import compared
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.model_dir import open_model
from input_pipeline.words.matching import match_classes

CLASSIFIERS = ("random", "transfer", "copy")
_KERNEL = "classifier/kernel"
_EXPERTS = "language/blocks/vision"
# What a tower may have beyond what it is taken for: class token, last norm and pooling.
_LEFT_OUT = re.compile(r".*/(class_token|norm_post/.*|proj/kernel|map/.*)")


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Where the weights come from.

    Attributes:
      model: a model directory.
      parts: {part of the new model: part of the old one it is copied from}, as beginnings of paths,
        such as {"vision": "image_tower"}; the longest that fits counts. None as the old part leaves
        the new one as it was initialised. Running statistics come along; a class token or pooling
        that the new part does not have is left out. Visual experts can be copies of the language
        model's weights ("language/blocks/vision": "language/blocks/language"); where not every
        block has one, or not of every part, the others are left out. By default, for methods with
        one image tower, that tower and learned augmentation; for those with an image and a text
        tower, all that both models have. Towers must not only fit, but compute the same.
      weights: "model" or "averaged"; None takes the average where there is one.
      step: which checkpoint; None takes the latest.
      fresh_blocks: so many of the last blocks of each tower stay as they were initialised, the same
        in the model and its average. (COSMOS' code draws its teacher's apart.)
      dropped_blocks: so many of the last blocks of everything that is taken are left out, of every
        tower and language model alike; the new ones have as many fewer, and no norm behind them,
        which was learnt for the last block.
      classifier: what the new classifier starts from. "random": as initialised. "copy": the old
        one, for the same classes. "transfer": Transfer Init (arXiv 2404.15653, section 4): the mean
        of the old classifier's columns for the synsets nearest to each class. Biases are not
        transferred: they tell how often a word is said in captions.
      min_similarity: for "transfer": WordNet path similarity below which a synset does not count.

    Raises:
      ValueError: an unknown kind of classifier, or a similarity out of range.
    """

    model: str
    parts: Mapping[str, str | None] | None = None
    weights: str | None = None
    step: int | None = None
    fresh_blocks: int = 0
    dropped_blocks: int = 0
    classifier: str = "random"
    min_similarity: float = 0.0

    def __post_init__(self):
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier={self.classifier!r}; choose one of {CLASSIFIERS}.")
        for name in ("fresh_blocks", "dropped_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more.")
        if not 0 <= self.min_similarity <= 1:
            raise ValueError(f"min_similarity={self.min_similarity} must be in [0, 1].")

    def apply(
        self, state: dict, mesh, class_names: Sequence[str] | None, method=None
    ) -> tuple[dict, str]:
        """Puts the weights into a fresh training state, which is used up: what is replaced is given
        back at once, so that a start takes little more memory than the run and the old weights.

        Args:
          class_names: of the new task, for "transfer".
          method: of the new model; its towers are compared with the old ones'.

        Returns:
          The state, whose arrays live where they did, and one line about what was done.

        Raises:
          CheckpointError: there is no such model, or it does not fit; every difference is named.
        """
        stored = open_model(self.model, self.weights, self.step)
        old = trees.flatten(stored.load(mesh))
        fresh = trees.flatten(trees.merge(state["model"], state["frozen"]))
        parts = self._default_parts(fresh, old) if self.parts is None else dict(self.parts)
        new = self._taken(fresh, old, parts)
        note = f"Started from step {stored.step} of {stored.directory} ({stored.weights} weights)"
        if method is not None:
            note += self._compared(stored, method, parts)
        if self.fresh_blocks:
            new = {path: self._with_fresh_blocks(path, x, fresh[path]) for path, x in new.items()}
            note += f"; the last {self.fresh_blocks} of each tower's blocks are fresh"
        if self.dropped_blocks:
            note += f"; without the last {self.dropped_blocks} of the old blocks"
        if self.classifier == "transfer":
            kernel, counts = self._transferred(stored, old, fresh[_KERNEL], class_names)
            new[_KERNEL] = kernel
            note += f"; Transfer Init: {counts}"
        flat = {name: trees.flatten(state[name]) for name in ("model", "averaged", "frozen")}
        for path, value in new.items():
            for part in flat.values():
                if path in part:
                    # Each its own array: the training step gives its state's memory away.
                    replaced, part[path] = part[path], _like(value, part[path])
                    replaced.delete()
        return state | {name: trees.unflatten(part) for name, part in flat.items()}, f"{note}."

    def _compared(self, stored, method, parts: dict) -> str:
        """What to note of towers that fit; raises where they compute otherwise."""
        taken = compared.towers_of(method, parts)
        if not taken:
            return ""
        normed = [path for path in sorted(taken) if method.towers()[path].get("final_norm")]
        if self.dropped_blocks and normed:
            raise CheckpointError(
                f"init.dropped_blocks={self.dropped_blocks}, but the norm behind the blocks of "
                f"{normed} was learnt for the last one: set final_norm=False there."
            )
        try:
            old = stored.make_method()
        except CheckpointError as error:  # a method that is gone; its weights are there
            return f"; nobody compared what its towers compute: {error}"
        lines = compared.differences(method, old, parts)
        if lines:
            raise CheckpointError(
                f"{self.model} has towers that compute otherwise than the config's:\n  "
                + "\n  ".join(lines)
                + "\nChange config.method.model or config.preprocess."
            )
        return compared.note(method, old, parts)

    def _without_last(self, path: str, value):
        """Fewer of the blocks that a parameter holds."""
        if not self.dropped_blocks or "/blocks/" not in path:
            return value
        if self.dropped_blocks >= value.shape[0]:
            raise CheckpointError(
                f"init.dropped_blocks={self.dropped_blocks}, but what {path} starts from has "
                f"{value.shape[0]} blocks, of which at least one must be left."
            )
        return value[: -self.dropped_blocks]

    def _with_fresh_blocks(self, path: str, value, fresh):
        if "/blocks/" not in path:
            return value
        kept = value.shape[0] - self.fresh_blocks
        if kept < 1:
            raise CheckpointError(
                f"init.fresh_blocks={self.fresh_blocks}, but {path} has {value.shape[0]} blocks, "
                "of which at least one must come from the model."
            )
        return jnp.concatenate([value[:kept], fresh[kept:].astype(value.dtype)])

    def _taken(self, fresh: dict, old: dict, parts: dict) -> dict:
        """{path of the new model: the old array for it}; all that the parts cover, in its shape."""
        expected, found = {}, {}
        for part, source in parts.items():
            own = [p for p in fresh if _covering(p, parts) == part]
            if not own:
                raise CheckpointError(
                    f"init.parts names {part!r}, but no parameter of the model is below it."
                )
            if source is None:
                continue
            renamed = {_rename(path, source, part): array for path, array in old.items()}
            given = {
                p: self._without_last(p, a)
                for p, a in renamed.items()
                if p and _covering(p, parts) == part
            }
            # LoRA may begin here.
            expected |= {p: fresh[p] for p in own if p in given or not p.endswith(lora.FACTORS)}
            found |= {p: a for p, a in given.items() if p in expected or not _may_be_left(p)}
        for path, array in found.items():
            if path.startswith(_EXPERTS) and path in expected:
                every = array.shape[0] // expected[path].shape[0]
                found[path] = array[::every] if every > 1 else array
        lines = trees.differences(expected, found)
        if lines:
            merge = any("/lora_" in line for line in lines)
            advice = " Merge its LoRA first: python -m big_vlp.convert merge." if merge else ""
            if self.dropped_blocks:
                advice += f" Its stacks of blocks lack init.dropped_blocks={self.dropped_blocks}."
            raise CheckpointError(
                f"{self.model} does not fit the config's model ({len(lines)} differences).{advice}"
                "\n  " + "\n  ".join(lines)
            )
        return found

    def _default_parts(self, fresh: dict, old: dict) -> dict[str, str]:
        names = {path.split("/")[0] for path in fresh}
        if {"image_tower", "text_tower"} <= names:
            both = names & {path.split("/")[0] for path in old}
            return {name: name for name in sorted(both)}
        if "tower" not in names:
            raise CheckpointError(
                "config.init without parts is for methods with one image tower (catlip, transfer, "
                "segmentation), or an image and a text tower (clip, cosmos); this config's model "
                "has none."
            )
        two_towers = any(path.startswith("image_tower/") for path in old)
        parts = {"tower": "image_tower" if two_towers else "tower"}
        if self.classifier == "copy":
            parts["classifier"] = "classifier"
        if all(any(path.startswith("augment/") for path in tree) for tree in (fresh, old)):
            parts["augment"] = "augment"  # learned ranges
        return parts

    def _transferred(self, stored, old, kernel, class_names):
        keys = stored.labels and stored.labels.keys
        if keys is None or _KERNEL not in old:
            raise CheckpointError(
                f"{self.model} has no classifier of synsets, which Transfer Init starts from; use "
                "init.classifier='random'."
            )
        if not class_names or len(class_names) != kernel.shape[1]:
            raise CheckpointError(
                f"Transfer Init needs the names of the {kernel.shape[1]} classes, and the data "
                f"source has {len(class_names or ())}."
            )
        matches = match_classes(class_names, keys, self.min_similarity)
        shares = np.zeros((len(keys), len(matches)), np.float32)
        for column, match in enumerate(matches):
            for row, _ in match:
                shares[row, column] = 1 / len(match)
        matched = shares.any(axis=0)
        exact = sum(bool(match) and max(s for _, s in match) == 1 for match in matches)
        columns = jnp.matmul(old[_KERNEL], shares, precision="float32")
        counts = (
            f"{exact} classes by their own synset, {int(matched.sum()) - exact} by the nearest, "
            f"{int((~matched).sum())} random"
        )
        return jnp.where(matched, columns, kernel), counts


def _split(path: str) -> tuple[str, str]:
    """ "batch_stats/" or "", and the rest: statistics go by the names of their module."""
    head = f"{trees.STATISTICS}/"
    return (head, path.removeprefix(head)) if path.startswith(head) else ("", path)


def _covering(path: str, parts) -> str | None:
    """The longest part that a path is below."""
    _, path = _split(path)
    return max((p for p in parts if f"{path}/".startswith(f"{p}/")), key=len, default=None)


def _rename(path: str, old: str, new: str) -> str | None:
    """The path with its beginning `old` replaced; None where it has another."""
    head, path = _split(path)
    return f"{head}{new}{path[len(old) :]}" if f"{path}/".startswith(f"{old}/") else None


def _may_be_left(path: str) -> bool:
    return path.startswith(_EXPERTS) or _LEFT_OUT.fullmatch(path) is not None


def _like(value, target):
    """A copy in the dtype of another and where that one lives."""
    copy = jax.jit(lambda x: jnp.copy(x.astype(target.dtype)), out_shardings=target.sharding)
    return copy(value)
