"""Sentences that take back, correct or doubt the statement before them, such as "Wait, no, it is 6."."""

from __future__ import annotations

import re

from rewards.answers.prose import NUMBER, SENTENCE_END

_LEAD = r"(?:(?:oh|oops|sorry|wait|hmm+|hm|ah|but|well|ok|okay|hold on|actually)\b[\s,.!;:\u2026\u2014-]{0,5}){0,4}"
# These words take back the statement before them.
_WITHDRAWN = re.compile(
    rf"^{_LEAD}(?:no|nope|wrong|incorrect)\s?(?:[,.!;:\u2014-]|$)(?:\s?(?:wait|sorry)[,.!]?)?"
    r"|\b(?:that|this|it|which|(?:the|my|this|that|our) (?:answer|result|value|one|statement))(?:\s(?:above|before))?"
    r"(?:\s(?:is|was|seems|looks)|['\u2019]s)\s(?:(?!not\b)\w+\s)?(?:wrong|incorrect|mistaken|false"
    r"|not (?:right|correct|true|it)"
    r"|an? (?:\w+ )?(?:mistake|error|typo))\b"
    r"|\b(?:is|was)(?:n't|n\u2019t) (?:right|correct|true)\b"
    r"|\b(?:scratch|strike|disregard|forget|ignore) (?:that|this|it)\b"
    r"|\b(?:I|we)(?:['\u2019]ve| have)? (?:made|had|found) an? (?:\w+ )?(?:mistake|error|slip)\b"
    r"|\b(?:I|we) (?:was|were) wrong\b|\b(?:I|we) (?:misread|miscalculated|miscounted|misspoke|meant)\b"
    r"|\bmy (?:mistake|bad)\b|\b(?:I|we) take (?:that|it) back\b|\bon second thoughts?\b|^correction\b:?|\bor rather\b",
    re.IGNORECASE,
)
# After these words, a plain "it is 6" is a new statement.
_DOUBTED = re.compile(
    r"^(?:but )?(?:wait|hold on|hmm+|hm|actually|oops|sorry|let me|let's|however|make (?:that|it)|rather|instead)\b",
    re.IGNORECASE,
)
_STATES = re.compile(
    r"\b(?:(?:it|that|this|which|answer|result|value|total|number)(?:['\u2019]s| is| was| are| equals"
    r"| (?:should|must|would|has to)(?: actually| really)?(?: have been| be| equal))|make (?:that|it)|(?:I|we) get)"
    r"(?: actually| really| in fact| instead| indeed| just)?:?\s+",
    re.IGNORECASE,
)
# At the start of a sentence, these words express doubt about the sentence before. Some of them, anywhere in a sentence,
# introduce another value.
_OR_ELSE = (
    rf"^{_LEAD}(?:or,? )?(?:maybe|perhaps|possibly|alternatively|or|otherwise|(?:could|may|might)(?: also)? be"
    r"|(?:if|unless|in case)\b(?: (?:it|that|this|the|my|answer|is|was|isn['\u2019]t|not|wrong|incorrect|I|am)\b)*)"
    r",?(?: then)?(?: it(?:['\u2019]s| is))?\s+"
)
_ALSO = re.compile(
    r"\b(?:it|this|that|answer|value)(?: \w+)? (?:could|may|might|can)(?: also| well| possibly| equally)*"
    rf" (?:be|equal)\s+|{_OR_ELSE}",
    re.IGNORECASE,
)
_DOUBTING = re.compile(_OR_ELSE, re.IGNORECASE)
_ALONE = re.compile(rf"^{_LEAD}(?P<value>(?:{NUMBER.pattern}|\(?[A-J]\)?))[.!*]*$", re.IGNORECASE)
_VALUE_START = re.compile(r"[-+\u2212$\u20ac\u00a3(\[\\*]{0,4}\s?(?:\d|\\[A-Za-z(]|\$|\u221a|\u03c0|[A-J]\b)")
_MOST_SENTENCES = 60


def put_right(after: str) -> tuple[bool, str, str]:
    """Find out how the text after a statement changes the statement.

    Returns:
        Whether the text takes the statement back; the new statement; and a second candidate. The new statement and the
        candidate are empty if there are none.
    """
    withdrawn, instead, also = False, "", ""
    doubted = False
    for sentence in sentences(after)[:_MOST_SENTENCES]:
        taken, rest = _WITHDRAWN.search(sentence), sentence
        more = _ALSO.search(sentence)
        if more and _VALUE_START.match(sentence, more.end()) and (not taken or more.start() <= taken.start()):
            also = sentence[more.end() :]
            continue
        if taken is not None:
            withdrawn, doubted, instead, also = True, True, "", ""
            rest = sentence[taken.end() :].strip(" ,.;:!\u2014-")
        elif _DOUBTED.match(sentence):
            doubted = True
        states = list(_STATES.finditer(rest))
        value = rest[states[-1].end() :] if states else rest if taken is not None else ""
        if doubted and not value and (alone := _ALONE.match(sentence)) is not None:
            value = alone["value"]
        if doubted and value and (taken is not None or (withdrawn and states) or _VALUE_START.match(value)):
            withdrawn, instead = True, value
    return withdrawn, instead, also


def doubts_the_last(sentence: str) -> bool:
    """True for "Or maybe 6", "Could be 6" and "If that is wrong, 6", which add a candidate to the value before."""
    doubt = _DOUBTING.match(sentence)
    return doubt is not None and _VALUE_START.match(sentence, doubt.end()) is not None


def sentences(text: str) -> list[str]:
    """Return the sentences of a text. The end of a line also ends a sentence."""
    return [
        piece.strip()
        for line in text.splitlines()
        for piece in SENTENCE_END.split(line.strip())
        if piece and piece.strip()
    ]


def without_preface(sentence: str) -> str:
    """Remove the words that take back an earlier sentence, as in `Wait, no, it is 6`."""
    taken = _WITHDRAWN.match(sentence)
    rest = sentence[taken.end() :].strip(" ,.;:!\u2014-") if taken is not None and taken.end() < len(sentence) else ""
    return rest or sentence
