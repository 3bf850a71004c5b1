"""Answers that stand in prose: after "answer is", "####" or in `<answer>`, or at the end of the last sentence."""

from __future__ import annotations

import re

from rewards.corrections import doubts_the_last, put_right, without_preface
from rewards.find import tagged_answer
from rewards.nouns import PHRASE, noun
from rewards.prose import (
    COMPARISON,
    FORMULA,
    NUMBER,
    SENTENCE_END,
    changed,
    formulas,
    inside,
    masked,
    negated,
    proportion,
)
from rewards.spelled import number_of
from rewards.units import BARE_UNITS, UNITS

# Prose is read from its end; a final answer further from it than this is none.
_TAIL = 3000
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
# A text without any of these in lower case has no mark.
_MARK_WORDS = ("####", "answer", "\u7b54\u6848", *_OTHER_TONGUES.lower().split("|"))
# A heading states what stands below it where that is a value, and not a paragraph.
_MOST_BELOW_HEADING = 80
# "This answer is correct" states nothing; "this answer is wrong" takes back what was stated before.
_APPROVAL = re.compile(
    r"(?:indeed |also |therefore |thus )?(?:correct|right|reasonable|consistent|plausible|verified|confirmed|helpful)\b"
    r"(?![ \t]*[:=])",
    re.IGNORECASE,
)
_DISPLAY = re.compile(r"\s*(?:\$\$(?P<dollars>.+?)\$\$|\\\[(?P<brackets>.+?)\\\])", re.DOTALL)
_REFUSAL = re.compile(r"\b(?:not|no|cannot|can't|could not|couldn't|unknown|unable|sorry)\b", re.IGNORECASE)
# "The largest $n$ is 34": what the verb of the sentence is followed by, where that is a value.
_VERB = re.compile(
    r"\b(?:is|are|equals?|be|was|were|gives|yields)\b"
    r"(?: (?:equal to|exactly|therefore|thus|simply|just|then|only|precisely|clearly|indeed|now|also))*"
    r":?\s+(?=[-+\u2212$\u20ac\u00a3*]{0,3}\s?[\d.(\[\\{\u221a\u03c0\0])"
)
# "$2k\\pi$, where $k$ is an integer": a formula and a clause about its letters.
_WHERE = re.compile(r"\0+,?\s(?:where|which|since|because|as)\b")
_UNSURE = re.compile(
    r"\b(?:or|not|either|maybe|perhaps|possibly|if|unless|but|though|although|however|except|some"
    r"|others)\b|n['\u2019]t\b|\0\s?[,;]"
)
# What may stand between the values of a list: nothing, commas, connectives, and a name for the next value. Between
# two candidates, other words may stand as well: "5 apples or 6 apples".
_LISTED = re.compile(
    r"\s+|(?:\s*(?:[,;/&]|\b(?:and|or|either|maybe|perhaps|possibly|also|else|then)\b))+"
    r"\s*(?:(?:[A-Za-z](?:_?\d)?|it|the other|another)\s*(?:=|\bis\b|\bbe\b)\s*)?",
    re.IGNORECASE,
)
_CANDIDATE = re.compile(
    r"(?:[^\w=]+[A-Za-z]+){0,3}[^\w=]+or\b(?!\s+(?:more|less|fewer))(?:[^\w=]+[A-Za-z]+){0,3}[^\w=]+"
)
# A sentence that names a second value as well: all its values are candidates.
_DOUBT = re.compile(
    r"\b(?:may(?:\s+also)?\s+be|might|maybe|perhaps|possibly|also possible|(?:un|not )sure)\b", re.IGNORECASE
)
# A remark behind the value of a statement: "10, as desired", "10 (see above)", "10 apples since 5 + 5 = 10".
_VALUE_HEAD = (
    r"(?:(?<=[\d$)}\]%])|(?<=[\d$)}\]%]\s[A-Za-z]{3})|^[^A-Za-z]{0,20}\d\S{0,20}(?:\s[A-Za-z]{2,20}){1,4}"
    r"|^[A-Za-z]{1,20})"
)
_REASON = re.compile(_VALUE_HEAD + r",?\s{1,3}(?:since|because)\b")
_REMARK = re.compile(r"(?<=[\d$)}\]%])\s{0,3}(?:[,;(]|\band\b)")
_WORD_WITH_DIGITS = re.compile(r"(?<![\w\\{}])[A-Za-z]+\d{1,9}$")
_SEE = re.compile(r"\s\(see\b[^()]{0,80}\)\.?$")
# Not Python's power, which stands between two values.
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")
_NO_WORDS = re.compile(r"[^\sA-Za-z,()'.-]")
_WORD = re.compile(r"[A-Za-z]+")
_NO_REMARK = re.compile(
    r"\b(?:or|not|no|never|maybe|perhaps|possibly|if|unless|when|where|either|but|modulo?|more|less|fewer|over|above|below"
    r"|under|up|down|infinity|negative|plus|minus|times|half|percent|hundred|thousand|[mbtr]+illion|[B-HJ-Zb-z])\b|n't\b"
)
_ASSIGNED = re.compile(r"\s*[A-Za-z](?:_\w|_\{\w+\})?\s*=[^=]+")
# A completion, or its last line, that is nothing but an expression.
_BARE = re.compile(
    r"(?:[-+*/^_=<>().,:;!%|\[\]{}\d\s\u2212\u00d7\u00b7\u00f7\u221a\u03c0\u2264\u2265\u00b0]"
    r"|\\[A-Za-z]+|\\[{},;! ]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+"
)
_SAYS = re.compile(r"\b(?:is|are|was|were|ha[sd]|have|will|can|would|should|remains?|left)\b", re.IGNORECASE)
# "20 m": a letter that is a unit, behind a blank.
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


def stated(text: str) -> str | None:
    """What the last mark of an answer states; None where there is no mark.

    A mark's statement goes to the end of its sentence, or to the next mark; where the rest of its line is empty, the
    next line that is not is the statement. What is said behind it may put it right ("Wait, no, it is 6"), take it back,
    which leaves the empty text, or name another candidate. In `<answer>` tags what they hold is, and of it what a mark
    in it states.
    """
    tail = text[-_TAIL:]
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
    """The marks of an answer, looked for from the first line that has a word of one."""
    low = text.lower()
    places = [at for at in map(low.find, _MARK_WORDS) if at >= 0]
    if not places:
        return []
    # Where lower case is longer, as of a dotted capital I, its places are not the text's.
    begin = text.rfind("\n", 0, min(places)) + 1 if len(low) == len(text) else 0
    return list(_MARK.finditer(text, begin))


def line_stated(text: str) -> str:
    """The rest of the line behind the last mark of an answer; empty where there is no mark."""
    marks = _marks(text[-_TAIL:])
    return text[-_TAIL:][marks[-1].end() :].partition("\n")[0] if marks else ""


def _value_below(text: str, at: int) -> bool:
    below = next((line.strip() for line in text[at:].splitlines() if line.strip(" \t*:")), "")
    return 0 < len(below) <= _MOST_BELOW_HEADING


def _statement(text: str, mark: re.Match[str]) -> str:
    """What follows the last mark, as the sentences behind it leave it."""
    said, after = _first_statement(text[mark.end() :], mark["hash"] is not None)
    if not after.strip():
        return said
    withdrawn, instead, also = put_right(after)
    if withdrawn:
        return _of_sentence(instead) if instead else last_sentence(after) or ""
    return f"{said}, {_of_sentence(also)}" if also else said


def _first_statement(rest: str, hashed: bool) -> tuple[str, str]:
    """The statement that a text begins with, and the text behind it."""
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
    """The statement up to its end: what its verb is followed by, or the single formula in it, or all of it."""
    sentence = _without_remark(
        SENTENCE_END.split(rest.strip(), maxsplit=1)[0].strip().removesuffix("**.").strip("*").strip()
    )
    found = formulas(sentence)
    outside = masked(sentence) if found else sentence
    verbs = list(_VERB.finditer(outside)) if outside[:1].isalpha() or outside[:1] == "\0" else []
    if len(verbs) == 1 and not _UNSURE.search(outside, 0, verbs[0].start()):
        return _of_sentence(sentence[verbs[0].end() :])
    if found and _WHERE.match(outside):
        return inside(found[0])
    if len(found) == 1 and not re.search(r"\b(?:or|not|and|maybe|perhaps)\b|[,\d]|n['\u2019]t\b", outside):
        return inside(found[0])
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
    # "TP53, and EGFR": a digit at the end of a word ends no number.
    if remark is None or _WORD_WITH_DIGITS.search(sentence, 0, remark.start()):
        return sentence
    words = _WORD.findall(sentence[remark.end() :])
    plain = len(words) > 1 and not _NO_REMARK.search(sentence, remark.end())
    return sentence[: remark.start()] if plain and all(number_of(word) is None for word in words) else sentence


def last_sentence(text: str) -> str | None:
    """The last value of the last sentence: the last formula's last side, or the last number.

    Values that commas or connectives join with it are one answer, a list. None where the sentence has no value, asks,
    says that there is no answer, or has words around the value that make another one of it.
    """
    tail = text[-_TAIL:].rstrip(" \t\n.*")
    lines = [line for line in text[-_TAIL:].splitlines() if line.strip(" \t*")]
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
        return None  # "18 if even", "18 less": all that is said is a number that is changed
    return _value_of(sentence)


def _shown_last(tail: str) -> str | None:
    """The last side of the display formula of several lines that the text ends with."""
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if tail.endswith(closing):
            begin = tail.rfind(opening, 0, len(tail) - 2)
            shown = tail[begin + 2 : -2] if begin >= 0 else ""
            if "\n" in shown:
                return _last_side(_ENVIRONMENT.sub(" ", shown).replace("\\\\", " ")) or None
    return None


def _value_of(sentence: str) -> str | None:
    found = formulas(sentence)
    places = [match.span() for match in found]
    values = [(match.end() - len(match.group().lstrip()), match.end()) for match in NUMBER.finditer(sentence)]
    if not places and not values:
        return None
    outside = [span for span in values if not any(start <= span[0] < end for start, end in places)]
    both = sorted(places + outside)
    chosen = _chosen(sentence, both, [match.span() for match in found if "=" in match.group()])
    listed = both if _DOUBT.search(sentence) else _list_around(sentence, both, chosen)
    if any(changed(sentence, *span, _UNIT_NAMES) for span in listed if span not in places):
        return proportion(sentence)
    named = len(listed) > 1 and bool(found)
    texts = [_value_at(sentence, span, named and span in places) for span in listed]
    return ", ".join(texts) if all(texts) else None


def _chosen(sentence: str, places: list[tuple[int, int]], equations: list[tuple[int, int]]) -> tuple[int, int]:
    """The place of the value that the sentence states: its last one, as a rule."""
    clause = _CLAUSE.match(sentence)
    main = [span for span in places if clause is not None and span[0] >= clause.end()] or places
    given = [span for span in main if _GIVEN.search(sentence[max(0, span[0] - 24) : span[0]])]
    # "12 elements in $S$": a formula that is a name is no value where another is given.
    while given and main[-1] not in given and _JUST_NAMED.fullmatch(sentence[slice(*main[-1])].strip("$")):
        main = main[:-1]
    last = main[-1]
    in_main = [span for span in equations if span in main]
    is_formula = FORMULA.fullmatch(sentence, *last) is not None
    return last if is_formula or last in given or not in_main else in_main[-1]


def _list_around(sentence: str, places: list[tuple[int, int]], chosen: tuple[int, int]) -> list[tuple[int, int]]:
    """The places that a list joins with the chosen one, itself among them."""
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
    """A value's text: of a formula its last side, or the whole equation where several name their values."""
    formula = FORMULA.fullmatch(sentence, *span)
    if formula is None:
        number = sentence[slice(*span)].strip()
        return "-" + number if negated(sentence, span[0]) else number
    within = inside(formula)
    return within if named and _ASSIGNED.fullmatch(within) else _last_side(within)


def _last_side(equation: str) -> str:
    """What an equation says last; a comparison is one answer, all of it."""
    return equation.strip() if COMPARISON.search(equation) else equation.rpartition("=")[2].strip()
