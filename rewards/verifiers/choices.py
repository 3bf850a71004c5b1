"""The letter that an answer to a multiple-choice question names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rewards.answers.prose import SENTENCE_END
from rewards.mathematics.reading.latex_text import FONT

LETTERS = "ABCDEFGHIJ"
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad|[~$*`]|\\left|\\right|\\[()\[\]]")
_LETTER = re.compile(
    r"(?i:(?:the )?(?:correct |right |best )?(?:option|choice|answer)(?: is)?:? *)?"
    r"(?:\( *(?P<wrapped>[A-Ja-j]) *\)|\[(?P<square>[A-Ja-j])\]|(?P<marked>[A-J])(?= *[).:])|(?P<alone>[A-Ja-j])$"
    r"|(?P<reasoned>[A-J])(?=,? +(?:because|since|as|rather than|not|instead of)\b|, +[a-z]{2}))"
    r" *[).:]* *(?P<rest>.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(
    r"^(?:,|;|/|&|or\b|and\b) *(?:(?:or|and|maybe|possibly|perhaps|option) +)*\(?[A-Ja-j]\b(?!['\u2019])"
    r"|^(?:,|;|/|&|or\b|and\b)$|\( *[A-J] *\)|\b[A-J]\)|\b(?:[Oo]r|and) +[A-J]\b"
)
_A_LETTER = re.compile(r"\b[A-J]\b")
# A remark that says why the other letters are wrong does not name a second answer.
_REASON = re.compile(
    r",? *(?:because|since|as|it|this|which|while|whereas|not|(?:but|rather|instead|and)\b(?= (?:not|than|of)\b))\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:not|no|wrong|incorrect|false|neither|cannot|eliminated?|ruled? out|instead of|rather than|unlike)\b"
    r"|n['\u2019]t\b",
    re.IGNORECASE,
)
_REFUTED = re.compile(r"[\s,]*(?:(?:is|was) (?:not|wrong|incorrect|false)\b|isn)")
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|might|may|could|either|also|too|sure|unsure|if|unless|equally|as well|both are)\b",
    re.IGNORECASE,
)
_QUOTED = r"[\"'\u201c(\[]?([A-J])\b[\"'\u201d)\].]{0,2}"
_CHOSEN = re.compile(
    r"(?:\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter|[Oo]ne|[Ss]tatement)"
    r"(?: +(?:is|would be|must be|should be|=))? *:? *"
    r"|\b(?:choose|chose|pick|picked|select|selected|go with|going with|opt for|vote for|say|believe it is|think it is)"
    r" +(?:(?:the )?(?:option|choice|answer|letter) +)?"
    rf"|\b(?:[Ii]t|[Tt]his|[Tt]hat)(?: is|['\u2019]s| must be| should be) +(?:option +)?){_QUOTED}(?![\w'\u2019])"
    rf"|(?<![\w'\u2019]){_QUOTED} +(?:is|would be|must be|seems) +(?:indeed +|clearly +|therefore +)?"
    r"(?:(?:the )?(?:correct|right|best|true|most likely|most appropriate)|the (?:answer|solution))\b"
    rf"|^(?:[Tt]herefore|[Tt]hus|[Ss]o|[Hh]ence|[Ff]inally),? +{_QUOTED}$"
)
_DASH = re.compile(r"\(?([A-J])\)? +[-\u2013\u2014] +(?=\S{2})")
_LINE = re.compile(r"\W{0,4}[A-J]\W{1,3}\s?\S")
_TAIL = 3000


def letter_of(text: str) -> tuple[str, str] | None:
    r"""Return the letter, A to J, that an answer names, and the content after it.

    `(C)`, `C`, `C.`, `\text{(C)} 5`, `Option C`, `C) 5` and `C, because A is wrong` name C; None if the text names
    no letter or several letters.
    """
    plain = _SPACING.sub(" ", FONT.sub(r" \1 ", text[:400])).strip(" .\n\t")
    while plain.startswith("{") and plain.endswith("}"):
        plain = plain[1:-1].strip()
    match = _LETTER.fullmatch(plain)
    if match is None:
        return None
    rest = match["rest"].strip()
    if _names_another(rest):
        return None
    letter = match["wrapped"] or match["square"] or match["marked"] or match["alone"] or match["reasoned"]
    return letter.upper(), rest


def _names_another(rest: str) -> bool:
    if not rest:
        return False
    if _REASON.match(rest) and not _HEDGE.search(rest) and (_DENIAL.search(rest) or not _ANOTHER.match(rest)):
        return False
    doubted = rest[0] in ",;" or _HEDGE.search(rest) is not None
    return _ANOTHER.search(rest) is not None or (doubted and _A_LETTER.search(rest) is not None)


def chosen_in(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that a statement names, directly or by the text of its option.

    None if it names no letter or several.
    """
    labelled = letter_of(text)
    if labelled is not None:
        return labelled[0]
    # In "D. Both A and B" the text after the letter is its option.
    plain = plain_text(text)
    named = [letter for letter, content in options.items() if plain in _spellings(letter, content)]
    if len(named) == 1:
        return named[0]
    dashed = _DASH.match(text)
    if dashed is not None and not _names_another(text[dashed.end() :]):
        return dashed[1]
    return _in_sentence(text)


def _in_sentence(sentence: str) -> str | None:
    """The letter that a sentence chooses ("Option D is correct"); None for no letter, several letters, or a doubt."""
    sentence = _SPACING.sub(" ", sentence[:600])
    choices = {match[1] or match[2] or match[3]: match for match in _CHOSEN.finditer(sentence)}
    if len(choices) != 1:
        return None
    ((letter, match),) = choices.items()
    before = re.split(r"[,;:]", sentence[: match.start()])[-1]
    if _DENIAL.search(before) or _REFUTED.match(sentence, match.end()):
        return None
    return None if _names_another(sentence[match.end() :].strip()) or _HEDGE.search(before) else letter


def last_chosen(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of a completion without a marked answer, from its last line, a sentence, or a single letter."""
    tail = text[-_TAIL:].strip()
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    if not lines:
        return None
    if len(lines) == 1 or not _LINE.match(lines[-2]):
        # A list of the options is skipped: its last letter is not an answer.
        letter = chosen_in(lines[-1], options)
        if letter is not None:
            return letter
    for line in reversed(lines):
        for sentence in reversed([piece for piece in SENTENCE_END.split(line) if piece and piece.strip()]):
            letter = _in_sentence(sentence.strip())
            if letter is not None:
                return letter
    alone = letter_of(lines[0])
    return alone[0] if alone is not None and not alone[1] else None


def plain_text(text: str) -> str:
    """Text in the form in which options are compared: lower case, single blanks, no outer quotes, no final period."""
    return " ".join(text.split()).strip("\"'`.$*").casefold()


def _spellings(letter: str, content: str) -> tuple[str, ...]:
    plain, low = plain_text(content), letter.casefold()
    return plain, *(f"{form}{plain}" for form in (f"{low}. ", f"{low}) ", f"({low}) ", f"{low}: ", f"option {low}: "))
