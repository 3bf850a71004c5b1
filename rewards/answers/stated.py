"""Answers with a mark before them: "answer is", "####" or `<answer>`."""

from __future__ import annotations

import re

from rewards.answers.corrections import put_right
from rewards.answers.find import tagged_answer
from rewards.answers.last_sentence import TAIL, last_sentence
from rewards.answers.prose import SENTENCE_END, formulas, inside, masked
from rewards.mathematics.reading.spelled import number_of

_OTHER_TONGUES = (
    "Antwort|R\u00e9ponse|Respuesta|Resposta|Risposta"
    "|\u041e\u0442\u0432\u0435\u0442|\u56de\u7b54|\u7b54\u3048|\uc815\ub2f5"
)
_MARK = re.compile(
    r"^[ \t]*(?P<hash>####)(?!#)[ \t]*"
    r"|\banswers?(?:[ \t]{0,9}\*\*)?[ \t]{0,9}(?:[:=\uff1a]|\b(?:is|are)\b[ \t]*:?|\bwould be\b)[ \t]*(?:\*\*)?[ \t]*"
    r"|\banswers?(?:[ \t]{0,9}\*\*)?\s{0,9}(?=\\\[|\$\$)"
    r"|^[ \t]*(?:#{1,6}[ \t]{1,9})?\*{0,2}(?:the )?(?:final |correct )?(?P<heading>answer)\*{0,2}[ \t]{0,9}$"
    r"|\u7b54\u6848[ \t]*(?:\u662f|\u4e3a|\u70ba)?[:\uff1a]?[ \t]*"
    rf"|\b(?:{_OTHER_TONGUES})\*{{0,2}}[ \t]{{0,9}}[:\uff1a]\*{{0,2}}[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
# If the lower-case copy of a text has none of these words, the text has no mark.
_MARK_WORDS = ("####", "answer", "\u7b54\u6848", *_OTHER_TONGUES.lower().split("|"))
# A heading such as "Answer" marks the text below it only if that text is a value, not a paragraph.
_MOST_BELOW_HEADING = 80
# "This answer is correct" states no value; "this answer is wrong" takes back the statement before it.
_APPROVAL = re.compile(
    r"(?:indeed |also |therefore |thus )?(?:correct|right|reasonable|consistent|plausible|verified|confirmed|helpful)\b"
    r"(?![ \t]*[:=])",
    re.IGNORECASE,
)
_DISPLAY = re.compile(r"\s*(?:\$\$(?P<dollars>.+?)\$\$|\\\[(?P<brackets>.+?)\\\])", re.DOTALL)
# In "The largest $n$ is 34", the value is after the verb of the sentence.
_VERB = re.compile(
    r"\b(?:is|are|equals?|be|was|were|gives|yields)\b"
    r"(?: (?:equal to|exactly|therefore|thus|simply|just|then|only|precisely|clearly|indeed|now|also))*"
    r":?\s+(?=[-+\u2212$\u20ac\u00a3*]{0,3}\s?[\d.(\[\\{\u221a\u03c0\0])"
)
# "$2k\\pi$, where $k$ is an integer": a formula, and a clause that explains its letters.
_WHERE = re.compile(r"\0+,?\s(?:where|which|since|because|as)\b")
_UNSURE = re.compile(
    r"\b(?:or|not|either|maybe|perhaps|possibly|if|unless|but|though|although|however|except|some"
    r"|others)\b|n['\u2019]t\b|\0\s?[,;]"
)
# A remark after a value: "10, as desired", "10 (see above)", "10 apples since 5 + 5 = 10".
_VALUE_HEAD = (
    r"(?:(?<=[\d$)}\]%])|(?<=[\d$)}\]%]\s[A-Za-z]{3})|^[^A-Za-z]{0,20}\d\S{0,20}(?:\s[A-Za-z]{2,20}){1,4}"
    r"|^[A-Za-z]{1,20})"
)
_REASON = re.compile(_VALUE_HEAD + r",?\s{1,3}(?:since|because)\b")
_REMARK = re.compile(r"(?<=[\d$)}\]%])\s{0,3}(?:[,;(]|\band\b)")
_WORD_WITH_DIGITS = re.compile(r"(?<![\w\\{}])[A-Za-z]+\d{1,9}$")
_SEE = re.compile(r"\s\(see\b[^()]{0,80}\)\.?$")
# Marks of bold text. Python's power operator has a value on both sides, so it does not match.
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")
_NO_WORDS = re.compile(r"[^\sA-Za-z,()'.-]")
_WORD = re.compile(r"[A-Za-z]+")
_NO_REMARK = re.compile(
    r"\b(?:or|not|no|never|maybe|perhaps|possibly|if|unless|when|where|either|but|modulo?|more|less|fewer|over|above|below"
    r"|under|up|down|infinity|negative|plus|minus|times|half|percent|hundred|thousand|[mbtr]+illion|[B-HJ-Zb-z])\b|n't\b"
)


def stated(text: str) -> str | None:
    """Return the statement after the last mark of an answer; None if there is no mark.

    A statement ends with its sentence, or before the next mark. If the rest of the mark's line is empty, the next line
    with text is the statement. Later sentences may correct the statement ("Wait, no, it is 6"), take it back (the
    result is then an empty text), or add a candidate. If the mark is an `<answer>` tag, the statement is the
    content of the tag; if the content itself has a mark, the statement is the text after that mark.
    """
    tail = text[-TAIL:]
    tagged = tagged_answer(tail)
    marks = [mark for mark in _marks(tail) if tagged is None or mark.start() >= tagged[1]]
    least = 1 if tagged is None else 0
    while len(marks) > least and _APPROVAL.match(tail, marks[-1].end()):
        marks.pop()
    while marks and marks[-1]["heading"] and not _value_below(tail, marks[-1].end()):
        marks.pop()
    if marks:
        return _statement(tail, marks[-1])
    if tagged is None:
        return None
    inner = _marks(tagged[0])
    return _statement(tagged[0], inner[-1]) if inner else tagged[0]


def _marks(text: str) -> list[re.Match[str]]:
    """Return the marks of an answer. The search begins at the first line that contains a word of `_MARK_WORDS`."""
    low = text.lower()
    places = [at for at in map(low.find, _MARK_WORDS) if at >= 0]
    if not places:
        return []
    # The text in lower case may be longer than the text (a dotted capital I becomes two characters). Then the indices
    # of the two texts differ.
    begin = text.rfind("\n", 0, min(places)) + 1 if len(low) == len(text) else 0
    return list(_MARK.finditer(text, begin))


def line_stated(text: str) -> str:
    """The rest of the line after the last mark of an answer; empty if there is no mark."""
    marks = _marks(text[-TAIL:])
    return text[-TAIL:][marks[-1].end() :].partition("\n")[0] if marks else ""


def _value_below(text: str, at: int) -> bool:
    below = next((line.strip() for line in text[at:].splitlines() if line.strip(" \t*:")), "")
    return 0 < len(below) <= _MOST_BELOW_HEADING


def _statement(text: str, mark: re.Match[str]) -> str:
    """The statement after a mark, corrected by the sentences that follow."""
    statement, after = _first_statement(text[mark.end() :], mark["hash"] is not None)
    if not after.strip():
        return statement
    withdrawn, instead, also = put_right(after)
    if withdrawn:
        return _of_sentence(instead) if instead else last_sentence(after) or ""
    return f"{statement}, {_of_sentence(also)}" if also else statement


def _first_statement(rest: str, hashed: bool) -> tuple[str, str]:
    """The statement at the start of a text, and the text after it."""
    line, _, after = rest.partition("\n")
    if hashed and line.strip():
        return line.strip(), after
    if not line.strip(" \t*:") or line.rstrip(" \t*").endswith(":"):
        if line.strip(" \t*:"):
            rest = after
        below = rest.lstrip(" \t\n*:")
        shown = _DISPLAY.match(below)
        if shown is not None:
            return (shown["dollars"] or shown["brackets"]).strip(), below[shown.end() :]
        line, _, after = below.partition("\n")
    shown = _DISPLAY.match(rest)
    if shown is not None and "\n" in shown.group().strip():
        return (shown["dollars"] or shown["brackets"]).strip(), rest[shown.end() :]
    pieces = SENTENCE_END.split(line.strip(), maxsplit=1)
    return _of_sentence(line), f"{pieces[1] if len(pieces) > 1 else ''}\n{after}"


def _of_sentence(rest: str) -> str:
    """The value of a statement: the text after its verb, or its only formula, or the whole statement."""
    sentence = _without_remark(
        SENTENCE_END.split(rest.strip(), maxsplit=1)[0].strip().removesuffix("**.").strip("*").strip()
    )
    matches = formulas(sentence)
    outside = masked(sentence) if matches else sentence
    verbs = list(_VERB.finditer(outside)) if outside[:1].isalpha() or outside[:1] == "\0" else []
    if len(verbs) == 1 and not _UNSURE.search(outside, 0, verbs[0].start()):
        return _of_sentence(sentence[verbs[0].end() :])
    if matches and _WHERE.match(outside):
        return inside(matches[0])
    if len(matches) == 1 and not re.search(r"\b(?:or|not|and|maybe|perhaps)\b|[,\d]|n['\u2019]t\b", outside):
        return inside(matches[0])
    return sentence.rstrip(".\u3002")


def _without_remark(sentence: str) -> str:
    sentence = _SEE.sub("", _BOLD.sub("", sentence) if "**" in sentence else sentence)
    reason = _REASON.search(sentence)
    if reason is not None:
        sentence = (
            sentence[: reason.end()].rpartition(",")[0]
            if "," in reason.group()
            else sentence[: reason.end()].rpartition(" ")[0]
        )
    last = max((match.end() for match in _NO_WORDS.finditer(sentence)), default=0)
    remark = next((match for match in _REMARK.finditer(sentence) if match.end() >= last), None)
    # In "TP53, and EGFR" the digits end a word; they are not a number.
    if remark is None or _WORD_WITH_DIGITS.search(sentence, 0, remark.start()):
        return sentence
    words = _WORD.findall(sentence[remark.end() :])
    plain = len(words) > 1 and not _NO_REMARK.search(sentence, remark.end())
    return sentence[: remark.start()] if plain and all(number_of(word) is None for word in words) else sentence
