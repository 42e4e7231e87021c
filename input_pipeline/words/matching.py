"""Target classes -> rows of a pretrained classifier of synsets: Transfer Init.

CatLIP (arXiv 2404.15653, section 4) starts the classifier of a new task from rows of the pretrained
one. A class that names several synsets takes the mean of their rows; one that names none keeps its
random start. Which rows these are is told here; who calls this copies them.
"""

import re
from collections.abc import Sequence

from input_pipeline.words import synsets
from input_pipeline.words.mining import LabelMiner

_WNID = re.compile(r"n\d{8}")
_SEPARATORS = re.compile("[_/-]")


def match_classes(
    class_names: Sequence[str],
    vocabulary: Sequence[str],
    min_similarity: float = 0.0,
) -> list[list[tuple[int, float]]]:
    """The vocabulary rows that stand for each class.

    Each synset of a class goes to the vocabulary's synset of the highest WordNet path similarity
    (1 / (1 + links between them)), 1.0 where the vocabulary has it; of equal ones to the lowest
    row.

    Args:
      class_names: WordNet ids as ImageNet writes them (n02084071), or words, whose synsets are
        mined as those of captions are. "_", "-" and "/" divide words.
      vocabulary: keys of synsets, the most frequent first.
      min_similarity: matches below are left out; all have more than 0.

    Returns:
      For each class (row, similarity) pairs, each row once, in the order of the class's words;
      empty where nothing matches.

    Raises:
      ValueError: the vocabulary is empty, a WordNet id or a key of the vocabulary is no noun of
        WordNet 3.0, or `min_similarity` is not in [0, 1].
    """
    if not vocabulary:
        raise ValueError("There is no vocabulary to match the classes with.")
    if not 0 <= min_similarity <= 1:
        raise ValueError(f"min_similarity={min_similarity}: similarities are in (0, 1].")
    nouns, miner = synsets.load(), LabelMiner()
    vocabulary = tuple(vocabulary)
    row_of = {key: row for row, key in reversed(list(enumerate(vocabulary)))}
    matches = []
    for name in class_names:
        rows: dict[int, float] = {}
        for key in class_keys(name, miner):
            nearest, similarity = nouns.nearest(key, vocabulary)
            if similarity >= min_similarity:
                row = row_of[nearest]
                rows[row] = max(similarity, rows.get(row, 0.0))
        matches.append(list(rows.items()))
    return matches


def class_keys(name: str, miner: LabelMiner) -> list[str]:
    """Keys of the synsets that a class name stands for, each once.

    Raises:
      ValueError: a WordNet id that is no noun of WordNet 3.0.
    """
    if _WNID.fullmatch(name):
        key = f"n{int(name[1:])}"
        if key not in synsets.load():
            raise ValueError(f"Class {name!r} is no noun of WordNet {synsets.VERSION}.")
        return [key]
    return list(dict.fromkeys(miner.keys(_SEPARATORS.sub(" ", name))))
