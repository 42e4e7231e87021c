"""Looks at the records of a data set one by one and counts what matters for training on them."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from input_pipeline.checks import unicode
from input_pipeline.figures import new_figure, png
from input_pipeline.images import crops
from input_pipeline.text.tokenizers import END_OF_TEXT, ClipTokenizer

CONTEXT_LENGTH = 77  # CLIP's
_COUNTED_TOKENS = 512  # longer captions count as this long


@dataclass(frozen=True)
class Sample:
    """One example as it is stored, before any reader has mended it.

    Attributes:
      id: its name.
      images: encoded bytes.
      captions: field -> what is stored there: should be a list of strings.
      fields: names of all its fields.
      error: why it, or an image, cannot be read; "" if it can.
    """

    id: str
    images: tuple[bytes, ...]
    captions: dict[str, Any]
    fields: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class Finding:
    """What `examine` saw in one sample.

    Attributes:
      images: (width, height) in pixels of those that can be read, and the digest of their bytes.
      one_string: caption fields that hold a string where a list belongs.
      no_text: caption fields that hold anything else but text.
      blank: captions without a character to see.
      words, tokens: of every other caption; tokens as CLIP's tokenizer counts them, both ends
        included, at most 512.
    """

    id: str
    error: str
    images: list[tuple[int, int, bytes]]
    fields: tuple[str, ...]
    one_string: list[str]
    no_text: list[str]
    blank: int
    words: list[int]
    tokens: list[int]


def examine(sample: Sample) -> Finding:
    """Decodes the images and measures the captions of one sample."""
    error, images = sample.error, []
    for image in sample.images:
        try:
            height, width, _ = crops.decode(image).shape
            images.append((width, height, hashlib.blake2b(image, digest_size=16).digest()))
        except (MemoryError, ValueError) as reason:
            error = str(reason) or "there is no memory to decode it"
    one_string, no_text, texts = [], [], []
    for name, value in sample.captions.items():
        if isinstance(value, str):
            one_string.append(name)
            value = [value]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            texts += value
        else:
            no_text.append(name)
    try:
        unicode.check(texts, "captions")
    except ValueError as reason:
        error = error or str(reason)
    # No tokenizer takes what is not valid; for its length a question mark does.
    visible = [text.encode("utf-8", "replace").decode() for text in texts if text.strip()]
    tokens = ClipTokenizer()(visible, _COUNTED_TOKENS)
    return Finding(
        id=sample.id,
        error=error,
        images=images,
        fields=sample.fields,
        one_string=one_string,
        no_text=no_text,
        blank=len(texts) - len(visible),
        words=[len(text.split()) for text in visible],
        tokens=((tokens == END_OF_TEXT).argmax(axis=1) + 1).tolist(),
    )


@dataclass
class Survey:
    """Sums of findings.

    Attributes:
      unreadable: (id, reason) of every sample whose image or text cannot be read.
      one_string, no_text: caption field -> number of samples, see `Finding`.
      no_caption: ids of the readable samples without one.
      blank: number of blank captions.
      copies: (id, id of the first) for images of the same bytes.
      fields: field -> number of samples that have it.
      widths, heights: pixels; words, tokens: per caption; captions: number per sample.
    """

    samples: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    one_string: Counter[str] = field(default_factory=Counter)
    no_text: Counter[str] = field(default_factory=Counter)
    no_caption: list[str] = field(default_factory=list)
    blank: int = 0
    copies: list[tuple[str, str]] = field(default_factory=list)
    fields: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    captions: list[int] = field(default_factory=list)
    _first: dict[bytes, str] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        self.samples += 1
        self.fields.update(finding.fields)
        self.one_string.update(finding.one_string)
        self.no_text.update(finding.no_text)
        self.blank += finding.blank
        self.words += finding.words
        self.tokens += finding.tokens
        self.captions.append(len(finding.words))
        if finding.error:
            self.unreadable.append((finding.id, finding.error))
        elif not finding.words:
            self.no_caption.append(finding.id)
        for width, height, digest in finding.images:
            self.widths.append(width)
            self.heights.append(height)
            first = self._first.setdefault(digest, finding.id)
            if first != finding.id:
                self.copies.append((finding.id, first))

    def aspect_ratios(self) -> np.ndarray:
        """Width / height of every readable image."""
        return np.divide(self.widths, self.heights)

    def cut_share(self) -> float:
        """Share of the captions that CLIP's 77 tokens cut."""
        return float(np.mean(np.greater(self.tokens, CONTEXT_LENGTH))) if self.tokens else 0.0


def number(value: float) -> str:
    """Four digits, or more of a large one."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def histograms(survey: Survey) -> bytes:
    """Sizes, aspect ratios, caption lengths and captions per record as a PNG."""
    figure = new_figure(10, 7)
    axes = figure.subplots(2, 2).ravel()
    sides = {"width": survey.widths, "height": survey.heights}
    ratios = {"width / height": survey.aspect_ratios()}
    _histogram(axes[0], sides, "image size", "pixels", "images")
    _histogram(axes[1], ratios, "aspect ratio", "width / height", "images")
    _histogram(axes[2], {"words": survey.words}, "caption length", "words", "captions")
    _histogram(axes[3], {"captions": survey.captions}, "captions per record", "captions", "records")
    figure.suptitle(f"{survey.samples:,} records, {sum(survey.captions):,} captions")
    return png(figure)


def _histogram(axis, series: dict[str, Any], title: str, label: str, counted: str) -> None:
    axis.set_title(title, loc="left")
    axis.set_ylabel(counted)
    axis.spines[["top", "right"]].set_visible(False)
    values = np.concatenate([np.asarray(v, float) for v in series.values()])
    if not values.size:
        axis.text(0.5, 0.5, "none", ha="center", transform=axis.transAxes)
        return
    low, high, end = values.min(), values.max(), np.percentile(values, 99.5)
    if high - low > 3 * (end - low) > 0:
        # A few giants would squeeze all others into one bar.
        label += f" (the last bar holds all from {number(end)} to {number(high)})"
        high = end
    if np.all(values == np.round(values)):
        step = max(1, round((high - low) / 40))  # bars as wide as whole numbers allow
        edges = np.arange(low, high + step + 1, step) - 0.5
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    else:
        edges = np.linspace(low, high, 41) if high > low else np.array([low - 0.5, low + 0.5])
    for name, data in series.items():
        clipped = np.clip(data, None, edges[-1] - 1e-9)
        axis.hist(clipped, edges, histtype="stepfilled", alpha=0.6, label=name)
    axis.set_xlabel(label)
    if len(series) > 1:
        axis.legend(frameon=False)
