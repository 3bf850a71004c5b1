"""Count sentences and words of a text. All functions take time linear in the text, whatever it is."""

from __future__ import annotations

import itertools
import re

# A language without blanks has no blank after these marks.
_WITHOUT_BLANK = re.compile("([\u3002\uff01\uff1f\u0964\u06d4\u061f])")
_CLOSERS = "\"'\u201d\u2019)]}*_`>"
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "st", "prof", "rev", "gen", "sen", "rep", "sgt", "lt", "col", "capt", "hon"),
        *("jr", "sr", "inc", "ltd", "co", "corp", "vs", "etc", "no", "vol", "fig", "approx", "dept", "est", "cf"),
        *("e.g", "i.e", "a.m", "p.m", "u.s", "u.k", "u.n", "ph.d", "al", "jan", "feb", "mar", "apr", "jun", "jul"),
        *("aug", "sep", "sept", "oct", "nov", "dec"),
    )
)
_TOKEN = re.compile(r"[^\s,:;@#$%&?!()\[\]{}<>\"\u201c\u201d\u2026*|/~`=+^\\\u2014\u2013]+")


def count_sentences(text: str) -> int:
    """Return the number of sentences.

    A period ends a sentence unless an abbreviation, an initial or a list's number stands before it, or a lower-case
    letter follows. A text without a mark at its end has a sentence more.
    """
    words = _WITHOUT_BLANK.sub(r"\1 ", text).split()
    count, in_sentence = 0, False
    for word, after in itertools.pairwise([*words, ""]):
        bare = word.rstrip(_CLOSERS)
        if not in_sentence and bare[:-1].isdecimal() and bare[-1] in ".)":
            continue  # the number of a list's item
        in_sentence = in_sentence or any(map(str.isalnum, word))
        if in_sentence and _ends(bare, after):
            count, in_sentence = count + 1, False
    return count + in_sentence


def _ends(word: str, after: str) -> bool:
    if _WITHOUT_BLANK.match(word[-1:]) or word.endswith(("!", "?")):
        return True
    if not word.endswith(".") or not after:
        return word.endswith(".")
    stem = word.rstrip(".").lstrip("\"'\u201c\u2018([*_")
    is_initial = len(stem) == 1 and stem.isalpha() and stem != "I"
    return not (is_initial or stem.lower() in _ABBREVIATIONS or after[:1].islower())


def count_words(text: str) -> int:
    """Return the number of words: runs of letters, digits and underscores."""
    return sum(1 for _ in re.finditer(r"\w+", text))


def count_capital_words(text: str) -> int:
    """Return the number of words whose letters are all capitals. A word with a hyphen is a single word."""
    return sum(match[0].isupper() for match in _TOKEN.finditer(text))


def count_brackets(text: str) -> int:
    """Return the number of square brackets that open and close on the same line."""
    count = 0
    for line in text.split("\n"):
        at = 0
        while (start := line.find("[", at)) >= 0 and (end := line.find("]", start)) >= 0:
            count, at = count + 1, end + 1
    return count
