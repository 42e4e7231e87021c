"""Which labels a record has: the one rule by which views, prepared shards and sources mine them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline.sources import check_fields
from input_pipeline.words.mining import MODES, kept_miner
from input_pipeline.words.vocabulary import Vocabulary


class LabelRule:
    """The classes that a record's captions name (arXiv 2404.15653, section 3).

    A vocabulary says which of a record's captions it was counted from, and how: labels come from
    just these. Where it does not say, they come from all captions, unless told otherwise.

    Args:
      vocabulary: decides the classes.
      caption_fields: fields whose captions give labels; None for those of the vocabulary.
      mode: of the label miner; None for that of the vocabulary.

    Raises:
      ValueError: the vocabulary was counted from other fields or in another mode, or the mode
        cannot be had.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        caption_fields: Sequence[str] | None = None,
        mode: str | None = None,
    ):
        if caption_fields is not None:
            caption_fields = check_fields(caption_fields)
        counted = vocabulary.caption_fields
        if None not in (caption_fields, counted) and set(caption_fields) != set(counted):
            raise ValueError(
                f"Labels shall come from {field_names(caption_fields)}, but the vocabulary was "
                f"counted from {field_names(counted)}: count it again (python -m "
                f"input_pipeline.vocabulary --captions {','.join(caption_fields)}), or leave the "
                "fields to it. If its data call the same captions by other names, put these into "
                "its line '# caption fields:'."
            )
        if mode is not None and vocabulary.mode not in (None, mode):
            raise ValueError(
                f"Labels shall be mined in mode {mode!r}, but the vocabulary was counted in mode "
                f"{vocabulary.mode!r}: count it again with --mode {mode}, or leave the mode to it."
            )
        self.vocabulary = vocabulary
        self.caption_fields = counted if caption_fields is None else caption_fields
        self.miner = kept_miner(mode or vocabulary.mode or MODES[0])

    def labels(self, record: dict[str, Any]) -> list[int]:
        """Classes of all captions in the rule's fields, ascending, each once; often none.

        Raises:
          ValueError: the record has no captions, or none of the fields.
        """
        captions = record.get("captions")
        if not captions:
            raise ValueError(f"record {record['id']!r} has no captions to take labels from")
        fields = captions.keys() if self.caption_fields is None else self.caption_fields
        if captions.keys().isdisjoint(fields):
            raise ValueError(
                f"record {record['id']!r} has captions in {field_names(captions)}; labels come "
                f"from {field_names(fields)}: name its fields (caption_fields), or count a "
                "vocabulary from them"
            )
        texts = [text for field in fields for text in captions.get(field, ())]
        return self.vocabulary.labels({key for text in texts for key in self.miner.keys(text)})

    def description(self) -> dict[str, Any]:
        """What decides the labels beside the captions, and the number of classes."""
        described = {
            "fingerprint": self.vocabulary.fingerprint(),
            "size": len(self.vocabulary),
            "mode": self.miner.mode,
        }
        if self.caption_fields is not None:
            described["caption_fields"] = sorted(self.caption_fields)
        return described

    def check_stored(self, source) -> None:
        """Raises ValueError unless a source's stored labels are those of this rule."""
        stored, rule = source.label_rule or {}, self.description()
        remedy = "Prepare them again with --labels, or mine them: config.views.stored=False."
        if stored.get("fingerprint") != rule["fingerprint"]:
            raise ValueError(
                "the data were prepared with the labels of vocabulary "
                f"{stored.get('fingerprint')}, and config.views.vocabulary is "
                f"{rule['fingerprint']}. {remedy}"
            )
        if stored.get("mode", rule["mode"]) != rule["mode"]:
            raise ValueError(
                f"the data were prepared with labels mined in mode {stored['mode']!r}, and "
                f"config.views asks for mode {rule['mode']!r}. {remedy}"
            )
        stored_fields, fields = stored.get("caption_fields"), rule.get("caption_fields")
        if stored_fields != fields:
            raise ValueError(
                f"the data were prepared with the labels of {field_names(stored_fields)}, and "
                f"config.views asks for those of {field_names(fields)}. {remedy}"
            )


def field_names(fields: Iterable[str] | None) -> str:
    """The names of caption fields, for messages."""
    return "all caption fields" if fields is None else "the fields " + ", ".join(sorted(fields))


class Labeller:
    """Adds `labels` to records, replacing those that they had, while they are prepared.

    Args:
      rule: decides them, from the captions that the record keeps.
    """

    def __init__(self, rule: LabelRule):
        self._rule = rule

    def label(
        self, records: Iterable[dict[str, Any]], counts: Counter[str]
    ) -> Iterator[dict[str, Any]]:
        """Yields the records with their labels, and counts in `counts` the "labels" and the
        "records without".

        Raises:
          ValueError: as `LabelRule.labels`.
        """
        for record in records:
            labels = self._rule.labels(record)
            counts["labels"] += len(labels)
            counts["records without"] += not labels
            yield {**record, "labels": labels}
