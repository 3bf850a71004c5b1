"""The value, or the list of values, at the end of a text's last sentence."""

from __future__ import annotations

import re

from rewards.answers.corrections import doubts_the_last, without_preface
from rewards.answers.nouns import PHRASE, noun
from rewards.answers.prose import (
    COMPARISON,
    FORMULA,
    NUMBER,
    SENTENCE_END,
    changed,
    formulas,
    inside,
    negated,
    proportion,
)
from rewards.mathematics.units import BARE_UNITS, UNITS

# Only this number of characters at the end of the text is read: an earlier value is not a final answer.
TAIL = 3000
_REFUSAL = re.compile(r"\b(?:not|no|cannot|can't|could not|couldn't|unknown|unable|sorry)\b", re.IGNORECASE)
# Between the values of a list there may be nothing, commas, connectives, or a name for the next value. Between two
# candidates there may be other words as well: "5 apples or 6 apples".
_LISTED = re.compile(
    r"\s+|(?:\s*(?:[,;/&]|\b(?:and|or|either|maybe|perhaps|possibly|also|else|then)\b))+"
    r"\s*(?:(?:[A-Za-z](?:_?\d)?|it|the other|another)\s*(?:=|\bis\b|\bbe\b)\s*)?",
    re.IGNORECASE,
)
_CANDIDATE = re.compile(
    r"(?:[^\w=]+[A-Za-z]+){0,3}[^\w=]+or\b(?!\s+(?:more|less|fewer))(?:[^\w=]+[A-Za-z]+){0,3}[^\w=]+"
)
# A sentence that contains one of these names a second value, so all values of the sentence are candidates.
_DOUBT = re.compile(
    r"\b(?:may(?:\s+also)?\s+be|might|maybe|perhaps|possibly|also possible|(?:un|not )sure)\b", re.IGNORECASE
)
_ASSIGNED = re.compile(r"\s*[A-Za-z](?:_\w|_\{\w+\})?\s*=[^=]+")
# A completion that is only an expression, or whose last line is only an expression.
_BARE = re.compile(
    r"(?:[-+*/^_=<>().,:;!%|\[\]{}\d\s\u2212\u00d7\u00b7\u00f7\u221a\u03c0\u2264\u2265\u00b0]"
    r"|\\[A-Za-z]+|\\[{},;! ]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+"
)
_SAYS = re.compile(r"\b(?:is|are|was|were|ha[sd]|have|will|can|would|should|remains?|left)\b", re.IGNORECASE)
# "20 m": after a blank, a single letter may be a unit.
_MEASURED = re.compile(r"\d\s+[msghlLNJWVK]$")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s?\{(?:aligned|align\*?|split|gathered|gather\*?|equation\*?)\}|&")
_CLAUSE = re.compile(r"(?:since|as|because|if|when|for|with|given|let|suppose|where|while)\b[^,]*,", re.IGNORECASE)
_JUST_NAMED = re.compile(r"\\?[A-Za-z]{1,8}(?:_\w|_\{\w+\}|')?(?:\([A-Za-z]\))?|\([A-Za-z](?:,\s?[A-Za-z])+\)")
_GIVEN = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gets?|got|ha[sd]|have|gives?|yields?|totals?|makes?|needs?|leaves|takes|costs|pays?|earns"
    r"|only|exactly|therefore|thus|hence|so|total of|equal to)|[:=\u2248])\s{0,3}(?:\*\*\s?)?[$\u20ac\u00a3]?$",
    re.IGNORECASE,
)
_MOST_LISTED = 32
_UNIT_NAMES = BARE_UNITS | frozenset((*UNITS, "am", "pm"))


def last_sentence(text: str) -> str | None:
    """Return the last value of the last sentence: the last side of its last formula, or its last number.

    If commas or connectives join other values to the last value, the answer is the list of them. Return None if the
    sentence has no value, is a question, denies that there is an answer, or has words that change the value.
    """
    tail = text[-TAIL:].rstrip(" \t\n.*")
    lines = [line for line in text[-TAIL:].splitlines() if line.strip(" \t*")]
    if not lines:
        return None
    shown = _shown_last(tail)
    if shown is not None:
        return shown
    pieces = [piece for piece in SENTENCE_END.split(lines[-1].strip()) if piece and piece.strip()]
    sentence = without_preface(pieces[-1].strip() if pieces else lines[-1])
    if _REFUSAL.search(sentence) or sentence.rstrip(" *").endswith("?"):
        return None
    if len(pieces) > 1 and NUMBER.search(pieces[-2]) and doubts_the_last(sentence):
        return None  # "It is 5. Hmm, maybe 6."
    bare = sentence.strip(" *`").rstrip(".").removeprefix("- ")
    if _BARE.fullmatch(bare) and any(map(str.isdigit, bare)) and "$" not in bare and not _MEASURED.search(bare):
        return _last_side(bare) or None
    alone = NUMBER.match(bare)
    behind = bare[alone.end() :].strip() if alone is not None else ""
    if PHRASE.fullmatch(behind) and noun(behind) is None and not _SAYS.search(behind):
        return None  # "18 if even", "18 less": the words change the number
    return _value_of(sentence)


def _shown_last(tail: str) -> str | None:
    """If the text ends with a display formula of several lines, return the last side of this formula."""
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if tail.endswith(closing):
            begin = tail.rfind(opening, 0, len(tail) - 2)
            shown = tail[begin + 2 : -2] if begin >= 0 else ""
            if "\n" in shown:
                return _last_side(_ENVIRONMENT.sub(" ", shown).replace("\\\\", " ")) or None
    return None


def _value_of(sentence: str) -> str | None:
    matches = formulas(sentence)
    places = [match.span() for match in matches]
    values = [(match.end() - len(match.group().lstrip()), match.end()) for match in NUMBER.finditer(sentence)]
    if not places and not values:
        return None
    outside = [span for span in values if not any(start <= span[0] < end for start, end in places)]
    both = sorted(places + outside)
    chosen = _chosen(sentence, both, [match.span() for match in matches if "=" in match.group()])
    listed = both if _DOUBT.search(sentence) else _list_around(sentence, both, chosen)
    if any(changed(sentence, *span, _UNIT_NAMES) for span in listed if span not in places):
        return proportion(sentence)
    named = len(listed) > 1 and bool(matches)
    texts = [_value_at(sentence, span, named and span in places) for span in listed]
    return ", ".join(texts) if all(texts) else None


def _chosen(sentence: str, places: list[tuple[int, int]], equations: list[tuple[int, int]]) -> tuple[int, int]:
    """The place of the value that the sentence states, usually its last value."""
    clause = _CLAUSE.match(sentence)
    main = [span for span in places if clause is not None and span[0] >= clause.end()] or places
    given = [span for span in main if _GIVEN.search(sentence[max(0, span[0] - 24) : span[0]])]
    # "12 elements in $S$": if there is another value, a formula that is only a name is not a value.
    while given and main[-1] not in given and _JUST_NAMED.fullmatch(sentence[slice(*main[-1])].strip("$")):
        main = main[:-1]
    last = main[-1]
    in_main = [span for span in equations if span in main]
    is_formula = FORMULA.fullmatch(sentence, *last) is not None
    return last if is_formula or last in given or not in_main else in_main[-1]


def _list_around(sentence: str, places: list[tuple[int, int]], chosen: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the places of all values in the list that the chosen value belongs to, including the chosen value."""
    first = last = places.index(chosen)
    while first > 0 and last - first < _MOST_LISTED and _joined(sentence[places[first - 1][1] : places[first][0]]):
        first -= 1
    while last + 1 < len(places) and _joined(sentence[places[last][1] : places[last + 1][0]]):
        last += 1
    return places[first : last + 1]


def _joined(between: str) -> bool:
    between = f" {between[:80]} "
    return _LISTED.fullmatch(between) is not None or _CANDIDATE.fullmatch(between) is not None


def _value_at(sentence: str, span: tuple[int, int], named: bool) -> str:
    """The text of a value: the last side of a formula, or the whole equation if several values have names."""
    formula = FORMULA.fullmatch(sentence, *span)
    if formula is None:
        number = sentence[slice(*span)].strip()
        return "-" + number if negated(sentence, span[0]) else number
    within = inside(formula)
    return within if named and _ASSIGNED.fullmatch(within) else _last_side(within)


def _last_side(equation: str) -> str:
    """The last side of an equation; a comparison is returned whole."""
    return equation.strip() if COMPARISON.search(equation) else equation.rpartition("=")[2].strip()
