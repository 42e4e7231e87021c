"""Captions as the words that COCO's caption metrics count: by the rules of the Penn Treebank.

COCO's evaluation runs the PTBTokenizer of Stanford CoreNLP 3.4.1 over all captions of a file, in
lower case, and drops punctuation. `tokenize` gives the same words without Java, so that scores
equal the published ones. Its rules were found by asking that tokenizer, and the tests hold them to
its answers. Some look like mistakes, and are part of what is published: brackets stay as words
("-lrb-"), ":)" is one word, "hello.world" too, and whether "U.S." ends a sentence is seen from the
next word, even where that begins the next caption. Telephone numbers, and fractions behind a
number, are words with a no-break space.
"""

import re
from collections.abc import Sequence

# What COCO's evaluation drops. Brackets are not dropped: they are lower case when it looks.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_L = "[^\\W\\d_]"
_ALNUM = "[^\\W_]"
_BLANK = "[ \\t\\xa0]"
_APOSTROPHE = "['\u2019]"
# Abbreviations that end a sentence where a capital follows, and those before names, which do not.
_ENDING = """
    al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc
    ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont
    neb nev nov oct okla penn plc pte pty rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues
    univ va vt wed wis wisc wyo
"""
_ENDING_CAPITAL = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_BEFORE_NAMES = """
    adj adm adv alex asst assoc atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs
    elec ens ft gen gov govs hon insp jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg
    natl pfc ph pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt treas vs wm
"""
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Now Once One Other Our She Since So Some Such That The Their Then There These They This We
    What When While Yet You
"""
_SYMBOLS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "\u2013": "--", "\u2014": "--",
    "\u2026": "...", "\u00a3": "#", "\u20ac": "$", "\u00a2": "cents",
    "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4",
}  # fmt: skip
_SMILEY_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"}
_NUMBER = "(?:\\d+(?:[.:,]\\d+)*|(?:[.:,]\\d+)+)"
_DOMAIN = "(?:com|net|org|edu)"
_SENTENCE = "(?:\\s[A-Z]|[ \\t\\n]\\s|\\s?<[A-Za-z/])"


def _any(words: str) -> str:
    return "|".join(words.split())


# The longest match is taken, among equals the first, as in the original; what has to follow a word
# counts for its length there, and the group is the word.
_RULES = [
    re.compile(rule)
    for rule in (
        r"</?[A-Za-z!][^<>\n]*>",
        r"(?:&(?:amp|lt|gt|quot|apos);)",
        # Words that fall into two.
        r"(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na)(?!\w|['\u2019][smdSMD])",
        rf"(?i:({_APOSTROPHE}t)(?:is|was))",
        rf"(?i:(more){_APOSTROPHE}n(?!\w))",
        # Negations and what is written together with an apostrophe.
        rf"({_L}+)[nN]{_APOSTROPHE}[tT]",
        rf"[nN]{_APOSTROPHE}[tT]",
        rf"((?:\w+-)*{_L}+)(?i:{_APOSTROPHE}(?:ll|re|ve|[smd]))(?:[^A-Za-z]|$)",
        rf"(?i:({_APOSTROPHE}(?:ll|re|ve|[smd])))(?:[^A-Za-z]|$)",
        rf"(?i:{_APOSTROPHE}(?:n{_APOSTROPHE}|(?:em|till?|cause|n)(?![A-Za-z])))",
        rf"{_APOSTROPHE}\d0[sS]|{_APOSTROPHE}\d\d(?=\s)",
        r"(?i:o'clock|c'mon|nat'l|s'mores|li'l|cap'n|nor'easter|ma'am|e'er|ol'(?=\s))",
        rf"(?:[A-HJ-XZdlno]{_APOSTROPHE}{_L}{{2,}}|{_L}+[aeiouyAEIOUY]{_APOSTROPHE}[aeiouA-Z]{_L}*)",
        rf"([yY]{_APOSTROPHE}){_L}",
        # Addresses.
        r"https?://[^\s<>|()]*[^\s<>|(),.!?;:\"'\-]",
        rf"(?i:(?:[^\s\"`'<>|.!?(){{}}\[\],;&\-_$]+\.)+{_DOMAIN}(?:/[a-z0-9][^\s<>|()]*[^\s<>|(),.!?;:\"'\-])?)(?!\w)",
        r"[A-Za-z0-9][\w.\-]*@[A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*",
        r"[@#][A-Za-z_]+",
        # Numbers.
        rf"[-+]?{_NUMBER}",
        r"(?:\d{1,4}[- \xa0])?\d{1,4}/\d{1,4}",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        r"(?:\+?\d{1,3}[- ])?(?:\(\d{2,3}\)[ ]?|\d{2,4}[- ])\d{3,4}[- ]\d{3,5}(?!\w)",
        r"(?:US|HK|A|C|NZ|NT|S)\$",
        # Abbreviations: before the end of a sentence the full stop counts twice.
        rf"(?P<cut>(?i:{_any(_ENDING)})|(?:{_any(_ENDING_CAPITAL)})|"
        rf"(?i:{_any(_ENDING_CAPITAL)})(?<=[A-Z]))\.{_SENTENCE}",
        rf"(?i:{_any(_ENDING)})\.|(?:{_any(_ENDING_CAPITAL)})\.|(?:{_any(_ENDING_CAPITAL).upper()})\.",
        rf"([A-Z])\.\s(?:{_any(_STARTERS)}|Mr\.|Ms\.)\s",
        rf"(?P<cut>(?:[A-Za-z]\.)+[A-Za-z])\.\s(?:{_any(_STARTERS)}|Mr\.|Ms\.)\s",
        r"(?:[A-Za-z]\.)*[A-Za-z]\.(?![A-Za-z]{2})",
        rf"(?i:{_any(_BEFORE_NAMES)})\.",
        rf"((?i:{_any(_BEFORE_NUMBERS)})\.)(?:[,;:]|\s?\d)",
        r"(?i:ph\.d\.)",
        # Words, and what holds together without a space.
        rf"{_L}{_ALNUM}*(?:[.!?]{_L}{_ALNUM}*)*",
        rf"(?:[dDoOlL]{_APOSTROPHE})?{_ALNUM}+(?:[-_](?:[dDoOlL]{_APOSTROPHE})?{_ALNUM}+)*",
        rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:(?:[A-Za-z]\.){{2,}}|{_ALNUM}+))+",
        r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
        r"[A-Z]+(?:&[A-Z]+)+",
        r"[cC]\+\+",
        # Signs.
        r"[<>]?[:;=]['`]?[-o*^]?(?:[)(\\|\[\]{}@]|[DPdp](?![A-Za-z0-9]))",
        r"\^_\^|-_-",
        r"\.{3,5}|\.(?: \.){2,4}",
        r"\\\*|<<|>>",
        r"[?!]+|-{2,}|\*+|#+|@+|_+|``|''",
        r"\S",
    )
]
_PLAIN = re.compile(r"[a-z]+(?=[ \n]|$)")
_SPLIT_IN_TWO = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
_SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r"[A-Za-z0-9$]")
_OPENED = re.compile(r"[A-Za-z]\S")


def tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The words of each caption, as COCO's evaluation counts them.

    Args:
      captions: of one file, in its order; line ends in them are spaces.
    """
    lines = [" ".join(caption.splitlines()) for caption in captions]
    text, words, start = "\n".join(lines), [], 0
    for line in lines:
        end = start + len(line)
        words.append([word for word in _words(text, start, end) if word not in PUNCTUATION])
        start = end + 1
    return words


def _words(text: str, place: int, end: int):
    place = _SPACE.match(text, place, end).end()
    while place < end:
        plain = _PLAIN.match(text, place)
        if plain and plain[0] not in _SPLIT_IN_TWO:
            yield plain[0]
            place = plain.end()
        else:
            word, place = _next(text, place)
            yield word
        place = _SPACE.match(text, place, end).end()


def _next(text: str, place: int) -> tuple[str, int]:
    """The word that begins there, and where it ends."""
    matches = [match for rule in _RULES if (match := rule.match(text, place))]
    longest = max(matches, key=lambda match: match.end())
    group = longest.lastindex or 0
    end, word = longest.end(group), longest[group]
    if longest.lastgroup == "cut":
        word += "."  # which is there once more: it ends the sentence
    return _written(word, text, end), end


def _written(word: str, text: str, end: int) -> str:
    if word == '"':
        return "``" if _QUOTED.match(text, end) else "''"
    if word == "'":
        return "`" if _OPENED.match(text, end) else "'"
    if word in _SYMBOLS or word in _ENTITIES:
        return _SYMBOLS.get(word) or _ENTITIES[word]
    if word.startswith(".") and not word.strip(". ") and len(word) > 2:
        return "..."
    if word.startswith("--") and not word.strip("-"):
        return "--"
    if word[:1] in "<>:;=(+0123456789":
        word = word.translate(_SMILEY_BRACKETS).replace(" ", "\xa0")
    return word.replace("\u2019", "'").lower()
