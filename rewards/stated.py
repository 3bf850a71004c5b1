"""Answers that stand in prose: after "answer is", "####" or `<answer>`, or at the end of the last sentence."""

from __future__ import annotations

import re

# Prose is read from its end; a final answer further from it than this is none.
_TAIL = 3000
_MARK = re.compile(
    r"<answer>(?P<tag>.*?)</answer>"
    r"|^[ \t]*####[ \t]*(?P<hash>[^\n]*)"
    r"|(?:\b(?:final|correct|right)[ \t]+)?\banswer(?:[ \t]*\*\*)?[ \t]*(?:[:=]|\bis\b[ \t]*:?|\bwould be\b)"
    r"[ \t]*(?:\*\*)?[ \t]*(?P<said>[^\n]*)"
    r"|\u7b54\u6848[ \t]*(?:\u662f|\u4e3a|\u70ba)?[:\uff1a]?[ \t]*(?P<chinese>[^\n]*)",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_MATHS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[^\d\s.][.!?\u3002])(?:\s|$)|(?<=\d[.!?\u3002])(?:\s|$)|\u3002")
_VALUE = re.compile(
    r"[$\u20ac\u00a3]?\s?[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?\s?(?:\\?%)?"
)
_REFUSAL = re.compile(r"\b(?:not|no|cannot|can't|could not|couldn't|unknown|unable|sorry)\b", re.IGNORECASE)


def stated(text: str) -> str | None:
    """What follows the last mark of an answer, up to the end of its sentence; None where there is no mark."""
    tail = text[-_TAIL:]
    marks = list(_MARK.finditer(tail))
    if not marks:
        return None
    last = marks[-1]
    if last["tag"] is not None:
        return last["tag"].strip()
    if last["hash"] is not None:
        return last["hash"].strip()
    return _of_sentence(last["said"] if last["said"] is not None else last["chinese"])


def _of_sentence(rest: str) -> str:
    """The statement up to its end; a single formula in it stands for the whole, words around it being prose."""
    sentence = _SENTENCE_END.split(rest.strip(), maxsplit=1)[0].strip().strip("*").strip()
    formulas = [next(part for part in found if part) for found in _MATHS.findall(sentence)]
    if len(formulas) == 1 and not re.search(r"\b(?:or|not|and)\b|,", _MATHS.sub("", sentence)):
        return str(formulas[0]).strip()
    return sentence.rstrip(".\u3002")


def last_sentence(text: str) -> str | None:
    """The last value of the last sentence: the last formula's last side, else the last number.

    None where the sentence has neither, or says that there is no answer.
    """
    lines = [line for line in text[-_TAIL:].splitlines() if line.strip()]
    if not lines:
        return None
    sentences = [piece for piece in _SENTENCE_END.split(lines[-1].strip()) if piece and piece.strip()]
    sentence = sentences[-1] if sentences else lines[-1]
    if _REFUSAL.search(sentence):
        return None
    formulas = list(_MATHS.finditer(sentence))
    if formulas:
        formula = next(part for part in formulas[-1].groups() if part)
        return str(formula).rpartition("=")[2].strip() or None
    values = _VALUE.findall(sentence)
    return values[-1].strip() if values else None
